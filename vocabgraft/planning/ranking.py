"""Decides which words are worth adding: tokens saved, contrast with general text, diminishing returns."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING

import numpy as np

from vocabgraft.errors import VocabgraftError
from vocabgraft.planning.word_forms import is_compound, is_name, parts_of
from vocabgraft.tokens.tokenizer import matches_inside, normalised

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

ENCODED_AT_A_TIME = 10_000
# A word that no base has, and a neighbor that every base knows.
PROBE_WORD, PROBE_NEIGHBOR = "qzvocabgraftqz", "a"
EXAMPLES_SHOWN = 20
UNKNOWN = ("[UNK]", "<unk>")
# The prior's weight as a share of the smaller corpus: much lower or higher values require more occurrences.
PRIOR_WEIGHT = 0.2
# A word is specific to the corpus if chance would explain its contrast in at most 5 % of cases. For corpora of equal
# size that takes 6 occurrences here and none there; a smaller background requires more.
LEAST_CONTRAST = 1.645


@dataclass(frozen=True)
class PlanParams:
    """Limits for words worth adding; `typo_ratio` is how much more frequent the intended word of a typo must be.

    `max_candidates` limits the memory: of more words, only those that save most are considered.
    """

    min_count: int = 5
    min_letters: int = 3
    max_characters: int = 64
    min_contrast: float = LEAST_CONTRAST
    typo_ratio: int = 50
    max_candidates: int = 20_000

    def __post_init__(self) -> None:
        for name in ("min_count", "min_letters", "max_characters", "typo_ratio", "max_candidates"):
            if getattr(self, name) < 1:
                raise VocabgraftError(f"{name} is {getattr(self, name)}; allowed: 1 or more")


@dataclass(frozen=True, slots=True)
class PlannedWord:
    """A word worth adding: its occurrences, number of subword tokens in the base, and contrast (a z-score).

    `tokens_after` is the number of tokens of an occurrence after the word is added.
    """

    text: str
    count: int
    pieces: int
    background_count: int | None = None
    contrast: float | None = None
    tokens_after: int = 1

    @property
    def saved(self) -> int:
        """The number of tokens that the word saves in the corpus."""
        return (self.pieces - self.tokens_after) * self.count


@dataclass(frozen=True)
class Dropped:
    """The number of words dropped for one reason, and the most frequent of them."""

    words: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All words worth adding, best first; dropped words by reason; the number of words after which returns diminish."""

    words: tuple[PlannedWord, ...]
    dropped: Mapping[str, Dropped]
    knee: int

    @property
    def cumulative_saved(self) -> list[int]:
        """Tokens saved by the first word, the first two, and so on: one value per word."""
        return [int(saved) for saved in np.cumsum([word.saved for word in self.words], dtype=np.int64)]


@dataclass
class _Sieve:
    """The remaining words, and the dropped ones by reason."""

    left: dict[str, int]
    dropped: dict[str, Dropped] = field(default_factory=dict)

    def drop(self, reason: str, words: Collection[str]) -> None:
        """Drop words; if there are none, the reason is not recorded."""
        if not words:
            return
        examples = sorted(words, key=lambda word: (-self.left[word], word))[:EXAMPLES_SHOWN]
        self.dropped[reason] = Dropped(len(words), tuple(examples))
        self.left = {word: count for word, count in self.left.items() if word not in words}

    def drop_where(self, reason: str, test: Callable[[str], bool]) -> None:
        """Drop the words for which a test is true."""
        self.drop(reason, {word for word in self.left if test(word)})


