"""Combines several packs into one, and finds the conflicts between their tokens."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.pack import Pack, PackToken, require_base
from vocabgraft.tokens.tokenizer import hidden_by, normalised

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OnConflict = Literal["refuse", "first"]
ConflictKind = Literal["rows", "matching", "same text", "hides", "overlap"]
SHOWN = 10
NO_LETTER = re.compile(r"\W")
EXPLAINED: dict[ConflictKind, str] = {
    "rows": "both have it, with different rows",
    "matching": "both have it, matched differently",
    "same text": "their normalized texts are the same",
    "hides": "the longer hides the shorter in texts with only a part of the longer",
    "overlap": "one is part of the other: a text with the longer is read as the longer only",
}


@dataclass(frozen=True)
class Conflict:
    """Two tokens of two packs that cannot both keep their meaning.

    An `overlap` affects only texts with a word of each, in which the longest wins, so it refuses nothing. Every other
    kind changes texts with words of only one pack.
    """

    kind: ConflictKind
    packs: tuple[str, str]
    tokens: tuple[str, str]

    @property
    def refused(self) -> bool:
        """Whether the two packs cannot be combined without leaving out one of the tokens."""
        return self.kind != "overlap"

    def __str__(self) -> str:
        (one, other), (first, second) = self.packs, self.tokens
        named = f"{first!r} of {one} and {other}" if first == second else f"{first!r} of {one}, {second!r} of {other}"
        return f"{named}: {EXPLAINED[self.kind]}"


@dataclass(frozen=True)
class Combined:
    """The combined pack, the conflicts (without overlaps), and the pack and text of each token that was left out."""

    pack: Pack
    conflicts: tuple[Conflict, ...]
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Reader:
    """The base's tokenizer, and the normalized text of each token."""

    tokenizer: "Tokenizer"
    read: Mapping[str, str]


@dataclass(frozen=True)
class _Placed:
    """A token with its pack and its index there."""

    pack: Pack
    place: int

    @property
    def token(self) -> PackToken:
        return self.pack.tokens[self.place]

    @property
    def row(self) -> torch.Tensor:
        return self.pack.rows[self.place]


def combine(
    packs: Sequence[Pack], tokenizer: "Tokenizer", on_conflict: OnConflict = "refuse", name: str | None = None
) -> Combined:
    """Combine packs for one base: the tokens of the first pack, then those that each later pack adds.

    A token with the same row and matching in two packs is shared. If two tokens conflict, the packs are refused, or
    with `first` the token of the earlier pack stays and that of the later one is left out. At most one of the packs may
    have an adapter, since nobody trained the sum of two. That adapter also changes the texts of the other packs, unless
    it has a gate, which only the tokens of its own pack open.

    Args:
        packs: at least one.
        tokenizer: the base's own, whose normalizer is used.
        on_conflict: what to do with a token that conflicts with one of an earlier pack.
        name: of the result; by default the names joined by `+`.

    Raises:
        VocabgraftError: with the list of conflicts, or when the packs are for different bases or two have adapters.
    """
    _require_one_adapter(packs)
    for pack in packs[1:]:
        require_base(pack, packs[0].base)
    reader = _Reader(tokenizer, {text: normalised(tokenizer, text) for pack in packs for text in pack.texts})
    taken: list[_Placed] = [_Placed(packs[0], place) for place in range(len(packs[0].tokens))]
    conflicts: list[Conflict] = []
    left_out: list[tuple[str, str]] = []
    for pack in packs[1:]:
        shared, met = _compared(taken, pack, reader)
        refused = {conflict.tokens[1] for conflict in met if conflict.refused}
        conflicts += met
        left_out += [(pack.name, text) for text in pack.texts if text in refused]
        fresh = [place for place, text in enumerate(pack.texts) if text not in refused and text not in shared]
        taken += [_Placed(pack, place) for place in fresh]
    if on_conflict == "refuse" and left_out:
        raise _refused([conflict for conflict in conflicts if conflict.refused])
    return Combined(_joined(packs, taken, name, left_out), tuple(conflicts), tuple(left_out))


def overlaps(packs: Sequence[Pack], tokenizer: "Tokenizer") -> list[Conflict]:
    """Tokens of one pack that are part of a token of another, which hides them wherever it occurs."""
    found = []
    for number, pack in enumerate(packs):
        texts = {normalised(tokenizer, text): text for text in pack.texts}
        for other in (*packs[:number], *packs[number + 1 :]):
            for inner in other.tokens:
                read = normalised(tokenizer, inner.text)
                found += [
                    Conflict("overlap", (other.name, pack.name), (inner.text, text))
                    for outer, text in texts.items()
                    if read != outer and read in outer and _found_in(read, outer, inner.single_word)
                ]
    return found


def _found_in(inner: str, outer: str, whole: bool) -> bool:
    """Whether the text `outer` would be read with `inner` in it."""
    if not whole:
        return True
    return re.search(rf"(?<!\w){re.escape(inner)}(?!\w)", outer) is not None


def _require_one_adapter(packs: Sequence[Pack]) -> None:
    adapted = [pack.name for pack in packs if pack.adapter is not None]
    if len(adapted) > 1:
        raise VocabgraftError(
            f"{' and '.join(adapted)} have an adapter each, and nobody trained the sum of two; "
            "combine at most one of them with packs of only rows (train_adapter.method: tokens), or train one adapter "
            "for both vocabularies"
        )


