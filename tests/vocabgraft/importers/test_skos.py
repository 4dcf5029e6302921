"""SKOS: concepts of one language out of RDF/XML, N-Triples and Turtle, and what is refused."""

import gzip
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_samples import ENTITY_BOMB, N_TRIPLES, SKOS_HEAD, TURTLE, skos_xml
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.ontology import Concept, Link, Ontology
from vocabgraft.importers.rdf import TYPE, read_rdf_xml
from vocabgraft.importers.skos import SKOS, read_skos


def read(folder: Path, text: str, name: str = "rocks.rdf", language: str = "en") -> Ontology:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_skos(path, language)


def concepts(ontology: Ontology) -> dict[str, Concept]:
    return {concept.id: concept for concept in ontology.concepts}


def test_labels_and_notes_of_the_language_are_read(tmp_path: Path) -> None:
    assert concepts(read(tmp_path, skos_xml()))["http://x.org/1"] == Concept(
        "http://x.org/1",
        "gray rock",
        ("grey rock", "gray stone", "gray rcok"),
        ("A solid piece & part of the crust.", "Use it for any stone."),
    )


def test_another_language_gives_other_names_or_none(tmp_path: Path) -> None:
    found = read(tmp_path, skos_xml(), language="de")
    assert [concept.name for concept in found.concepts] == ["Gestein"]
    assert concepts(read(tmp_path, skos_xml(), language="EN-gb"))["http://x.org/1"].name == "grey rock"


def test_broader_and_narrower_are_one_relation_read_in_two_directions(tmp_path: Path) -> None:
    links = read(tmp_path, skos_xml()).links
    assert links.count(Link("http://x.org/2", "IsA", "http://x.org/1")) == 2
    assert Link("http://x.org/2", "RelatedTo", "http://x.org/3") in links


def test_concepts_within_others_and_languages_set_further_out_are_read(tmp_path: Path) -> None:
    found = concepts(read(tmp_path, skos_xml()))
    assert (found["http://x.org/2"].name, found["http://x.org/3"].name) == ("lava", "magma")
    inherited = skos_xml().replace("<rdf:RDF ", '<rdf:RDF xml:lang="en" ').replace(' xml:lang="en">firestone', ">fire")
    assert len(read(tmp_path, inherited).concepts) == len(found)


def test_schemes_and_deprecated_concepts_are_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, skos_xml())
    assert not {"the scheme of rocks", "firestone"} & {concept.name for concept in found.concepts}
    assert found.withdrawn == {"http://x.org/4"}


def n_triples(*statements: tuple[str, str, str]) -> str:
    """Statements of subjects, properties of SKOS and values as N-Triples writes them."""
    lines = []
    for subject, name, value in statements:
        predicate = name if name.startswith("http") else SKOS + name
        lines.append(f"<http://x.org/{subject}> <{predicate}> {value} .")
    return "\n".join([*lines, ""])


def test_a_label_without_a_language_counts_where_a_concept_has_none_with_one(tmp_path: Path) -> None:
    text = n_triples(
        ("1", "prefLabel", '"chat"@fr'),
        ("1", "prefLabel", '"cat"'),
        ("1", "altLabel", '"minou"@fr-CA'),
        ("1", "altLabel", '"kitty"'),
        ("1", "definition", '"A small animal."'),
        ("2", "prefLabel", '"dog"'),
        ("2", "altLabel", '"hound"'),
        ("2", "altLabel", '"Hund"@de'),
        ("2", "definition", '"Un animal."@fr'),
        ("2", "definition", '"An animal."'),
    )
    found = read(tmp_path, text, "t.nt", "fr")
    assert found.concepts == (
        Concept("http://x.org/1", "chat", ("minou",), ("A small animal.",)),
        Concept("http://x.org/2", "dog", ("hound",), ("Un animal.",)),
    )
    assert found.left_out == {"a text in another language, or in none beside those of the language": 4}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    text = n_triples(
        ("a", "prefLabel", '"granodiorite"@fr'),
        ("b", "prefLabel", '"marble"@en'),
        ("b", "altLabel", '"marbre"@fr'),
        ("d", "prefLabel", '"basalt"@en'),
        ("e", TYPE, f"<{SKOS}Concept>"),
        ("f", TYPE, f"<{SKOS}ConceptScheme>"),
        ("f", "prefLabel", '"roches"@fr'),
        ("g", "prefLabel", '"ardoise"@fr'),
        ("g", "http://www.w3.org/2002/07/owl#deprecated", '"true"'),
        ("a", "definition", "<http://elsewhere.org/text>"),
    )
    found = read(tmp_path, text, "t.nt", "fr")
    assert [concept.name for concept in found.concepts] == ["granodiorite"]
    assert found.left_out == {
        "a concept without a preferred label in the language": 3,
        "a scheme or collection of concepts": 1,
        "a deprecated concept": 1,
        "a label or note whose text is not in the file": 1,
    }


