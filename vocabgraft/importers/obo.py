r"""Reads ontologies in OBO 1.2 and 1.4.

The format is described at owlcollab.github.io/oboformat/doc/GO.format.obo-1_4.html: stanzas such as `[Term]` with lines
`tag: value {modifiers} ! comment`; a backslash escapes a character, and `\n`, `\t` and `\W` are white space.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.ontology import Concept, Link, Ontology
from vocabgraft.importers.relation_texts import DESCRIPTIONS, relation_name
from vocabgraft.importers.streams import Report, no_report, open_source, shown, text_lines
from vocabgraft.storage.bounds import LONGEST_LINE

SCOPES = ("EXACT", "BROAD", "NARROW", "RELATED")
DEFAULT_SCOPES = frozenset({"EXACT", "RELATED"})

# The scopes of the tags that OBO 1.0 and 1.2 had instead of `synonym`.
OLD_TAGS = MappingProxyType(
    {
        "exact_synonym": "EXACT",
        "broad_synonym": "BROAD",
        "narrow_synonym": "NARROW",
        "related_synonym": "RELATED",
    }
)

TAG = re.compile(r"([A-Za-z_][\w.-]*)\s*:\s*(.*)")
STANZA = re.compile(r"\[(\w+)\]")
# Each pattern below takes linear time: it is tried only where a part can begin, and never backtracks.
QUOTED_PART = r'"(?:\\.|[^"\\])*"'
# Names can contain braces too, so modifiers are recognized by key="value".
MODIFIERS = rf'\{{\s*+[^\s{{}}=]++\s*+=(?:{QUOTED_PART}|[^"{{}}])*+\}}'
COMMENT = r"(?P<comment>(?:(?<=\s)|^)!(?:\s.*)?)"
END = re.compile(rf"(?:{MODIFIERS}\s*)?+{COMMENT}?")
# Where the end of an unquoted value and of a quoted text can begin; escapes are skipped.
ENDS, CLOSING = re.compile(r"\\.|[{!]"), re.compile(r'\\.|"')
WORDS = r'"(?P<words>(?:\s++[^\s"\[\]{}!]++)*+)\s*+'
XREFS = rf'\[(?:\\.|{QUOTED_PART}|[^\]"\\])*+\]'
AFTER = re.compile(rf"{WORDS}(?:{XREFS})?+\s*+(?:{MODIFIERS}\s*)?+{COMMENT}?")
# For a list of references that violates the format.
LOOSELY_AFTER = re.compile(rf"{WORDS}\[.*")
# Limit for quotation marks inside a text: each may be its end, and then the whole rest is matched.
MOST_QUOTATION_MARKS = 200
SYNONYM_TYPE = re.compile(rf"(?P<type>\S+)\s+{QUOTED_PART}\s+(?P<scope>{'|'.join(SCOPES)})\b.*")
WHITE_SPACE = {"n": " ", "t": " ", "W": " "}


@dataclass(frozen=True)
class Tag:
    """A line of a stanza, with its escapes."""

    name: str
    value: str
    line: int


@dataclass(frozen=True)
class Stanza:
    """A stanza: its kind (`Term`, `Typedef`, `Instance`; empty for the header), its tags and its first line."""

    kind: str
    tags: tuple[Tag, ...]
    line: int

    def values(self, name: str) -> list[Tag]:
        """The tags of this name."""
        return [tag for tag in self.tags if tag.name == name]

    def plain(self, name: str) -> str:
        """The first value of this name, without modifiers, comment and escapes; empty if there is none."""
        return plain(self.values(name)[0].value) if self.values(name) else ""


def read_obo(path: Path, scopes: frozenset[str] = DEFAULT_SCOPES, report: Report = no_report) -> Ontology:
    """Read the terms that are not obsolete, one stanza at a time.

    Args:
        path: an `.obo` file, gzipped or not.
        scopes: scopes of the synonyms to take, out of `SCOPES`. A synonym without a scope has that of its declared
            type, or else RELATED.
        report: called with the number of bytes read.

    Raises:
        VocabgraftError: for a file that is damaged, truncated or of another type, with the line.
    """
    if not scopes or (unknown := scopes - set(SCOPES)):
        seen = ", ".join(sorted(unknown)) if scopes else "empty"
        raise VocabgraftError(f"scopes is {seen}; allowed: {', '.join(SCOPES)}")
    with open_source(path, report) as stream:
        return _ontology(_checked(read_stanzas(text_lines(stream, path), path), path), path, scopes)


def read_stanzas(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[Stanza]:
    """The header, if there is one, and the stanzas, in order; `path` names the file in errors."""
    kind, started, tags = "", 1, list[Tag]()
    for number, line in _joined(lines, path):
        text = line.strip()
        if not text or text.startswith("!"):
            continue
        if opening := STANZA.match(text):
            if kind or tags:
                yield Stanza(kind, tuple(tags), started)
            kind, started, tags = opening[1], number, []
        else:
            tags.append(_tag(text, number, path))
    yield Stanza(kind, tuple(tags), started)


def _joined(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[int, str]]:
    """Logical lines: a backslash at the end continues a line in the next one."""
    pending, size, line, number = list[str](), 0, "", 0
    for number, line in lines:
        text = line.rstrip("\r\n")
        size += len(text)
        if size > LONGEST_LINE:
            raise VocabgraftError(f"{path}: the line that ends at line {number} has over {LONGEST_LINE:,} characters")
        if (len(text) - len(text.rstrip("\\"))) % 2:
            pending.append(text[:-1])
        else:
            yield number, "".join([*pending, text])
            pending, size = [], 0
    if pending or (number and not line.endswith("\n")):
        raise VocabgraftError(
            f"{path} is truncated: its last line, {number}, has no line break ({shown(line)}); fetch it again, or "
            "add a line break if the file is complete"
        )


def _tag(text: str, number: int, path: Path) -> Tag:
    if (found := TAG.fullmatch(text)) is None:
        raise VocabgraftError(
            f"{path}: line {number} is {shown(text)}, not `tag: value` or `[Term]`; the file is truncated or not an "
            "OBO file (flat file format 1.2 or 1.4); fetch it again, or convert it (`robot convert --output x.obo`)"
        )
    return Tag(found[1], found[2], number)


def _checked(stanzas: Iterable[Stanza], path: Path) -> Iterator[Stanza]:
    last: Stanza | None = None
    for stanza in stanzas:
        if stanza.kind and not stanza.plain("id"):
            raise VocabgraftError(
                f"{path}: the [{stanza.kind}] at line {stanza.line} has no id; the file is truncated or damaged, so "
                "fetch it again"
            )
        last = stanza
        yield stanza
    if last is not None and last.kind == "Term" and not last.plain("name"):
        raise VocabgraftError(
            f"{path} is truncated: its last stanza, [Term] {last.plain('id')} at line {last.line}, has no name; "
            "fetch it again"
        )


@dataclass
class _Draft:
    """The concepts, links and relations read so far."""

    concepts: list[Concept] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)

    def add_term(self, stanza: Stanza, path: Path, scopes: frozenset[str]) -> None:
        """Add a term if it has a name and is not obsolete."""
        if stanza.plain("is_obsolete") in ("true", "1"):
            self.withdrawn.add(stanza.plain("id"))
        elif stanza.plain("name"):
            self.concepts.append(_concept(stanza, path, scopes, self.types, self.left_out))
            self.links.extend(_links(stanza, path))
        else:
            self.left_out["a term without a name"] += 1


def _ontology(stanzas: Iterable[Stanza], path: Path, scopes: frozenset[str]) -> Ontology:
    draft = _Draft()
    for stanza in stanzas:
        if not stanza.kind:
            draft.types = _scopes_of_types(stanza)
        elif stanza.kind == "Term":
            draft.add_term(stanza, path, scopes)
        elif stanza.kind == "Typedef":
            draft.labels[stanza.plain("id")] = stanza.plain("name").replace("_", " ")
        else:
            draft.left_out[f"a stanza [{stanza.kind}]"] += 1
    if not draft.concepts and not draft.withdrawn:
        raise VocabgraftError(f"{path} has no [Term] with a name; it is truncated or not an OBO ontology")
    if draft.withdrawn:
        draft.left_out["an obsolete term"] = len(draft.withdrawn)
    return _named(draft)


def _named(draft: _Draft) -> Ontology:
    """Name the relations, at the end of the file, because typedefs come last."""
    labels = draft.labels
    names = {relation: _relation(relation, labels) for relation in {link.relation: None for link in draft.links}}
    described = {name: labels[relation] for relation, name in names.items() if labels.get(relation)}
    return Ontology(
        concepts=tuple(draft.concepts),
        links=tuple(Link(link.head, names[link.relation], link.tail, link.tail_name) for link in draft.links),
        # Labels such as "part of" lack the verb, which the table of well-known relations has.
        descriptions={name: text for name, text in described.items() if name not in DESCRIPTIONS},
        withdrawn=frozenset(draft.withdrawn),
        left_out=dict(draft.left_out),
    )


def _relation(identifier: str, labels: dict[str, str]) -> str:
    """The name of a relation: `part_of` becomes PartOf; for a number such as RO:0002202 the label is used."""
    readable = ":" not in identifier and not identifier[-1:].isdigit()
    label = "" if readable else labels.get(identifier, "")
    return relation_name(label) or relation_name(identifier) or "RelatedTo"


def _scopes_of_types(header: Stanza) -> dict[str, str]:
    """The scope of each synonym type that is declared with one: `synonymtypedef: LAY "layman term" BROAD`."""
    found = (SYNONYM_TYPE.fullmatch(tag.value) for tag in header.values("synonymtypedef"))
    return {match["type"]: match["scope"] for match in found if match}


def _concept(
    stanza: Stanza, path: Path, scopes: frozenset[str], types: Mapping[str, str], left_out: Counter[str]
) -> Concept:
    taken: list[str] = []
    for tag in stanza.tags:
        if tag.name == "synonym" or tag.name in OLD_TAGS:
            text, words = _quoted(tag, path)
            if _scope([OLD_TAGS[tag.name]] if tag.name in OLD_TAGS else words, types) in scopes:
                taken.append(text)
            else:
                left_out["a synonym of another scope"] += 1
    definitions = tuple(_quoted(tag, path)[0] for tag in stanza.values("def"))
    return Concept(stanza.plain("id"), stanza.plain("name"), tuple(taken), definitions)


def _scope(words: Sequence[str], types: Mapping[str, str]) -> str:
    """The scope after a synonym's text, or else the scope of a type after it."""
    if words and words[0] in SCOPES:
        return words[0]
    return next((types[word] for word in words if word in types), "RELATED")