def plan_vocabulary(
    tokenizer: "Tokenizer",
    counts: Mapping[str, int],
    params: PlanParams,
    background: Mapping[str, int] | None = None,
    known: Iterable[str] = (),
) -> Plan:
    """Choose the words of a corpus, and rank them by the tokens that they would save.

    Args:
        tokenizer: the base's tokenizer, not extended.
        counts: occurrences by word, after the base's normalization.
        params: the limits.
        background: counts of a general corpus; if given, words must be specific to the first corpus.
        known: words that are already in the vocabulary.

    Raises:
        VocabgraftError: if no word is left, with the number dropped for each reason.
    """
    frequent = {word: count for word, count in counts.items() if count >= params.min_count}
    sieve = _Sieve(frequent, {"below min_count": Dropped(len(counts) - len(frequent), ())})
    _drop_by_form(sieve, tokenizer, params, known)
    contrasts = {} if background is None else contrast(counts, background, sieve.left)
    sieve.drop_where("not special to the corpus", lambda word: contrasts.get(word, math.inf) < params.min_contrast)
    sieve.drop("another casing is more frequent", _other_casings(sieve.left))
    after = tokens_of_added_word(tokenizer)
    pieces = _drop_by_pieces(sieve, tokenizer, params.max_candidates, after)
    sieve.drop("typo of a frequent word", typos(sieve.left, counts, params.typo_ratio))
    _settle_compounds(sieve, pieces, counts, params.min_count, special=background is not None)
    if not sieve.left:
        raise _nothing_left(counts, sieve.dropped)
    planned = [
        PlannedWord(
            word,
            count,
            pieces[word],
            None if background is None else background.get(word, 0),
            contrasts.get(word),
            after,
        )
        for word, count in sieve.left.items()
    ]
    ranked = tuple(sorted(planned, key=lambda word: (-word.saved, -word.count, -(word.contrast or 0.0), word.text)))
    return Plan(ranked, sieve.dropped, knee([word.saved for word in ranked]))


def tokens_of_added_word(tokenizer: "Tokenizer") -> int:
    """The number of tokens of an added word within a text: 1, plus the tokens of the space before it.

    Byte-level BPE and Metaspace join that space to the word's first subword token, but keep it as a separate token
    before an added word. Measured by adding a word to a copy of the tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer

    extended = Tokenizer.from_str(tokenizer.to_str())
    extended.add_tokens([AddedToken(PROBE_WORD, single_word=True, normalized=True)])
    before, after = f"{PROBE_NEIGHBOR} {PROBE_NEIGHBOR}", f"{PROBE_NEIGHBOR} {PROBE_WORD} {PROBE_NEIGHBOR}"
    return len(extended.encode(after, add_special_tokens=False)) - len(
        tokenizer.encode(before, add_special_tokens=False)
    )


def segmentations(tokenizer: "Tokenizer", words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The base's subword tokens of each word, in order, as text."""
    return (tuple(encoding.tokens) for encoding in _encoded(tokenizer, words))


def contrast(counts: Mapping[str, int], background: Mapping[str, int], words: Iterable[str]) -> dict[str, float]:
    """How much more often each word is used than in the background: z-scores of the log-odds ratio.

    With the informative Dirichlet prior of Monroe, Colaresi and Quinn, "Fightin' Words" (Political Analysis 2008):
    a word's prior is its share of both corpora together, and all priors together weigh a fifth of the smaller corpus.

    Raises:
        VocabgraftError: for a background without words.
    """
    # Without compounds, because their words are already counted.
    totals = tuple(sum(n for word, n in each.items() if not is_compound(word)) for each in (counts, background))
    if not all(totals):
        raise VocabgraftError("the background has no words to compare with; use running text")
    return {word: _contrast(counts[word], background.get(word, 0), *totals) for word in words}


def least_special_count(total: int, total_background: int, min_contrast: float) -> int:
    """The least count in a corpus of `total` words at which a word that the background lacks is specific to it."""
    return bisect_left(
        range(total), True, 1, key=lambda count: _contrast(count, 0, total, total_background) >= min_contrast
    )


