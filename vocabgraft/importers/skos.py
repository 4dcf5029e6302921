"""Reads SKOS thesauri (w3.org/TR/skos-reference) in RDF/XML, N-Triples or, with rdflib, Turtle.

Labels and notes may be literals, or resources as in SKOS-XL (w3.org/TR/skos-reference/skos-xl.html).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vocabgraft.data.texts import fold
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.ontology import Concept, Link, Ontology
from vocabgraft.importers.rdf import RDF, TYPE, Statement, read_n_triples, read_rdf_xml, read_turtle
from vocabgraft.importers.rows import tidy
from vocabgraft.importers.streams import Report, no_report, open_source

SKOS = "http://www.w3.org/2004/02/skos/core#"
SKOS_XL = "http://www.w3.org/2008/05/skos-xl#"
DEPRECATED = "http://www.w3.org/2002/07/owl#deprecated"

NAME = f"{SKOS}prefLabel"
OTHER_NAMES = (f"{SKOS}altLabel", f"{SKOS}hiddenLabel")
NOTES = (f"{SKOS}definition", f"{SKOS}scopeNote")
LABELS = frozenset({NAME, *OTHER_NAMES, *NOTES})
# Properties whose value is a resource with the text, each with the property whose value is the text itself.
BY_RESOURCE = {f"{SKOS_XL}{label}": f"{SKOS}{label}" for label in ("prefLabel", "altLabel", "hiddenLabel")}
BY_RESOURCE |= {note: note for note in NOTES}
TEXTS_OF_RESOURCES = frozenset({f"{SKOS_XL}literalForm", f"{RDF}value", "http://www.w3.org/2000/01/rdf-schema#label"})
# Name of the relation, and whether it leads from the object to the subject.
LINKS = {
    f"{SKOS}broader": ("IsA", False),
    f"{SKOS}narrower": ("IsA", True),
    f"{SKOS}related": ("RelatedTo", False),
}
# These have labels too, but are not concepts.
CONTAINERS = frozenset(f"{SKOS}{name}" for name in ("ConceptScheme", "Collection", "OrderedCollection"))

CONCEPT = f"{SKOS}Concept"

Reader = Callable[[BinaryIO, Path], Iterator[Statement]]
# A text and its language tag.
Tagged = tuple[str, str]


@dataclass
class _Draft:
    """The properties of a subject so far: texts by property, and resources with further texts."""

    texts: dict[str, list[Tagged]] = field(default_factory=lambda: defaultdict(list))
    resources: list[tuple[str, str]] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    withdrawn: bool = False


@dataclass
class _Reading:
    """The subjects read so far, in the order of the file; apart from this, no result may depend on that order."""

    drafts: dict[str, _Draft] = field(default_factory=lambda: defaultdict(_Draft))
    links: list[Link] = field(default_factory=list)
    of_resources: dict[str, list[Tagged]] = field(default_factory=lambda: defaultdict(list))

    def take(self, statement: Statement) -> None:
        """Record a statement if it is about concepts."""
        subject, predicate, value = statement.subject, statement.predicate, statement.value
        if statement.literal:
            if predicate in LABELS:
                self.drafts[subject].texts[predicate].append((tidy(value), statement.language))
            elif predicate in TEXTS_OF_RESOURCES:
                self.of_resources[subject].append((tidy(value), statement.language))
            elif predicate == DEPRECATED and value.strip() in ("true", "1"):
                self.drafts[subject].withdrawn = True
        elif predicate in LINKS:
            name, inverse = LINKS[predicate]
            self.links.append(Link(value, name, subject) if inverse else Link(subject, name, value))
        elif predicate in BY_RESOURCE:
            self.drafts[subject].resources.append((BY_RESOURCE[predicate], value))
        elif predicate == TYPE:
            self.drafts[subject].types.add(value)

    def resolve(self) -> int:
        """Give each concept the texts of its resources, after reading; return the number of resources without text."""
        missing = 0
        for draft in self.drafts.values():
            for label, resource in draft.resources:
                texts = self.of_resources.get(resource, [])
                draft.texts[label] += texts
                missing += not texts
        return missing


def read_skos(path: Path, language: str = "en", report: Report = no_report) -> Ontology:
    """Read the concepts that have a preferred label in a language, one statement at a time.

    Args:
        path: RDF/XML (.rdf, .xml), N-Triples (.nt) or Turtle (.ttl), gzipped (.gz) or not.
        language: a tag as in `xml:lang`; `en` includes `en-GB`. If a concept has no text in the language, texts without
            a tag are taken.
        report: called with the number of bytes read.

    Raises:
        VocabgraftError: for a file that is damaged, truncated or of another type, or has no concept.
    """
    ending = _ending(path)
    reading = _Reading()
    with open_source(path, report) as stream:
        if ending == ".ttl":
            read_turtle(stream, path, reading.take)
        else:
            for statement in READERS[ending](stream, path):
                reading.take(statement)
    missing = reading.resolve()
    ontology = _ontology(reading, language, missing)
    if not ontology.concepts:
        tags = {
            tag or "(none)" for draft in reading.drafts.values() for texts in draft.texts.values() for _, tag in texts
        }
        raise VocabgraftError(
            f"{path} has no concept with a skos:prefLabel in language {language!r} (--language); seen in labels: "
            f"{', '.join(sorted(tags)) or 'no label at all, so this is not a SKOS file'}"
        )
    return ontology


READERS: dict[str, Reader] = {".rdf": read_rdf_xml, ".xml": read_rdf_xml, ".nt": read_n_triples}
ENDINGS = (*READERS, ".ttl")


def _ending(path: Path) -> str:
    ending = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    if ending not in ENDINGS:
        raise VocabgraftError(
            f"{path} ends in '{ending}'; allowed: {', '.join(ENDINGS)}, also with .gz; convert it, or rename it if "
            "it has one of these formats"
        )
    return ending


def _rank(tag: str, language: str) -> int | None:
    """How well a tag fits a language: 0 is best, None means that it does not fit."""
    tag, language = tag.lower(), language.lower()
    if tag == language:
        return 0
    return 1 if tag.startswith(f"{language}-") else 2 if not tag else None


def _ontology(reading: _Reading, language: str, missing: int) -> Ontology:
    concepts, withdrawn = [], set()
    left_out = Counter({"a label or note whose text is not in the file": missing} if missing else {})
    for subject, draft in reading.drafts.items():
        if draft.withdrawn:
            withdrawn.add(subject)
            left_out["a deprecated concept"] += 1
        elif draft.types & CONTAINERS:
            left_out["a scheme or collection of concepts"] += 1
        elif concept := _concept(subject, draft, language, left_out):
            concepts.append(concept)
        elif any(draft.texts.values()) or CONCEPT in draft.types:
            left_out["a concept without a preferred label in the language"] += 1
    return Ontology(tuple(concepts), tuple(reading.links), {}, frozenset(withdrawn), dict(left_out))


def _concept(subject: str, draft: _Draft, language: str, left_out: Counter[str]) -> Concept | None:
    labels = _of_language(draft, (NAME, *OTHER_NAMES), language)
    notes = _of_language(draft, NOTES, language)
    names = [text for _, text in sorted(labels.get(NAME, ()), key=lambda ranked: ranked[0])]
    if not names:
        return None
    given = sum(map(len, draft.texts.values()))
    if other := given - sum(len(taken) for found in (labels, notes) for taken in found.values()):
        left_out["a text in another language, or in none beside those of the language"] += other
    others = [text for label in OTHER_NAMES for _, text in labels.get(label, ())]
    synonyms = [text for text in (*names[1:], *others) if fold(text) != fold(names[0])]
    definitions = [text for label in NOTES for _, text in notes.get(label, ())]
    return Concept(subject, names[0], tuple(dict.fromkeys(synonyms)), tuple(dict.fromkeys(definitions)))


def _of_language(draft: _Draft, properties: Iterable[str], language: str) -> dict[str, list[tuple[int, str]]]:
    """The texts of some properties in the language, each with its rank.

    If one has a fitting tag, texts without a tag are taken for another language.
    """
    found = {
        name: [(rank, text) for text, tag in draft.texts[name] if (rank := _rank(tag, language)) is not None]
        for name in properties
        if name in draft.texts
    }
    is_tagged = any(rank < 2 for ranked in found.values() for rank, _ in ranked)
    return {
        name: [(rank, text) for rank, text in ranked if rank < 2 or not is_tagged] for name, ranked in found.items()
    }
