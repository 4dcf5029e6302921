"""Several packs as one: what they share, and where they contradict each other."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.packs import Pack, PackToken, require_base
from vocabgraft.tokenizer import hidden_by, normalised

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OnConflict = Literal["refuse", "first"]
ConflictKind = Literal["rows", "matching", "same text", "hides", "overlap"]
SHOWN = 10
EXPLAINED: dict[ConflictKind, str] = {
    "rows": "both have it, with different rows",
    "matching": "both have it, matched differently",
    "same text": "the base's normalisation makes them one text",
    "hides": "the longer hides the shorter in texts that hold the longer in part",
    "overlap": "one lies in the other: a text with the longer is read as the longer alone",
}


@dataclass(frozen=True)
class Conflict:
    """Two tokens of two packs that cannot both be what they are alone.

    An `overlap` concerns only texts that hold a word of each, in which the longest wins, so it refuses nothing. Every
    other kind changes texts that hold words of one pack alone.
    """

    kind: ConflictKind
    packs: tuple[str, str]
    tokens: tuple[str, str]

    @property
    def refused(self) -> bool:
        """Whether the two packs cannot be combined without leaving one of the tokens out."""
        return self.kind != "overlap"

    def __str__(self) -> str:
        (one, other), (first, second) = self.packs, self.tokens
        named = f"{first!r} of {one} and {other}" if first == second else f"{first!r} of {one}, {second!r} of {other}"
        return f"{named}: {EXPLAINED[self.kind]}"


@dataclass(frozen=True)
class Combined:
    """Packs as one, the conflicts that were met (no overlaps), and pack and text of each token that was left out."""

    pack: Pack
    conflicts: tuple[Conflict, ...]
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Placed:
    """A token with the pack that it came from and its place there."""

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
    """Packs for one base as one pack, whose tokens are those of the first, then what the next ones add.

    A token that two packs have with the same row and matching is shared. Where they contradict each other, the packs
    are refused, or with `first` the token of the earlier pack stands and that of the later one is left out. At most one
    of the packs may have an adapter: the sum of two is a model that nobody trained. That one adapter moves the texts of
    the other packs too.

    Args:
        packs: at least one.
        tokenizer: the base's own, whose normalisation decides.
        on_conflict: what becomes of a token that contradicts one of an earlier pack.
        name: of the result; by default the names joined by `+`.

    Raises:
        VocabgraftError: with the list of conflicts, or when the packs are for different bases or two have adapters.
    """
    _require_one_adapter(packs)
    for pack in packs[1:]:
        require_base(pack, packs[0].base)
    taken: list[_Placed] = [_Placed(packs[0], place) for place in range(len(packs[0].tokens))]
    conflicts: list[Conflict] = []
    left_out: list[tuple[str, str]] = []
    for pack in packs[1:]:
        shared, met = _compared(taken, pack, tokenizer)
        refused = {conflict.tokens[1] for conflict in met if conflict.refused}
        conflicts += met
        left_out += [(pack.name, text) for text in pack.texts if text in refused]
        fresh = [place for place, text in enumerate(pack.texts) if text not in refused and text not in shared]
        taken += [_Placed(pack, place) for place in fresh]
    if on_conflict == "refuse" and left_out:
        raise _refused([conflict for conflict in conflicts if conflict.refused])
    return Combined(_joined(packs, taken, name), tuple(conflicts), tuple(left_out))


def overlaps(packs: Sequence[Pack], tokenizer: "Tokenizer") -> list[Conflict]:
    """Tokens of one pack that lie in a token of another, so that a text with the longer is read as the longer alone."""
    found = []
    for number, pack in enumerate(packs):
        texts = {normalised(tokenizer, text): text for text in pack.texts}
        for other in (*packs[:number], *packs[number + 1 :]):
            for inner in other.texts:
                read = normalised(tokenizer, inner)
                found += [
                    Conflict("overlap", (other.name, pack.name), (inner, text))
                    for outer, text in texts.items()
                    if read in outer and read != outer and text not in other.texts
                ]
    return found


def _require_one_adapter(packs: Sequence[Pack]) -> None:
    adapted = [pack.name for pack in packs if pack.adapter is not None]
    if len(adapted) > 1:
        raise VocabgraftError(
            f"{' and '.join(adapted)} have an adapter each, and the sum of two is a model that nobody trained; "
            "combine at most one of them with packs of rows alone (train_adapter.method: tokens), or train one adapter "
            "for both vocabularies"
        )


def _compared(taken: Sequence[_Placed], pack: Pack, tokenizer: "Tokenizer") -> tuple[set[str], list[Conflict]]:
    """The texts of the pack that are there already, the same; and the conflicts of the others."""
    there = {placed.token.text: placed for placed in taken}
    by_reading = {normalised(tokenizer, placed.token.text): placed for placed in taken if placed.token.normalized}
    shared: set[str] = set()
    met: list[Conflict] = []
    for place, token in enumerate(pack.tokens):
        if (same := there.get(token.text)) is not None:
            kind = _difference(same, _Placed(pack, place))
            shared |= {token.text} if kind is None else set()
            met += [] if kind is None else [_conflict(kind, same, pack, token)]
        elif token.normalized and (read_alike := by_reading.get(normalised(tokenizer, token.text))) is not None:
            met.append(_conflict("same text", read_alike, pack, token))
    apart = [token for token in pack.tokens if token.text not in there]
    return shared, met + list(_hiding(taken, pack, apart, tokenizer))


def _difference(one: _Placed, other: _Placed) -> ConflictKind | None:
    if one.token.matching != other.token.matching:
        return "matching"
    return None if torch.equal(one.row, other.row) else "rows"


def _conflict(kind: ConflictKind, placed: _Placed, pack: Pack, token: PackToken) -> Conflict:
    return Conflict(kind, (placed.pack.name, pack.name), (placed.token.text, token.text))


def _hiding(
    taken: Sequence[_Placed], pack: Pack, tokens: Sequence[PackToken], tokenizer: "Tokenizer"
) -> Iterator[Conflict]:
    """Where a whole word of one side would be tried, fail, and so hide what it spans of the other side."""
    by_text = {placed.token.text: placed for placed in taken}
    for hidden, hider in _hidden([placed.token for placed in taken], tokens, tokenizer):
        yield _conflict("hides", by_text[hidden.text], pack, hider)
    for hidden, hider in _hidden(tokens, [placed.token for placed in taken], tokenizer):
        yield _conflict("hides", by_text[hider.text], pack, hidden)


def _hidden(
    victims: Iterable[PackToken], hiders: Iterable[PackToken], tokenizer: "Tokenizer"
) -> Iterator[tuple[PackToken, PackToken]]:
    # A victim must begin somewhere inside the hider: only those that may are tried.
    begun: Mapping[str, list[PackToken]] = defaultdict(list)
    by_letter: Mapping[str, list[PackToken]] = defaultdict(list)
    for victim in victims:
        if victim.normalized and (read := normalised(tokenizer, victim.text)):
            begun[read[:2]].append(victim)
            by_letter[read[0]].append(victim)
    for hider in hiders:
        read = normalised(tokenizer, hider.text)
        if not hider.single_word or not read:
            continue
        starts = {*read, *(read[place : place + 2] for place in range(len(read)))}
        # What begins at the last character goes on beyond the word.
        tried = [*by_letter.get(read[-1], ()), *(victim for start in starts for victim in begun.get(start, ()))]
        for victim in {victim.text: victim for victim in tried}.values():
            if victim.text != hider.text and hidden_by(tokenizer, [victim.added], hider.new_token) is not None:
                yield victim, hider


def _refused(conflicts: Sequence[Conflict]) -> VocabgraftError:
    shown = [f"  {conflict}" for conflict in conflicts[:SHOWN]]
    if len(conflicts) > SHOWN:
        shown.append(f"  and {len(conflicts) - SHOWN} more")
    return VocabgraftError(
        f"{len(conflicts)} tokens contradict each other, so nothing is combined; leave them out of one pack, or "
        "let the earlier pack win (python -m flows.combine --on-conflict first):\n" + "\n".join(shown)
    )


def _joined(packs: Sequence[Pack], taken: Sequence[_Placed], name: str | None) -> Pack:
    if len(packs) == 1 and name is None:
        return packs[0]
    first = packs[0]
    licences = {pack.licence for pack in packs}
    return Pack(
        name=name or "+".join(pack.name for pack in packs),
        base=first.base,
        tokens=tuple(placed.token for placed in taken),
        rows=torch.stack([placed.row for placed in taken]) if taken else first.rows,
        adapter=next((pack.adapter for pack in packs if pack.adapter is not None), None),
        contexts=tuple(dict.fromkeys(text for pack in packs for text in pack.contexts)),
        figures={"combined": {pack.name: dict(pack.figures) for pack in packs}},
        licence=licences.pop() if len(licences) == 1 else " AND ".join(sorted(filter(None, licences))) or None,
    )