def _compared(taken: Sequence[_Placed], pack: Pack, reader: _Reader) -> tuple[set[str], list[Conflict]]:
    """The texts of the pack that are already taken with the same row and matching, and the conflicts of the others."""
    there = {placed.token.text: placed for placed in taken}
    by_reading = {reader.read[placed.token.text]: placed for placed in taken if placed.token.normalized}
    shared: set[str] = set()
    met: list[Conflict] = []
    for place, token in enumerate(pack.tokens):
        if (same := there.get(token.text)) is not None:
            kind = _difference(same, _Placed(pack, place))
            shared |= {token.text} if kind is None else set()
            met += [] if kind is None else [_conflict(kind, same, pack, token)]
        elif token.normalized and (read_alike := by_reading.get(reader.read[token.text])) is not None:
            met.append(_conflict("same text", read_alike, pack, token))
    apart = [token for token in pack.tokens if token.text not in there]
    return shared, met + list(_hiding(taken, pack, apart, reader))


def _difference(one: _Placed, other: _Placed) -> ConflictKind | None:
    if one.token.matching != other.token.matching:
        return "matching"
    return None if torch.equal(one.row, other.row) else "rows"


def _conflict(kind: ConflictKind, placed: _Placed, pack: Pack, token: PackToken) -> Conflict:
    return Conflict(kind, (placed.pack.name, pack.name), (placed.token.text, token.text))


def _hiding(taken: Sequence[_Placed], pack: Pack, tokens: Sequence[PackToken], reader: _Reader) -> Iterator[Conflict]:
    """Whole words of one side that would be tried, fail, and so hide a token of the other side in their span."""
    by_text = {placed.token.text: placed for placed in taken}
    before = [placed.token for placed in taken]
    for hidden, hider in _hidden(before, tokens, reader):
        yield _conflict("hides", by_text[hidden.text], pack, hider)
    for hidden, hider in _hidden(tokens, before, reader):
        yield _conflict("hides", by_text[hider.text], pack, hidden)


def _hidden(
    victims: Sequence[PackToken], hiders: Iterable[PackToken], reader: _Reader
) -> Iterator[tuple[PackToken, PackToken]]:
    # Few of the thousands of pairs can conflict, and two words of only letters never: no whole word ends inside one.
    anything = _Beginnings.of(victims, reader)
    symbols = _Beginnings.of([victim for victim in victims if not victim.single_word], reader)
    for hider in hiders:
        read = reader.read[hider.text]
        met = (anything if NO_LETTER.search(read) else symbols).met_in(read) if hider.single_word else []
        for victim in met:
            if victim.text != hider.text and hidden_by(reader.tokenizer, [victim.added], hider.new_token) is not None:
                yield victim, hider


@dataclass(frozen=True)
class _Beginnings:
    """Tokens by their text, and by each of its prefixes, as the base reads them."""

    whole: Mapping[str, PackToken]
    begun: Mapping[str, list[PackToken]]

    @classmethod
    def of(cls, tokens: Sequence[PackToken], reader: _Reader) -> "_Beginnings":
        whole = {reader.read[token.text]: token for token in tokens if token.normalized and reader.read[token.text]}
        begun: dict[str, list[PackToken]] = defaultdict(list)
        for read, token in whole.items():
            for length in range(1, len(read)):
                begun[read[:length]].append(token)
        return cls(whole, begun)

    def met_in(self, read: str) -> list[PackToken]:
        """Tokens inside a text, or starting in it and continuing; not at its start, where the longer is tried first."""
        if not self.whole:
            return []
        parts = {read[start:end] for start in range(len(read)) for end in range(start + 1, len(read) + 1)}
        later = (token for start in range(1, len(read)) for token in self.begun.get(read[start:], ()))
        within = (self.whole[part] for part in sorted(parts & self.whole.keys()))
        return list({token.text: token for token in (*within, *later)}.values())


def _refused(conflicts: Sequence[Conflict]) -> VocabgraftError:
    shown = [f"  {conflict}" for conflict in conflicts[:SHOWN]]
    if len(conflicts) > SHOWN:
        shown.append(f"  and {len(conflicts) - SHOWN} more")
    return VocabgraftError(
        f"{len(conflicts)} tokens conflict, so nothing is combined; leave them out of one pack, or "
        "let the earlier pack win (vocabgraft pack combine --on-conflict first):\n" + "\n".join(shown)
    )


def _joined(
    packs: Sequence[Pack], taken: Sequence[_Placed], name: str | None, left_out: Sequence[tuple[str, str]]
) -> Pack:
    if len(packs) == 1 and name is None:
        return packs[0]
    first = packs[0]
    adapted = next((pack for pack in packs if pack.adapter is not None), None)
    gate = None
    if adapted is not None and adapted.gate is not None:
        gate = tuple(text for text in adapted.gate if (adapted.name, text) not in left_out)
    licences = {pack.licence for pack in packs}
    return Pack(
        name=name or "+".join(pack.name for pack in packs),
        base=first.base,
        tokens=tuple(placed.token for placed in taken),
        rows=torch.cat([pack.rows[[each.place for each in taken if each.pack is pack]] for pack in packs]),
        adapter=adapted.adapter if adapted is not None else None,
        gate=gate,
        contexts=tuple(dict.fromkeys(text for pack in packs for text in pack.contexts)),
        figures={"combined": {pack.name: dict(pack.figures) for pack in packs}},
        licence=licences.pop() if len(licences) == 1 else " AND ".join(sorted(filter(None, licences))) or None,
    )
