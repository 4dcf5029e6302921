"""RDF read as a stream of statements: RDF/XML and N-Triples here, Turtle by rdflib where it is installed."""

import importlib
import importlib.util
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat

from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.streams import open_source, shown, text_lines

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
ROOT = f"{{{RDF}}}RDF"
# No thesaurus nests descriptions this deep, while a file made to do harm may.
MAX_DEPTH = 100

ESCAPES = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}
ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
N_TRIPLE = re.compile(
    r"\s*(?P<subject><[^<>\s]*>|_:\S+)\s+<(?P<predicate>[^<>\s]*)>\s*"
    r'(?:(?P<object><[^<>\s]*>|_:[^\s.]\S*)|"(?P<text>(?:\\.|[^"\\])*)"(?:@(?P<language>[A-Za-z0-9-]+)|\^\^<[^<>\s]*>)?)'
    r"\s*\.\s*(?:#.*)?"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """Subject, predicate and value; `language` is the tag of a literal, empty where it has none."""

    subject: str
    predicate: str
    value: str
    literal: bool
    language: str = ""


def read_rdf_xml(stream: BinaryIO, path: Path) -> Iterator[Statement]:
    """The statements of RDF/XML (w3.org/TR/rdf-syntax-grammar), one described node at a time.

    Raises:
        VocabgraftError: when it is not well-formed, is not RDF, or declares a document type or an entity.
    """
    _check_prolog(path)
    blank = itertools.count()
    try:
        for node, language in _nodes(stream, path):
            yield from _statements(node, _subject(node, blank), language, blank)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise VocabgraftError(f"{path} is cut short or damaged: {error}; fetch it again") from error


def _check_prolog(path: Path) -> None:
    """Refuse entities before the parser that expands them sees any: a few lines of them can fill the memory."""
    state = {"reading": True}

    def refuse(*_: object) -> None:
        raise VocabgraftError(
            f"{path} declares a document type (<!DOCTYPE>), and with it may declare entities, which are not read; save "
            "it without, for instance as N-Triples (`rapper -o ntriples`)"
        )

    def stop(*_: object) -> None:
        state["reading"] = False

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = stop
    with open_source(path) as stream:
        try:
            while state["reading"] and (block := stream.read(1 << 14)):
                parser.Parse(block, False)
        except (expat.ExpatError, ValueError, LookupError) as error:
            if state["reading"]:
                raise VocabgraftError(f"{path} is no XML ({error}); its ending says that it is RDF/XML") from error


def _nodes(stream: BinaryIO, path: Path) -> Iterator[tuple[ElementTree.Element, str]]:
    """Each node below the root with the language that the root sets; forgotten once it was used."""
    depth, root, language = 0, None, ""
    for event, element in ElementTree.iterparse(stream, ("start", "end")):
        if event == "start":
            depth += 1
            if root is None:
                root, language = _checked_root(element, path), element.get(LANGUAGE, "")
            if depth > MAX_DEPTH:
                raise VocabgraftError(f"{path} nests more than {MAX_DEPTH} elements; it is no SKOS file")
        else:
            depth -= 1
            if depth == 1 and root is not None:
                yield element, language
                root.clear()


def _checked_root(element: ElementTree.Element, path: Path) -> ElementTree.Element:
    if element.tag != ROOT:
        raise VocabgraftError(f"{path} is XML, but its root is {shown(element.tag)}, not rdf:RDF; it is no RDF/XML")
    return element


def _subject(node: ElementTree.Element, blank: Iterator[int]) -> str:
    if (identifier := node.get(f"{{{RDF}}}about")) is not None:
        return identifier
    if (identifier := node.get(f"{{{RDF}}}ID")) is not None:
        return f"#{identifier}"
    return f"_:{node.get(f'{{{RDF}}}nodeID') or f'blank {next(blank)}'}"


def _statements(node: ElementTree.Element, subject: str, inherited: str, blank: Iterator[int]) -> Iterator[Statement]:
    language = node.get(LANGUAGE, inherited)
    if node.tag != f"{{{RDF}}}Description":
        yield Statement(subject, f"{RDF}type", _iri(node.tag), literal=False)
    for name, value in node.attrib.items():
        if name.startswith("{") and not name.startswith(f"{{{RDF}}}") and name != LANGUAGE:
            yield Statement(subject, _iri(name), value, literal=True, language=language)
    for item in node:
        yield from _of_property(item, subject, item.get(LANGUAGE, language), blank)


def _of_property(item: ElementTree.Element, subject: str, language: str, blank: Iterator[int]) -> Iterator[Statement]:
    predicate = _iri(item.tag)
    target = item.get(f"{{{RDF}}}resource") or item.get(f"{{{RDF}}}nodeID")
    if target is not None:
        yield Statement(subject, predicate, target, literal=False)
        return
    # A note may be a node or markup instead of a literal; its text is what it says.
    yield Statement(subject, predicate, "".join(item.itertext()), literal=True, language=language)
    if item.get(f"{{{RDF}}}parseType") is None:
        for node in item:
            nested = _subject(node, blank)
            yield Statement(subject, predicate, nested, literal=False)
            yield from _statements(node, nested, language, blank)


def _iri(tag: str) -> str:
    """ElementTree's `{namespace}name` as the IRI that it stands for."""
    return tag[1:].replace("}", "", 1) if tag.startswith("{") else tag


def read_n_triples(stream: BinaryIO, path: Path) -> Iterator[Statement]:
    """The statements of N-Triples (w3.org/TR/n-triples), one a line.

    Raises:
        VocabgraftError: naming the line that is no statement.
    """
    for number, line in text_lines(stream, path):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (found := N_TRIPLE.fullmatch(line.rstrip("\r\n"))) is None:
            raise VocabgraftError(
                f"{path}: line {number} is {shown(line)}, not `<subject> <predicate> value .`; the file is cut short, "
                "damaged or no N-Triples, so fetch it again"
            )
        yield _n_triple(found)


def _n_triple(found: re.Match[str]) -> Statement:
    subject, predicate = _unescape(found["subject"].strip("<>")), _unescape(found["predicate"])
    if found["object"] is not None:
        return Statement(subject, predicate, _unescape(found["object"].strip("<>")), literal=False)
    return Statement(subject, predicate, _unescape(found["text"]), literal=True, language=found["language"] or "")


def _unescape(text: str) -> str:
    return ESCAPE.sub(_character, text) if "\\" in text else text


def _character(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    if code is None:
        return ESCAPES.get(found[3], found[3])
    # A number beyond Unicode is no character; the rows with the replacement character are left out later.
    return chr(int(code, 16)) if int(code, 16) <= 0x10FFFF and not 0xD800 <= int(code, 16) < 0xE000 else "\ufffd"


def read_turtle(stream: BinaryIO, path: Path) -> Iterator[Statement]:
    """The statements of Turtle, which rdflib reads as a whole.

    Raises:
        VocabgraftError: when rdflib is not installed, or the file is not Turtle.
    """
    if importlib.util.find_spec("rdflib") is None:
        raise VocabgraftError(
            f"{path} is Turtle, which needs the package rdflib; `pip install rdflib`, or convert the file to "
            "N-Triples (`rapper -i turtle -o ntriples`) or RDF/XML"
        )
    rdflib = importlib.import_module("rdflib")
    try:
        graph = rdflib.Graph().parse(stream, format="turtle")
    except (SyntaxError, ValueError, LookupError) as error:
        # rdflib 7.6 runs past the end of a file that stops between two tokens, with an IndexError.
        raise VocabgraftError(f"{path} is cut short or no Turtle: {error}; fetch it again") from error
    for subject, predicate, value in graph:
        literal = isinstance(value, rdflib.Literal)
        yield Statement(str(subject), str(predicate), str(value), literal, getattr(value, "language", None) or "")
