"""ConceptNet 5: what is taken of its assertions, and how a damaged file is refused."""

import gzip
from pathlib import Path

import pytest

from tests.import_samples import assertion, assertions, write_gzip
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.conceptnet import Selection, read_conceptnet
from vocabgraft.importers.relation_texts import DESCRIPTIONS, describe_relation, relation_name
from vocabgraft.importers.rows import ImportedRows, Limits, Triple

ONE_USE = Limits(min_uses=1)


def read(folder: Path, lines: list[str], selection: Selection | None = None, limits: Limits = ONE_USE) -> ImportedRows:
    return read_conceptnet(write_gzip(folder / "assertions.csv.gz", lines), selection or Selection(), limits)


def test_both_ends_must_be_in_the_language(tmp_path: Path) -> None:
    found = read(tmp_path, assertions(), Selection("fr"))
    assert found.triples == (Triple("chien", "IsA", "animal"),)


def test_terms_lose_their_sense_and_their_underscores(tmp_path: Path) -> None:
    found = read(tmp_path, [assertion("IsA", "en/hot_dog/n/wn/food", "en/fast_food/n")])
    assert found.triples == (Triple("hot dog", "IsA", "fast food"),)


def test_an_assertion_made_twice_is_one_row_in_the_place_of_the_heavier(tmp_path: Path) -> None:
    lines = [
        assertion("IsA", "en/cat", "en/animal", 3.0),
        assertion("IsA", "en/dog/n", "en/animal", 1.0),
        assertion("IsA", "en/dog", "en/animal", 5.0),
    ]
    assert [triple.head for triple in read(tmp_path, lines).triples] == ["dog", "cat"]


def test_a_lower_weight_than_asked_for_is_left_out_and_an_equal_one_is_not(tmp_path: Path) -> None:
    lines = [assertion("IsA", "en/cat", "en/animal", 2.0), assertion("IsA", "en/dog", "en/animal", 1.99)]
    found = read(tmp_path, lines, Selection(min_weight=2.0))
    assert [triple.head for triple in found.triples] == ["cat"]
    assert found.left_out == {"a lower weight": 1}


def test_only_the_relations_asked_for_are_taken(tmp_path: Path) -> None:
    found = read(tmp_path, assertions(), Selection(relations=frozenset({"UsedFor"})))
    assert {triple.relation for triple in found.triples} == {"UsedFor"}
    assert [token.text for token in found.vocabulary] == ["<|UsedFor|>"]


def test_without_a_choice_every_relation_but_external_url_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, assertions(), Selection(min_weight=0))
    assert {triple.relation for triple in found.triples} == {"IsA", "UsedFor", "Antonym", "knownFor"}


def test_of_an_antonym_and_a_synonym_of_the_same_two_the_heavier_is_kept(tmp_path: Path) -> None:
    found = read(tmp_path, assertions()[:2])
    assert [triple.relation for triple in found.triples] == ["Antonym"]


def test_a_symmetric_relation_is_not_stated_in_both_directions(tmp_path: Path) -> None:
    lines = [assertion("RelatedTo", "en/dog", "en/bark"), assertion("RelatedTo", "en/bark", "en/dog")]
    assert len(read(tmp_path, lines).triples) == 1


def test_a_relation_with_too_few_training_rows_is_left_out_with_its_token(tmp_path: Path) -> None:
    found = read(tmp_path, assertions(), limits=Limits(min_uses=4))
    assert {token.text for token in found.vocabulary} == {"<|IsA|>", "<|UsedFor|>"}


def test_every_relation_is_a_described_special_token(tmp_path: Path) -> None:
    lines = [assertion(relation, "en/dog", "en/bark") for relation in ("IsA", "HasPainIntensity", "dbpedia/genre")]
    found = {token.text: (token.kind, token.description) for token in read(tmp_path, lines).vocabulary}
    assert found == {
        "<|IsA|>": ("special", "is a kind of"),
        "<|HasPainIntensity|>": ("special", "has pain intensity"),
        "<|genre|>": ("special", "belongs to the genre"),
    }


def test_the_unpacked_file_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "assertions.csv"
    path.write_text("\n".join(assertions()) + "\n", encoding="utf-8")
    assert read_conceptnet(path, Selection(), ONE_USE) == read(tmp_path, assertions())


def test_the_bytes_read_are_reported_and_add_up_to_the_file(tmp_path: Path) -> None:
    path = write_gzip(tmp_path / "a.csv.gz", assertions())
    counts: list[int] = []
    read_conceptnet(path, Selection(), ONE_USE, counts.append)
    assert sum(counts) == path.stat().st_size


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


WHOLE = gzip.compress("\n".join([*assertions(), ""]).encode(), mtime=0)
FAULTS = {
    "gzip cut short": (cut(WHOLE), ("truncated", "fetch it again")),
    "gzip damaged": (flipped(WHOLE), ("damaged", "fetch it again")),
    "empty": (b"", ("is empty", "0 bytes")),
    "gzip of nothing": (gzip.compress(b""), ("no row is left of 0 assertions",)),
    "another kind": (b"head,relation,tail\ndog,IsA,animal\n", ("line 1", "'head,relation,tail", "1 columns", "tabs")),
    "a line cut short": ("\n".join(assertions()).encode()[:-20], ("line", "truncated")),
    "no weight": (assertion("IsA", "en/a", "en/b").replace("weight", "w").encode(), ("line 1", "weight")),
    "not UTF-8": (b"\xff\xfe" + assertion("IsA", "en/a", "en/b").encode("utf-16-le"), ("line 1 is not UTF-8", "0xff")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_by_name_with_what_is_wrong(tmp_path: Path, fault: str) -> None:
    content, says = FAULTS[fault]
    path = tmp_path / "assertions.csv.gz"
    path.write_bytes(content)
    with pytest.raises(VocabgraftError) as refusal:
        read_conceptnet(path, Selection(), ONE_USE)
    assert all(text in str(refusal.value) for text in (str(path), *says)), refusal.value


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.gz", "is missing"), (tmp_path, "is not a file")):
        with pytest.raises(VocabgraftError, match=says):
            read_conceptnet(path, Selection())


def test_when_nothing_is_left_the_reasons_and_the_languages_seen_are_reported(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"no row is left of 37 .*another language.*seen: en, fr.*--language"):
        read(tmp_path, assertions(), Selection("pt"))


def test_a_relation_that_the_file_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"no relation Isa .*it has Antonym, ExternalURL, IsA"):
        read(tmp_path, assertions(), Selection(relations=frozenset({"Isa", "IsA"})))


@pytest.mark.parametrize(("language", "weight"), [("", 1.0), ("e/n", 1.0), ("en", float("nan"))])
def test_a_choice_that_selects_nothing_is_refused(language: str, weight: float) -> None:
    with pytest.raises(VocabgraftError, match="allowed"):
        Selection(language, weight)


def test_names_of_relations_are_described_by_the_table_or_by_their_parts() -> None:
    assert describe_relation("IsA") == DESCRIPTIONS["IsA"]
    assert describe_relation("hasHTMLForm") == "has html form"
    assert describe_relation("LocatedInSideOf") == "located in side of"


def test_identifiers_of_relations_become_camel_case() -> None:
    assert [relation_name(text) for text in ("part_of", "develops from", "IsA", "")] == [
        "PartOf",
        "DevelopsFrom",
        "IsA",
        "",
    ]
