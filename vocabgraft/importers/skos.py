"""Thesauri in SKOS (w3.org/TR/skos-reference), written as RDF/XML, N-Triples or, with rdflib installed, Turtle."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.ontology import Concept, Link, Ontology
from vocabgraft.importers.rdf import RDF, Statement, read_n_triples, read_rdf_xml, read_turtle
from vocabgraft.importers.rows import fold, tidy
from vocabgraft.importers.streams import Report, no_report, open_source

SKOS = "http://www.w3.org/2004/02/skos/core#"
TYPE = f"{RDF}type"
DEPRECATED = "http://www.w3.org/2002/07/owl#deprecated"

NAME = f"{SKOS}prefLabel"
OTHER_NAMES = (f"{SKOS}altLabel", f"{SKOS}hiddenLabel")
NOTES = (f"{SKOS}definition", f"{SKOS}scopeNote")
LABELS = frozenset({NAME, *OTHER_NAMES, *NOTES})
# Name of the relation, and whether it reads from the object to the subject.
LINKS = {
    f"{SKOS}broader": ("IsA", False),
    f"{SKOS}narrower": ("IsA", True),
    f"{SKOS}related": ("RelatedTo", False),
}
# These have labels too, but are no concepts.
CONTAINERS = frozenset(f"{SKOS}{name}" for name in ("ConceptScheme", "Collection", "OrderedCollection"))

Reader = Callable[[BinaryIO, Path], Iterator[Statement]]


@dataclass
class _Draft:
    """What is known of a subject so far: texts by property with the rank of their language."""

    texts: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    types: set[str] = field(default_factory=set)
    withdrawn: bool = False


def read_skos(path: Path, language: str = "en", report: Report = no_report) -> Ontology:
    """Read the concepts that have a preferred label in a language, one statement at a time.

    Args:
        path: RDF/XML (.rdf, .xml), N-Triples (.nt) or Turtle (.ttl), packed with gzip (.gz) or not.
        language: a tag as in `xml:lang`; `en` takes `en-GB` and texts without a tag too, where there is no better.
        report: told of the bytes read.

    Raises:
        VocabgraftError: for a file that is damaged, cut short or of another kind, and when no concept is in it.
    """
    reader = _reader(path)
    drafts: dict[str, _Draft] = defaultdict(_Draft)
    links: list[Link] = []
    tags: set[str] = set()
    with open_source(path, report) as stream:
        for statement in reader(stream, path):
            _note(statement, language, drafts, links, tags)
    ontology = _ontology(drafts, links)
    if not ontology.concepts:
        raise VocabgraftError(
            f"{path} has no concept with a skos:prefLabel in language {language!r} (--language); seen in labels: "
            f"{', '.join(sorted(tags)) or 'no label at all, so this is no SKOS file'}"
        )
    return ontology


def _reader(path: Path) -> Reader:
    readers: dict[str, Reader] = {
        ".rdf": read_rdf_xml,
        ".xml": read_rdf_xml,
        ".nt": read_n_triples,
        ".ttl": read_turtle,
    }
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if ending.lower() not in readers:
        raise VocabgraftError(
            f"{path} ends in '{ending}'; allowed: {', '.join(readers)}, also with .gz; convert it, or rename it if "
            "it is one of these"
        )
    return readers[ending.lower()]


def _note(statement: Statement, language: str, drafts: dict[str, _Draft], links: list[Link], tags: set[str]) -> None:
    if statement.predicate in LINKS and not statement.literal:
        name, inverse = LINKS[statement.predicate]
        head, tail = (statement.value, statement.subject) if inverse else (statement.subject, statement.value)
        links.append(Link(head, name, tail))
    elif statement.predicate in LABELS and statement.literal:
        tags.add(statement.language or "(none)")
        if (rank := _rank(statement.language, language)) is not None:
            drafts[statement.subject].texts[statement.predicate].append((rank, tidy(statement.value)))
    elif statement.predicate == TYPE:
        drafts[statement.subject].types.add(statement.value)
    elif statement.predicate == DEPRECATED and statement.value.strip() in ("true", "1"):
        drafts[statement.subject].withdrawn = True


def _rank(tag: str, language: str) -> int | None:
    """How well a tag fits a language, 0 being best; None where it does not."""
    tag, language = tag.lower(), language.lower()
    if tag == language:
        return 0
    return 1 if tag.startswith(f"{language}-") else 2 if not tag else None


def _ontology(drafts: dict[str, _Draft], links: Iterable[Link]) -> Ontology:
    concepts, withdrawn = [], set()
    left_out: Counter[str] = Counter()
    for subject, draft in drafts.items():
        if draft.withdrawn:
            withdrawn.add(subject)
            left_out["a deprecated concept"] += 1
        elif not draft.types & CONTAINERS and draft.texts[NAME]:
            concepts.append(_concept(subject, draft))
    return Ontology(tuple(concepts), tuple(links), {}, frozenset(withdrawn), dict(left_out))


def _concept(subject: str, draft: _Draft) -> Concept:
    names = [text for _, text in sorted(draft.texts[NAME], key=lambda ranked: ranked[0])]
    others = [text for label in OTHER_NAMES for _, text in draft.texts[label]]
    notes = [text for label in NOTES for _, text in draft.texts[label]]
    synonyms = [text for text in (*names[1:], *others) if fold(text) != fold(names[0])]
    return Concept(subject, names[0], tuple(dict.fromkeys(synonyms)), tuple(dict.fromkeys(notes)))