def _contrast(count: int, background_count: int, total: int, total_background: int) -> float:
    prior_total = PRIOR_WEIGHT * min(total, total_background)
    prior = prior_total * (count + background_count) / (total + total_background)
    here, there = count + prior, background_count + prior
    # At least 1, because a corpus of only this word leaves nothing to compare with.
    odds = here / max(total + prior_total - here, 1.0)
    odds_there = there / max(total_background + prior_total - there, 1.0)
    return (math.log(odds) - math.log(odds_there)) / math.sqrt(1 / here + 1 / there)


def typos(words: Collection[str], counts: Mapping[str, int], ratio: int) -> set[str]:
    """The words within one edit of a word that is at least `ratio` times as frequent.

    An edit inserts, deletes or replaces a letter, or swaps two adjacent ones. Words are compared only if deleting at
    most one letter from each gives the same string (the symmetric deletions of SymSpell, Garbe 2012).

    Args:
        words: the words to judge.
        counts: occurrences of these words and of all words that they may be typos of.
        ratio: with 50, inflections are kept if both forms are in use.
    """
    if not words:
        return set()
    least = ratio * min(counts[word] for word in words)
    index: dict[str, list[str]] = {}
    for word in words:
        for key in _deletions(word):
            index.setdefault(key, []).append(word)
    found = set()
    for meant, count in counts.items():
        if count >= least:
            near = {word for key in _deletions(meant) for word in index.get(key, ())}
            found |= {word for word in near if count >= ratio * counts[word] and within_one_edit(word, meant)}
    return found


def within_one_edit(left: str, right: str) -> bool:
    """Whether one inserted, deleted or replaced letter, or two swapped adjacent ones, turn one word into the other."""
    if len(left) > len(right):
        left, right = right, left
    start = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
    if len(left) != len(right):
        return left[start:] == right[start + 1 :]
    swapped = left[start : start + 2][::-1] == right[start : start + 2] and left[start + 2 :] == right[start + 2 :]
    return swapped or left[start + 1 :] == right[start + 1 :]


def knee(saved: Sequence[int]) -> int:
    """The number of words after which returns diminish: where the cumulative savings are farthest above their chord.

    Satopaa et al., "Finding a Kneedle in a Haystack" (ICDCSW 2011), without its smoothing: the curve is exact.

    Args:
        saved: tokens saved by each word, largest first.
    """
    curve = np.cumsum([0, *saved], dtype=np.float64)
    if len(saved) == 0 or curve[-1] == 0:
        return 0
    return int(np.argmax(curve / curve[-1] - np.linspace(0, 1, len(curve))))


def _drop_by_form(sieve: _Sieve, tokenizer: "Tokenizer", params: PlanParams, known: Iterable[str]) -> None:
    have = {normalised(tokenizer, word).strip().casefold() for word in known}
    sieve.drop_where("in the vocabulary already", lambda word: word.casefold() in have)
    sieve.drop_where("too few letters", lambda word: sum(map(str.isalpha, word)) < params.min_letters)
    sieve.drop_where("too long", lambda word: len(word) > params.max_characters)


def _drop_by_pieces(sieve: _Sieve, tokenizer: "Tokenizer", limit: int, after: int) -> dict[str, int]:
    """Keep the `limit` words that save most; return the number of subword tokens of each."""
    pieces = dict[str, int]()
    unfit: dict[str, set[str]] = {"the base reads it as several words": set(), "the base cannot read it": set()}
    unfit["one token in the base"] = set()
    unfit["saves nothing"] = set()
    best: list[int] = []
    unknown = next((found for name in UNKNOWN if (found := tokenizer.token_to_id(name)) is not None), None)
    # The words with the highest possible savings come first, so that most need not be encoded, which is slow.
    order = sorted(sieve.left, key=lambda word: (-_most_saved(word, sieve.left[word]), word))
    for word, encoding in zip(order, _encoded(tokenizer, order), strict=False):
        if len(best) == limit and best[0] > _most_saved(word, sieve.left[word]):
            break
        if reason := _reason_unfit(word, encoding, unknown, after):
            unfit[reason].add(word)
        else:
            pieces[word] = len(encoding.ids)
            saved = (pieces[word] - after) * sieve.left[word]
            heappush(best, saved) if len(best) < limit else heappushpop(best, saved)
    for reason, words in unfit.items():
        sieve.drop(reason, words)
    chosen = set(sorted(pieces, key=lambda word: (-(pieces[word] - after) * sieve.left[word], word))[:limit])
    sieve.drop("beyond max_candidates", sieve.left.keys() - chosen)
    return pieces


