"""SKOS: concepts of one language out of RDF/XML, N-Triples and Turtle, and what is refused."""

import gzip
import importlib.util
from pathlib import Path

import pytest

from tests.import_samples import ENTITY_BOMB, N_TRIPLES, SKOS_HEAD, TURTLE, skos_xml
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.ontology import Concept, Link, Ontology
from vocabgraft.importers.skos import read_skos


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


def test_a_label_without_a_language_counts_where_there_is_no_better(tmp_path: Path) -> None:
    text = skos_xml().replace('xml:lang="en-GB"', "")
    assert concepts(read(tmp_path, text))["http://x.org/1"].name == "gray rock"
    assert concepts(read(tmp_path, text, language="nl"))["http://x.org/1"].name == "grey rock"


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


def test_turtle_needs_rdflib_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VocabgraftError, match=r"needs the package rdflib.*convert"):
        read(tmp_path, TURTLE, "rocks.ttl")


def test_turtle_is_read_where_rdflib_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    found = read(tmp_path, TURTLE, "rocks.ttl")
    assert concepts(found)["http://x.org/1"] == Concept("http://x.org/1", "rock", ("stone",))
    assert found.links == (Link("http://x.org/2", "IsA", "http://x.org/1"),)
    with pytest.raises(VocabgraftError, match="cut short or no Turtle"):
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
    "cut short": ("rocks.rdf", skos_xml().encode()[:3000], ("cut short", "line")),
    "cut in the head": ("rocks.rdf", skos_xml().encode()[:100], ("cut short",)),
    "gzip cut short": ("rocks.rdf.gz", gzip.compress(skos_xml().encode())[:400], ("gzip stream has no end",)),
    "no XML": ("rocks.rdf", b"format-version: 1.2\n", ("no XML",)),
    "XML of another kind": ("rocks.xml", b"<html><body/></html>", ("root is 'html'", "rdf:RDF")),
    "RDF without labels": ("rocks.rdf", (SKOS_HEAD + "</rdf:RDF>").encode(), ("no label at all", "no SKOS")),
    "nested too deep": ("rocks.rdf", DEEP.encode(), ("nests more than 100",)),
    "undefined entity": ("rocks.rdf", skos_xml().replace("&amp;", "&lava;").encode(), ("undefined entity",)),
    "a statement cut short": ("rocks.nt", N_TRIPLES.encode()[:-30], ("line 9", "cut short")),
    "no N-Triples": ("rocks.nt", TURTLE.encode(), ("line 1", "@prefix", "no N-Triples")),
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
