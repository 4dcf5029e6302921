"""Converts an ontology of any format to training rows and new words."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from vocabgraft.data.texts import fold
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.rows import (
    ImportedRows,
    Limits,
    Pair,
    Triple,
    relation_tokens,
    tidy,
    tidy_triples,
    training_pairs,
    training_triples,
    unfit,
)
from vocabgraft.tokens.new_token import NewToken, relation_token
from vocabgraft.tokens.tokenizer import normalised, pieces_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Shorter words are seldom terms, and abbreviations are ambiguous.
WORD = re.compile(r"(?<!\w)[^\W\d_]{4,}(?!\w)")


@dataclass(frozen=True)
class Concept:
    """A concept: its name, synonyms and definitions."""

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """A relation from one concept to another; `tail_name` is the name of a tail that the file does not define."""

    head: str
    relation: str
    tail: str
    tail_name: str = ""


@dataclass(frozen=True)
class Ontology:
    """The result of a reader: concepts, links between their ids, and descriptions of relations in the file."""

    concepts: tuple[Concept, ...]
    links: tuple[Link, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)


def ontology_rows(ontology: Ontology, base: "Tokenizer", limits: Limits) -> ImportedRows:
    """Turn an ontology into rows that validate_data accepts.

    Words are chosen and counted only in training rows, and contexts and descriptions are definitions of training rows,
    so that no held-out definition leaks into training.

    Args:
        ontology: the concepts.
        base: the base's tokenizer, not extended.
        limits: limits for words and relations.

    Raises:
        VocabgraftError: if no row or no token is left.
    """
    left_out = Counter(ontology.left_out)
    pairs = unambiguous_pairs(ontology.concepts, left_out)
    triples = tidy_triples(_resolved(ontology, left_out), limits.min_uses, left_out)
    if not pairs and not triples:
        raise VocabgraftError(f"no row is left of {len(ontology.concepts)} concepts ({_listed(left_out)})")
    relations = relation_tokens(triples, ontology.descriptions)
    words = choose_words(pairs, triples, relations, base, limits)
    if not words and not relations:
        raise VocabgraftError(
            f"no word of the {len(pairs)} pairs has {limits.min_pieces} or more subword tokens and is used in "
            f"{limits.min_uses} or more training texts; lower --min-pieces or --min-uses"
        )
    definitions = {tidy(text) for concept in ontology.concepts for text in concept.definitions}
    defined = [pair for pair in training_pairs(pairs) if pair.positive in definitions]
    contexts = _contexts(defined, words, base)
    vocabulary = (*_described(words, defined, base), *relations)
    return ImportedRows(vocabulary, tuple(triples), tuple(pairs), contexts, dict(left_out))


def unambiguous_pairs(concepts: Sequence[Concept], left_out: Counter[str]) -> list[Pair]:
    """Each name with each synonym and definition; the group is the id of the first concept with that name.

    A synonym or definition of two concepts, or one that is the name of another concept, is left out: it is ambiguous,
    and it would leak between splits.
    """
    groups: dict[str, str] = {}
    for concept in concepts:
        groups.setdefault(fold(concept.name), concept.id)
    candidates = _unique(_fit(_all_pairs(concepts, groups), left_out), left_out)
    owners: dict[str, set[str]] = defaultdict(set)
    for name, group in chain(groups.items(), ((fold(pair.positive), pair.group) for pair in candidates)):
        owners[name].add(group)
    kept = [pair for pair in candidates if len(owners[fold(pair.positive)]) == 1]
    if len(kept) < len(candidates):
        left_out["a synonym or definition of two concepts"] += len(candidates) - len(kept)
    return kept


def _all_pairs(concepts: Iterable[Concept], groups: Mapping[str, str]) -> Iterable[Pair]:
    for concept in concepts:
        for text in (*concept.synonyms, *concept.definitions):
            yield Pair(tidy(concept.name), tidy(text), groups[fold(concept.name)])


def _fit(pairs: Iterable[Pair], left_out: Counter[str]) -> Iterable[Pair]:
    for pair in pairs:
        if reason := unfit(pair.anchor) or unfit(pair.positive):
            left_out[reason] += 1
        else:
            yield pair


def _unique(pairs: Iterable[Pair], left_out: Counter[str]) -> list[Pair]:
    seen: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        key = (fold(pair.anchor), fold(pair.positive))
        if key[0] == key[1]:
            left_out["a synonym that equals its name"] += 1
        elif key in seen:
            left_out["a repetition"] += 1
        else:
            seen[key] = pair
    return list(seen.values())


def _resolved(ontology: Ontology, left_out: Counter[str]) -> Iterable[Triple]:
    names = {concept.id: tidy(concept.name) for concept in ontology.concepts}
    for link in ontology.links:
        tail = names.get(link.tail) or tidy(link.tail_name)
        if link.tail in ontology.withdrawn or link.head not in names or not tail:
            left_out["a link from or to a concept that is withdrawn or not in the file"] += 1
        else:
            yield Triple(names[link.head], link.relation, tail)


def choose_words(
    pairs: Sequence[Pair],
    triples: Sequence[Triple],
    relations: Sequence[NewToken],
    base: "Tokenizer",
    limits: Limits,
) -> list[str]:
    """The words to add, the most used first: words of `min_pieces` or more subword tokens.

    Returns:
        Words after the base's normalization, each in `min_uses` or more texts, counted as in validate_data.
    """
    paired = {text for pair in training_pairs(pairs) for text in (pair.anchor, pair.positive)}
    related = training_triples(triples)
    texts = sorted(paired | {f"{triple.head} {triple.tail}" for triple in related})
    counts = Counter(word for text in texts for word in words_of(base, text))
    frequent = [word for word, uses in counts.most_common() if uses >= limits.min_uses]
    candidates = [word for word in _one_casing(frequent) if _is_cut(base, word, limits.min_pieces)]
    uses = _uses_in_the_pipeline(candidates, relations, [*paired, *_with_tokens(related)], base)
    enough = sorted(
        (word for word in candidates if uses[word] >= limits.min_uses), key=lambda word: (-uses[word], word)
    )
    return enough[: max(0, limits.max_tokens - len(relations))]


def words_of(base: "Tokenizer", text: str) -> set[str]:
    """The words of four letters and more in a text, after the base's normalization."""
    return set(WORD.findall(normalised(base, text)))