def _links(stanza: Stanza, path: Path) -> Iterator[Link]:
    head = stanza.plain("id")
    for tag in stanza.tags:
        if tag.name == "is_a":
            yield Link(head, "is_a", *_reference(tag.value))
        elif tag.name == "relationship":
            relation, _, target = tag.value.partition(" ")
            if not target.strip():
                raise VocabgraftError(
                    f"{path}: line {tag.line}: relationship is {shown(tag.value)}, not `RELATION ID`; the file is "
                    "truncated or damaged, so fetch it again"
                )
            yield Link(head, relation, *_reference(target.strip()))


def _reference(value: str) -> tuple[str, str]:
    """The id, and the name in the comment after it."""
    read, comment = _split(value)
    return read.split(maxsplit=1)[0] if read else "", plain(comment.removeprefix("!"))


def _quoted(tag: Tag, path: Path) -> tuple[str, list[str]]:
    """The quoted text, and the words between it and its references."""
    found = _closed(tag, path)
    if found is None:
        raise VocabgraftError(
            f"{path}: line {tag.line}: {tag.name} is {shown(tag.value)}, not a quoted text; the file is truncated or "
            "damaged, so fetch it again"
        )
    return unescape(tag.value[1 : found.start()]), found["words"].split()


def _closed(tag: Tag, path: Path) -> re.Match[str] | None:
    """The end of the quoted text and the rest of the value; None if the value has another form.

    The text may contain unescaped quotation marks. It ends at the first one after which the rest has a valid form.
    """
    if not tag.value.startswith('"'):
        return None
    marks = [mark.start() for mark in CLOSING.finditer(tag.value, 1) if mark[0] == '"']
    if len(marks) > MOST_QUOTATION_MARKS:
        raise VocabgraftError(
            f"{path}: line {tag.line}: {tag.name} has {len(marks)} unescaped quotation marks; allowed: "
            f"{MOST_QUOTATION_MARKS}; the file is damaged, so fetch it again"
        )
    tried = (pattern.fullmatch(tag.value, mark) for pattern in (AFTER, LOOSELY_AFTER) for mark in marks)
    return next((found for found in tried if found), None)


def plain(value: str) -> str:
    """An unquoted value without comment, modifiers and escapes."""
    return unescape(_split(value)[0]).strip()


def _split(value: str) -> tuple[str, str]:
    """A value without modifiers and comment, and the comment, both with their escapes."""
    for mark in ENDS.finditer(value):
        if mark[0] in "{!" and (found := END.fullmatch(value, mark.start())):
            return value[: mark.start()], found["comment"] or ""
    return value, ""


def unescape(text: str) -> str:
    """The text without escapes: escaped white space becomes a space, other escaped characters stay."""
    return re.sub(r"\\(.)", lambda found: WHITE_SPACE.get(found[1], found[1]), text)
