"""OBO: what is read of a term, how a file cut short is told, and what words come of it."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import build_wordpiece
from tests.import_samples import OBO_HEADER, OBO_TYPEDEFS, ROCKS, obo_text
from vocabgraft.data.splits import split_of
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.obo import SCOPES, plain, read_obo, unescape
from vocabgraft.importers.ontology import Concept, Link, Ontology, ontology_rows
from vocabgraft.importers.rows import HELD_OUT, ImportedRows, Limits

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def base() -> "Tokenizer":
    return build_wordpiece()  # type: ignore[no-any-return]


def read(folder: Path, text: str, scopes: frozenset[str] | None = None) -> Ontology:
    path = folder / "rocks.obo"
    path.write_text(text, encoding="utf-8")
    return read_obo(path) if scopes is None else read_obo(path, scopes)


def concept(ontology: Ontology, name: str) -> Concept:
    return next(found for found in ontology.concepts if found.name == name)


def test_names_and_definitions_lose_escapes_modifiers_and_comments(tmp_path: Path) -> None:
    found = concept(read(tmp_path, obo_text()), "rock")
    assert found.id == "RK:0000001"
    assert found.definitions == ('A piece of the crust, called "stone" by some; made of one or more minerals.',)


def test_braces_in_a_name_that_are_no_modifiers_stay(tmp_path: Path) -> None:
    assert concept(read(tmp_path, obo_text()), "lava {2,4}").definitions


def test_synonyms_of_the_scopes_asked_for_are_taken_and_one_without_is_related(tmp_path: Path) -> None:
    taken = {scope: concept(read(tmp_path, obo_text(), frozenset({scope})), "rock").synonyms for scope in SCOPES}
    assert taken == {
        "EXACT": ("stone",),
        "NARROW": ("boulder {large}",),
        "BROAD": ("thing",),
        "RELATED": ("Gestein", "rubble"),
    }


def test_links_name_their_relation_by_its_id_or_by_its_label_where_the_id_is_a_number(tmp_path: Path) -> None:
    found = [link for link in read(tmp_path, obo_text()).links if link.head == "RK:0000002"]
    assert found == [
        Link("RK:0000002", "IsA", "RK:0000001", "rock"),
        Link("RK:0000002", "DevelopsFrom", "RK:0000099", "magma"),
        Link("RK:0000002", "DevelopsFrom", "RK:0000001", "rock"),
    ]


def test_obsolete_terms_are_left_out_with_the_links_to_them(tmp_path: Path, base: "Tokenizer") -> None:
    ontology = read(tmp_path, obo_text())
    assert "RK:0000003" in ontology.withdrawn
    assert "firestone" not in {found.name for found in ontology.concepts}
    assert "firestone" not in {triple.tail for triple in rows(ontology, base, min_uses=1).triples}


def test_a_tail_outside_of_the_file_is_named_by_its_comment_or_left_out(tmp_path: Path, base: "Tokenizer") -> None:
    found = rows(read(tmp_path, obo_text()), base, min_uses=1)
    assert "magma" in {triple.tail for triple in found.triples if triple.head.startswith("lava")}
    assert "pumice" not in {triple.head for triple in found.triples}


def test_a_line_that_ends_in_a_backslash_goes_on_in_the_next(tmp_path: Path) -> None:
    text = OBO_HEADER + '[Term]\nid: X:1\nname: lava\ndef: "hot \\\nrock" []\n'
    assert read(tmp_path, text).concepts[0].definitions == ("hot rock",)


def test_line_breaks_of_another_system_and_gzip_make_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "rocks.obo.gz"
    path.write_bytes(gzip.compress(obo_text().replace("\n", "\r\n").encode()))
    assert read_obo(path) == read(tmp_path, obo_text())


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_escaping_every_character_that_may_be_is_undone(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in '\\"{}!,:()[]' else letter for letter in text)
    assert unescape(escaped) == text
    assert plain(escaped) == text.strip()


def term(folder: Path, *lines: str, header: str = OBO_HEADER, scopes: frozenset[str] | None = None) -> Concept:
    """What is read of one term."""
    return read(folder, header + "\n".join(["[Term]", "id: X:1", *lines, ""]), scopes).concepts[0]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('name: widgetocyte {source="PMID:1", comment="seen ! once"} ! a comment', "widgetocyte"),
        ('name: widgetocyte {comment="a } and a { and a \\" ! in it"}', "widgetocyte"),
        ("name: widgetocyte{source=PMID:1}", "widgetocyte"),
        ("name: widgetocyte ! seen {x=y} ! twice", "widgetocyte"),
        ("name: wow! a cell {big, round}", "wow! a cell {big, round}"),
        ("name: what \\! a cell \\{x=y\\}", "what ! a cell {x=y}"),
        ('name: 5" disk !', '5" disk'),
        ("name: a \\{b=c\\} {d=e} ! f", "a {b=c}"),
    ],
)
def test_modifiers_and_comments_are_not_part_of_a_name(tmp_path: Path, line: str, name: str) -> None:
    assert term(tmp_path, line).name == name


@pytest.mark.parametrize(
    ("line", "link"),
    [
        ('is_a: X:2 {comment="a ! b", source="c"} ! the other', Link("X:1", "IsA", "X:2", "the other")),
        ("is_a: X:2", Link("X:1", "IsA", "X:2", "")),
        ('relationship: part_of X:2 {all_only="true"} ! the other', Link("X:1", "PartOf", "X:2", "the other")),
    ],
)
def test_a_link_is_named_by_its_comment_alone(tmp_path: Path, line: str, link: Link) -> None:
    assert read(tmp_path, OBO_HEADER + f"[Term]\nid: X:1\nname: cell\n{line}\n").links == (link,)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('synonym: "the "best" widgetocyte" EXACT []', 'the "best" widgetocyte'),
        ('synonym: "a \\"best\\" widgetocyte" EXACT []', 'a "best" widgetocyte'),
        ('synonym: "5" disk" EXACT OMO:0003000 [X:1 "a "book""]', '5" disk'),
        ('synonym: "ends in a backslash \\\\" EXACT [X:1 "a \\"book\\""]', "ends in a backslash \\"),
        ('synonym: "cell" EXACT [X:1, "unbalanced] {source="x"}', "cell"),
        ('synonym: "cell" EXACT {source="a [b] ! c"} ! "cells" [x]', "cell"),
        ('synonym: "cell [big]" EXACT [X:1 "see [2]"]', "cell [big]"),
    ],
)
def test_a_quoted_text_ends_where_what_may_follow_it_does(tmp_path: Path, line: str, text: str) -> None:
    assert term(tmp_path, "name: widgetocyte", line).synonyms == (text,)


def test_a_definition_may_hold_quotation_marks(tmp_path: Path) -> None:
    line = 'def: "A so-called "hot" cell of the "widget" line." [GOC:x, "a book"]'
    assert term(tmp_path, "name: widgetocyte", line).definitions == ('A so-called "hot" cell of the "widget" line.',)


TYPES = (
    'synonymtypedef: LAY "layman \\"term\\"" BROAD\nsynonymtypedef: ABBR "short form" EXACT\nsynonymtypedef: ODD "x"\n'
)
TYPED = (
    'synonym: "any small thing" LAY []',
    'synonym: "WC" ABBR []',
    'synonym: "thing" RELATED ABBR []',
    'synonym: "odd" ODD []',
    'synonym: "undeclared" NEW []',
    'synonym: "cell" NARROW []',
)


@pytest.mark.parametrize(
    ("scopes", "taken"),
    [
        ({"EXACT"}, ("WC",)),
        ({"BROAD"}, ("any small thing",)),
        ({"NARROW"}, ("cell",)),
        ({"RELATED"}, ("thing", "odd", "undeclared")),
    ],
)
def test_a_synonym_without_a_scope_has_that_of_its_declared_type(
    tmp_path: Path, scopes: set[str], taken: tuple[str, ...]
) -> None:
    found = term(
        tmp_path, "name: widgetocyte", *TYPED, header=OBO_HEADER.strip() + "\n" + TYPES, scopes=frozenset(scopes)
    )
    assert found.synonyms == taken


def test_old_tags_of_synonyms_are_read_as_the_scopes_that_they_name(tmp_path: Path) -> None:
    old = [f'{scope.lower()}_synonym: "{scope} cell" []' for scope in SCOPES]
    for scope in SCOPES:
        found = term(tmp_path, "name: widgetocyte", *old, scopes=frozenset({scope}))
        assert found.synonyms == (f"{scope} cell",)


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    text = obo_text() + "\n[Instance]\nid: X:9\nname: a stone\n"
    assert read(tmp_path, text, frozenset({"EXACT"})).left_out == {
        "a synonym of another scope": 4 + len(ROCKS),
        "a term without a name": 1,
        "an obsolete term": 1,
        "a stanza [Instance]": 1,
    }


GOOD = OBO_HEADER + "[Term]\nid: X:1\nname: lava\n"
FAULTS = {
    "cut within a text": (GOOD + 'def: "Molten rock th', ("truncated", "Molten rock th", "no line break")),
    "quotation mark not closed": (GOOD + 'def: "Molten rock th\n', ("line 13", "def", "quoted text")),
    "text not closed before its references": (GOOD + 'def: "Molten rock [X:1]\n', ("line 13", "def", "[X:1]")),
    "synonym not quoted": (GOOD + "synonym: magma EXACT []\n", ("line 13", "synonym", "quoted text")),
    "cut within a tag": (GOOD + "is_\n", ("line 13", "'is_'", "tag: value")),
    "relation without a target": (GOOD + "relationship: part_of\n", ("line 13", "'part_of'")),
    "last term without a name": (GOOD + "[Term]\nid: X:2\n", ("truncated", "X:2", "line 13")),
    "last term without an id": (GOOD + "[Term]\n", ("[Term] at line 13 has no id",)),
    "terms missing": (OBO_HEADER + OBO_TYPEDEFS, ("has no [Term]",)),
    "header alone": (OBO_HEADER, ("has no [Term]",)),
    "OWL": ('<?xml version="1.0"?>\n<rdf:RDF>\n', ("line 1", "<?xml", "not an OBO file", "convert")),
    "CSV": ("anchor,positive\nlava,rock\n", ("line 1", "anchor,positive")),
    "empty": ("", ("is empty",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_by_name_with_what_is_wrong(tmp_path: Path, fault: str) -> None:
    text, says = FAULTS[fault]
    with pytest.raises(VocabgraftError) as refusal:
        read(tmp_path, text)
    assert all(found in str(refusal.value) for found in (str(tmp_path / "rocks.obo"), *says)), refusal.value


def test_a_cut_at_any_byte_but_a_line_break_is_refused(tmp_path: Path) -> None:
    text = obo_text()
    for end in range(len(OBO_HEADER) + 30, len(text) - 1, 97):
        if text[end - 1] != "\n":
            with pytest.raises(VocabgraftError):
                read(tmp_path, text[:end])


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rocks.obo"
    path.write_bytes(b"PK\x03\x04\x00\x00\xff")
    with pytest.raises(VocabgraftError, match="line 1 is not UTF-8"):
        read_obo(path)


def test_an_unknown_scope_is_refused_with_those_allowed(tmp_path: Path) -> None:
    for scopes, seen in ((frozenset({"EXCAT"}), "EXCAT"), (frozenset[str](), "empty")):
        with pytest.raises(VocabgraftError, match=f"{seen}; allowed: EXACT, BROAD, NARROW, RELATED"):
            read(tmp_path, obo_text(), scopes)


# What comes of an ontology, wherever it was read from.


def in_training(group: str) -> bool:
    """Whether a concept is trained on: these concepts share no text, so its id alone decides."""
    return split_of(group, HELD_OUT.validation, HELD_OUT.test) == "train"


def rows(ontology: Ontology, base: "Tokenizer", min_uses: int = 4, **limits: int) -> ImportedRows:
    return ontology_rows(ontology, base, Limits(min_uses=min_uses, **limits))


def test_words_are_cut_long_frequent_and_of_letters_only(tmp_path: Path, base: "Tokenizer") -> None:
    found = rows(read(tmp_path, obo_text()), base)
    words = {token.text for token in found.vocabulary if token.kind == "word"}
    trained = {name for number, name in enumerate(ROCKS) if in_training(f"RK:{100 + number:07}")}
    assert trained <= words
    # The tiny base has stone and kind whole; "cut" has three letters; "layer 3" is not one word.
    assert words - set(ROCKS) == {"rock", "layer", "geologists", "weathered", "fresh"}


def test_a_word_with_fewer_uses_or_pieces_than_asked_for_is_left_out(tmp_path: Path, base: "Tokenizer") -> None:
    ontology = read(tmp_path, obo_text())
    frequent = {token.text for token in rows(ontology, base, min_uses=9).vocabulary if token.kind == "word"}
    # A rock is in its name, three synonyms, its definition and at most three relations.
    assert frequent == {"rock", "layer", "geologists", "weathered", "fresh"}
    long = {token.text for token in rows(ontology, base, min_pieces=11).vocabulary if token.kind == "word"}
    assert long
    assert all(len(word) >= 11 for word in long)


def test_the_most_used_words_are_kept_where_there_are_too_many(tmp_path: Path, base: "Tokenizer") -> None:
    ontology = read(tmp_path, obo_text())
    everything, few = rows(ontology, base).vocabulary, rows(ontology, base, max_tokens=5).vocabulary
    relations = [token for token in few if token.kind == "special"]
    assert len(few) == 5
    assert few == (*everything[: 5 - len(relations)], *relations)


def test_contexts_are_definitions_of_training_concepts_that_hold_a_new_word(tmp_path: Path, base: "Tokenizer") -> None:
    found = rows(read(tmp_path, obo_text()), base)
    held_out = {name.capitalize() for number, name in enumerate(ROCKS) if not in_training(f"RK:{100 + number:07}")}
    assert held_out
    assert found.contexts
    assert not {text.split()[0] for text in found.contexts} & held_out


def test_a_word_that_is_a_concept_is_described_by_its_definition(tmp_path: Path, base: "Tokenizer") -> None:
    described = {token.text: token.description for token in rows(read(tmp_path, obo_text()), base).vocabulary}
    assert described["geologists"] == ""
    name = next(name for number, name in enumerate(ROCKS) if in_training(f"RK:{100 + number:07}"))
    assert described[name].startswith(f"{name.capitalize()} is a rock of layer")
    assert described["<|IsA|>"] == "is a kind of"


def test_a_label_that_leaves_out_the_verb_does_not_replace_a_known_description(tmp_path: Path) -> None:
    assert read(tmp_path, obo_text()).descriptions == {"DevelopsFrom": "develops from"}


def test_a_synonym_of_two_concepts_or_that_names_another_is_left_out(base: "Tokenizer") -> None:
    concepts = (
        Concept("1", "granite", ("hard rock", "country rock", "marble")),
        Concept("2", "gneiss", ("Hard  rock", "banded rock")),
        Concept("3", "Marble", ("white rock",)),
        Concept("4", "marble", ("dressed stone",)),
    )
    found = rows(Ontology(concepts), base, min_uses=1)
    assert {(pair.positive, pair.group) for pair in found.pairs} == {
        ("country rock", "1"),
        ("banded rock", "2"),
        ("white rock", "3"),
        ("dressed stone", "3"),
    }
    assert found.left_out == {"a synonym or definition of two concepts": 3}


def test_texts_that_validate_data_refuses_are_left_out(base: "Tokenizer") -> None:
    synonyms = ("Granite", "", "lost \ufffd letter", "bell \x07", "x" * 2001, "igneous")
    found = rows(Ontology((Concept("0", "granite", synonyms),)), base, min_uses=1)
    assert [pair.positive for pair in found.pairs] == ["igneous"]
    assert sum(found.left_out.values()) == 5


def test_an_ontology_without_rows_or_tokens_is_refused_with_what_to_do(base: "Tokenizer") -> None:
    with pytest.raises(VocabgraftError, match="no row is left of 1 concepts"):
        rows(Ontology((Concept("1", "granite"),)), base)
    with pytest.raises(VocabgraftError, match="lower --min-pieces or --min-uses"):
        rows(Ontology((Concept("1", "granite", ("hard rock",)),)), base)


@pytest.mark.parametrize("limit", [{"min_pieces": 1}, {"min_uses": 0}, {"max_tokens": 0}])
def test_limits_that_make_no_sense_are_refused(limit: dict[str, int]) -> None:
    with pytest.raises(VocabgraftError, match="allowed"):
        Limits(**limit)