def _one_casing(words: Iterable[str]) -> list[str]:
    """The most used of words that differ only by case, because validate_data takes them for one token."""
    first: dict[str, str] = {}
    for word in words:
        first.setdefault(word.casefold(), word)
    return list(first.values())


def _is_cut(base: "Tokenizer", word: str, min_pieces: int) -> bool:
    if base.pre_tokenizer is not None and len(base.pre_tokenizer.pre_tokenize_str(word)) != 1:
        return False
    pieces = pieces_of(base, word)
    unknown = {base.token_to_id(token) for token in ("[UNK]", "<unk>")}
    # An unknown subword token gives nothing to initialize the word's row from.
    return len(pieces) >= min_pieces and not unknown.intersection(pieces)


def _uses_in_the_pipeline(
    words: Sequence[str], relations: Sequence[NewToken], texts: Sequence[str], base: "Tokenizer"
) -> dict[str, int]:
    from vocabgraft.data.uses import count_uses

    # As in the pipeline, relation tokens match first, so that no word is found inside <|PartOf|>.
    counts = count_uses(base, [*(NewToken(word, "word", "") for word in words), *relations], texts)
    return dict(zip(words, counts, strict=False))


def _with_tokens(triples: Iterable[Triple]) -> Iterable[str]:
    return (f"{triple.head} {relation_token(triple.relation)} {triple.tail}" for triple in triples)


def _contexts(defined: Iterable[Pair], words: Iterable[str], base: "Tokenizer") -> tuple[str, ...]:
    chosen = set(words)
    told = dict.fromkeys(pair.positive for pair in defined)
    return tuple(text for text in told if not chosen.isdisjoint(words_of(base, text)))


def _described(words: Iterable[str], defined: Iterable[Pair], base: "Tokenizer") -> list[NewToken]:
    """The words as tokens; a word that is the name of a concept gets the concept's definition as description."""
    meanings: dict[str, str] = {}
    for pair in defined:
        meanings.setdefault(normalised(base, pair.anchor), pair.positive)
    return [NewToken(word, "word", meanings.get(word, "")) for word in words]


def _listed(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} left out for {reason}" for reason, count in left_out.most_common()) or "none has any"