def test_labels_and_notes_may_be_resources(tmp_path: Path) -> None:
    xl, value = "http://www.w3.org/2008/05/skos-xl#", "http://www.w3.org/1999/02/22-rdf-syntax-ns#value"
    text = n_triples(
        # A label may be described before and after the concept that has it.
        ("l1", f"{xl}literalForm", '"granodiorite"@en'),
        ("1", f"{xl}prefLabel", "<http://x.org/l1>"),
        ("1", f"{xl}altLabel", "<http://x.org/l2>"),
        ("1", f"{xl}hiddenLabel", "<http://x.org/l3>"),
        ("1", "altLabel", '"granodiorite stone"@en'),
        ("1", "definition", "<http://x.org/n1>"),
        ("l2", f"{xl}literalForm", '"granodiorite stone"@en'),
        ("l3", f"{xl}literalForm", '"granodiorit"@en'),
        ("l3", f"{xl}literalForm", '"Granodiorit"@de'),
        ("n1", value, '"A rock."@en'),
        ("n1", value, '"Une roche."@fr'),
    )
    assert read(tmp_path, text, "t.nt").concepts == (
        Concept("http://x.org/1", "granodiorite", ("granodiorite stone", "granodiorit"), ("A rock.",)),
    )


def test_n_triples_are_read_with_their_escapes(tmp_path: Path) -> None:
    found = read(tmp_path, N_TRIPLES, "rocks.nt")
    assert found.concepts == (
        Concept("http://x.org/1", "rock", ('st\u00f6ne "grey" .',)),
        Concept("http://x.org/2", "lava"),
    )
    assert Link("http://x.org/2", "IsA", "http://x.org/1") in found.links


def test_gzip_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "rocks.rdf.gz"
    path.write_bytes(gzip.compress(skos_xml().encode()))
    assert read_skos(path) == read(tmp_path, skos_xml())


BASES = {
    "xml:base": ('xml:base="http://x.org/t"', "#rock", 'rdf:about="http://x.org/t#rock"'),
    "a base with a fragment": ('xml:base="http://x.org/t#"', "#rock", 'rdf:about="http://x.org/t#rock"'),
    "a relative path": ('xml:base="http://x.org/t/u"', "../rock", 'rdf:about="http://x.org/rock"'),
    "a URN": ('xml:base="urn:x:t"', "#rock", 'rdf:about="urn:x:t#rock"'),
    "the document": ('xml:base="http://x.org/rock"', "", 'rdf:about="http://x.org/rock"'),
    "an ID": ('xml:base="http://x.org/t"', "#rock", 'rdf:ID="rock"'),
    "no base": ("", "#rock", 'rdf:ID="rock"'),
}


@pytest.mark.parametrize("base", BASES)
def test_references_are_relative_to_the_base(base: str, tmp_path: Path) -> None:
    attribute, reference, about = BASES[base]
    text = SKOS_HEAD.replace("<rdf:RDF ", f'<rdf:RDF {attribute} xml:lang="en" ') + (
        f"<skos:Concept {about}><skos:prefLabel>rock</skos:prefLabel></skos:Concept>"
        '<skos:Concept rdf:about="http://x.org/lava"><skos:prefLabel>lava</skos:prefLabel>'
        f'<skos:broader rdf:resource="{reference}"/></skos:Concept></rdf:RDF>'
    )
    found = read(tmp_path, text)
    rock = next(concept.id for concept in found.concepts if concept.name == "rock")
    assert found.links == (Link("http://x.org/lava", "IsA", rock),)