def _settle_compounds(
    sieve: _Sieve, pieces: Mapping[str, int], counts: Mapping[str, int], min_count: int, special: bool
) -> None:
    """Choose between a compound and its words, so that no use counts for both: a token covers its whole match.

    A compound is chosen if one of its words that could be added instead is used in it at least as often as elsewhere;
    those words keep their other uses. A compound of words that the base has is chosen if it is a name (O'Brien) or
    specific to the corpus.
    """
    plain, elsewhere = set[str](), set[str]()
    left, inside = sieve.left, dict[str, int]()
    for word in sorted(filter(is_compound, left), key=lambda word: (-left[word], word)):
        parts = parts_of(word)
        # With one subword token per word and per sign between them, the base splits none of the words.
        is_cut = pieces[word] > 2 * len(parts) - 1
        uses = [counts[part] - inside.get(part, 0) for part in parts if part in left]
        if not (is_cut or special or is_name(word)):
            plain.add(word)
        elif uses and all(2 * left[word] < count for count in uses):
            elsewhere.add(word)
        else:
            for part in parts_of(word):
                inside[part] = inside.get(part, 0) + left[word]
    sieve.drop("a compound of words that the base has", plain)
    sieve.drop("a compound whose words are used more often elsewhere", elsewhere)
    rest = {word: count - inside.get(word, 0) for word, count in sieve.left.items()}
    sieve.drop("used in compounds that are taken", {word for word, count in rest.items() if count < min_count})
    sieve.left = {word: rest[word] for word in sieve.left}


def _most_saved(word: str, count: int) -> int:
    # A subword token has at least one byte, and a base may add one for the space before the word.
    return len(word.encode()) * count


def _reason_unfit(word: str, encoding: "Encoding", unknown: int | None, after: int) -> str | None:
    if len(set(encoding.word_ids)) > 1 and not (is_compound(word) or matches_inside(word)):
        # A whole-word token must be one word for the base, or it would change the text around it. Exceptions are
        # compounds, which end where a word ends, and scripts without spaces, which have no such ends.
        return "the base reads it as several words"
    if not encoding.ids or unknown in encoding.ids:
        # Its row could only be initialized from a description, which a person has to write.
        return "the base cannot read it"
    if len(encoding.ids) == 1:
        return "one token in the base"
    return "saves nothing" if len(encoding.ids) <= after else None


def _encoded(tokenizer: "Tokenizer", words: Sequence[str]) -> Iterator["Encoding"]:
    for start in range(0, len(words), ENCODED_AT_A_TIME):
        # With a leading space, which some bases make part of a subword token and the others ignore.
        batch = [f" {word}" for word in words[start : start + ENCODED_AT_A_TIME]]
        # Not encode_batch_fast, which returns no word ids.
        yield from tokenizer.encode_batch(batch, add_special_tokens=False)


def _nothing_left(counts: Mapping[str, int], dropped: Mapping[str, Dropped]) -> VocabgraftError:
    reasons = "; ".join(f"{reason}: {entry.words}" for reason, entry in dropped.items())
    return VocabgraftError(
        f"no word of {len(counts)} is worth adding ({reasons}); give more text, or lower --min-count or --min-contrast"
    )


def _other_casings(words: Mapping[str, int]) -> set[str]:
    best: dict[str, str] = {}
    for word, count in words.items():
        other = best.setdefault(word.casefold(), word)
        if (-count, word) < (-words[other], other):
            best[word.casefold()] = word
    return {word for word in words if best[word.casefold()] != word}


def _deletions(word: str) -> set[str]:
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}