ODD_XML = (
    SKOS_HEAD.replace("<rdf:RDF ", '<rdf:RDF xml:base="http://x.org/t/u" xml:lang="en" ')
    + """<skos:Concept rdf:about="1" skos:prefLabel="rock" rdf:type="http://x.org/Thing">
      <skos:broader rdf:nodeID="top"/>
      <skos:definition rdf:parseType="Resource"><rdf:value xml:lang="">a piece</rdf:value></skos:definition>
      <skos:scopeNote rdf:parseType="Literal">use <b>it</b></skos:scopeNote>
      <skos:note rdf:datatype="http://www.w3.org/2001/XMLSchema#string">typed</skos:note>
      <skos:related skos:prefLabel="lava" xml:lang="de"/>
      <skos:related rdf:resource="#two" skos:altLabel="a second"/>
      <skos:editorialNote/>
    </skos:Concept>
    <rdf:Description rdf:nodeID="top" xml:base="http://y.org/"><skos:prefLabel>top</skos:prefLabel>
      <skos:narrower><skos:Concept rdf:about="z" xml:lang="fr"><skos:prefLabel>zed</skos:prefLabel>
        <skos:related><rdf:Description/></skos:related></skos:Concept></skos:narrower>
    </rdf:Description>
    <skos:Concept rdf:ID="two"><skos:prefLabel xml:lang="nl">twee</skos:prefLabel></skos:Concept>
    </rdf:RDF>"""
)


@pytest.mark.parametrize("text", [ODD_XML, skos_xml()])
def test_rdf_xml_is_read_as_rdflib_reads_it(text: str, tmp_path: Path) -> None:
    rdflib = pytest.importorskip("rdflib")
    from rdflib.compare import isomorphic

    path = tmp_path / "t.rdf"
    path.write_text(text, encoding="utf-8")
    with path.open("rb") as stream:
        statements = list(read_rdf_xml(stream, path))
    names: dict[str, object] = {}
    found, expected = rdflib.Graph(), rdflib.Graph()

    def node(name: str) -> object:
        return names.setdefault(name, rdflib.BNode() if name.startswith("_:") else rdflib.URIRef(name))

    for one in statements:
        value = rdflib.Literal(one.value, lang=one.language or None) if one.literal else node(one.value)
        found.add((node(one.subject), rdflib.URIRef(one.predicate), value))
    for subject, predicate, value in rdflib.Graph().parse(path, format="xml"):
        # Types of literals are not told, and of markup the text alone.
        is_literal = isinstance(value, rdflib.Literal)
        told = rdflib.Literal(re.sub("<[^>]*>", "", str(value)), lang=value.language) if is_literal else value
        expected.add((subject, predicate, told))
    assert isomorphic(found, expected)


@pytest.mark.parametrize("name", ["t.ttl", "t.rdf", "t.nt"])
def test_the_same_file_gives_the_same_ontology_whatever_the_hash_seed(name: str, tmp_path: Path) -> None:
    if name == "t.ttl":
        pytest.importorskip("rdflib")
    text = {"t.ttl": TURTLE + MANY_TURTLE, "t.rdf": skos_xml(), "t.nt": N_TRIPLES}[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    code = "import sys; from pathlib import Path; from vocabgraft.importers.skos import read_skos; "
    code += "o = read_skos(Path(sys.argv[1])); print(o.concepts, o.links, sorted(o.left_out.items()))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1
    assert "rock" in printed.pop()


MANY_TURTLE = """
<http://x.org/h> a skos:Concept ; skos:prefLabel "colorometer"@en-US, "colourometer"@en-GB ;
  skos:altLabel "hue meter"@en, "tint meter"@en, "shade meter"@en ; skos:broader <http://x.org/1>, [
    skos:prefLabel "nameless"@en ;
    skos:definition [ <http://www.w3.org/1999/02/22-rdf-syntax-ns#value> "No name."@en ] ] .
"""


def test_turtle_is_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    found = read(tmp_path, TURTLE + MANY_TURTLE, "t.ttl")
    assert [concept.name for concept in found.concepts] == ["rock", "lava", "colorometer", "nameless"]
    assert found.concepts[2].synonyms == ("colourometer", "hue meter", "tint meter", "shade meter")
    assert found.concepts[3].definitions == ("No name.",)
    assert found.links[1:] == (
        Link("http://x.org/h", "IsA", "http://x.org/1"),
        Link("http://x.org/h", "IsA", found.concepts[3].id),
    )


def test_turtle_needs_rdflib_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VocabgraftError, match=r"needs the package rdflib.*convert"):
        read(tmp_path, TURTLE, "rocks.ttl")


def test_turtle_is_read_where_rdflib_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    found = read(tmp_path, TURTLE, "rocks.ttl")
    assert concepts(found)["http://x.org/1"] == Concept("http://x.org/1", "rock", ("stone",))
    assert found.links == (Link("http://x.org/2", "IsA", "http://x.org/1"),)
    with pytest.raises(VocabgraftError, match="truncated or not Turtle"):
        read(tmp_path, TURTLE[:-20], "rocks.ttl")


DEEP = f"{SKOS_HEAD}{'<a>' * 5000}{'</a>' * 5000}</rdf:RDF>"
FAULTS = {
    "entity bomb": ("rocks.rdf", ENTITY_BOMB.encode(), ("document type", "N-Triples")),
    "entity bomb in UTF-16": (
        "rocks.rdf",
        ENTITY_BOMB.replace('"1.0"', '"1.0" encoding="UTF-16"').encode("utf-16"),
        ("document type",),
    ),
    "document type alone": (
        "rocks.xml",
        b"<!DOCTYPE rdf:RDF SYSTEM 'x.dtd'>\n" + SKOS_HEAD[39:].encode(),
        ("DOCTYPE",),
    ),
    "truncated": ("rocks.rdf", skos_xml().encode()[:3000], ("truncated", "line")),
    "cut in the head": ("rocks.rdf", skos_xml().encode()[:100], ("truncated",)),
    "gzip cut short": ("rocks.rdf.gz", gzip.compress(skos_xml().encode())[:400], ("gzip stream has no end",)),
    "not XML": ("rocks.rdf", b"format-version: 1.2\n", ("not XML",)),
    "XML of another kind": ("rocks.xml", b"<html><body/></html>", ("root is 'html'", "rdf:RDF")),
    "RDF without labels": ("rocks.rdf", (SKOS_HEAD + "</rdf:RDF>").encode(), ("no label at all", "not a SKOS")),
    "nested too deep": ("rocks.rdf", DEEP.encode(), ("nests more than 100",)),
    "undefined entity": ("rocks.rdf", skos_xml().replace("&amp;", "&lava;").encode(), ("undefined entity",)),
    "a statement cut short": ("rocks.nt", N_TRIPLES.encode()[:-30], ("line 9", "truncated")),
    "no N-Triples": ("rocks.nt", TURTLE.encode(), ("line 1", "@prefix", "not N-Triples")),
    "unknown ending": ("rocks.json", b"{}", ("'.json'", ".rdf, .xml, .nt, .ttl")),
    "empty": ("rocks.rdf", b"", ("is empty",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_by_name_with_what_is_wrong(tmp_path: Path, fault: str) -> None:
    name, content, says = FAULTS[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VocabgraftError) as refusal:
        read_skos(tmp_path / name)
    assert all(text in str(refusal.value) for text in (str(tmp_path / name), *says)), refusal.value


def test_a_language_that_no_label_has_is_refused_with_those_seen(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"language 'pt' .*de, en, en-GB, fr"):
        read(tmp_path, skos_xml(), language="pt")
