"""Plain triples: columns by name or by the first line, relations as tokens have them, and what is left out."""

import gzip
from pathlib import Path

import pytest

from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.rows import ImportedRows, Limits, Triple
from vocabgraft.importers.triple_files import TripleSelection, name_of, read_triples

ONE_USE = Limits(min_uses=1)
CN = "AtLocation\trestroom\trest area\nIsA\tdog\tanimal\nIsA\tcat\tanimal\nAtLocation\tcat\thouse\n"
BY_RELATION = ("relation", "head", "tail")


def read(
    folder: Path, text: str, columns: tuple[str, ...] = (), name: str = "t.tsv", relations: tuple[str, ...] = ()
) -> ImportedRows:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_triples(path, TripleSelection(columns, frozenset(relations)), ONE_USE)


EXPECTED = (
    Triple("restroom", "AtLocation", "rest area"),
    Triple("dog", "IsA", "animal"),
    Triple("cat", "IsA", "animal"),
    Triple("cat", "AtLocation", "house"),
)


def test_columns_are_named_or_told_by_the_first_line(tmp_path: Path) -> None:
    found = read(tmp_path, CN, BY_RELATION)
    assert found.triples == EXPECTED
    assert [token.text for token in found.vocabulary] == ["<|AtLocation|>", "<|IsA|>"]
    header = "Relation\thead\tTAIL\tsource\n" + CN.replace("\n", "\tx\n")
    assert read(tmp_path, header).triples == EXPECTED
    assert read(tmp_path, header, (*BY_RELATION, "-")).triples == EXPECTED
    assert read(tmp_path, CN, BY_RELATION, "t.txt").triples == EXPECTED
    rows = ('"restroom",AtLocation,"rest area"', "", "dog,IsA,animal", "cat,IsA,animal", "cat,AtLocation,house")
    commas = "\n".join(["head,relation,tail", *rows, ""])
    assert read(tmp_path, commas, (), "t.csv").triples == EXPECTED


def test_gzip_and_other_line_ends_make_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(CN.replace("\n", "\r\n").encode()))
    assert read_triples(path, TripleSelection(BY_RELATION), ONE_USE).triples == EXPECTED


def test_quotation_marks_between_tabs_are_signs_like_any_other(tmp_path: Path) -> None:
    found = read(tmp_path, 'IsA\t5" disk\t"medium\n', BY_RELATION)
    assert found.triples == (Triple('5" disk', "IsA", '"medium'),)


def test_relations_are_chosen_and_the_others_counted(tmp_path: Path) -> None:
    found = read(tmp_path, CN + "IsA\tdog\tanimal\n\tx\ty\nIsA\t\ty\n", BY_RELATION, relations=("/r/IsA",))
    assert found.triples == EXPECTED[1:3]
    assert found.left_out == {
        "another relation": 2,
        "a repetition": 1,
        "a row without a relation": 1,
        "an empty text": 1,
    }
    with pytest.raises(VocabgraftError, match=r"no relation Isa .*it has AtLocation, IsA"):
        read(tmp_path, CN, BY_RELATION, relations=("Isa",))


def test_the_heaviest_come_first_and_the_light_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("IsA\ta\tb\t0.5\nIsA\tc\td\t2\nIsA\te\tf\t1.0\nIsA\ta\tb\t3\n", encoding="utf-8")
    found = read_triples(path, TripleSelection((*BY_RELATION, "weight"), min_weight=1.0), ONE_USE)
    assert [triple.head for triple in found.triples] == ["a", "c", "e"]
    assert found.left_out == {"a lower weight": 1}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("AtLocation", "AtLocation"),
        ("/r/AtLocation", "AtLocation"),
        ("http://x.org/onto#hasPart", "hasPart"),
        ("http://x.org/r/part_of/", "part_of"),
        ("is a", "IsA"),
        ("located-near", "LocatedNear"),
        ("  ", ""),
    ],
)
def test_a_relation_is_named_as_its_token(written: str, name: str) -> None:
    assert name_of(written) == name


def test_two_readings_give_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, CN, BY_RELATION) == read(tmp_path, CN, BY_RELATION)


FAULTS = {
    "no header": ("t.tsv", CN, (), ("line 1", "restroom", "--columns relation,head,tail")),
    "columns": ("t.tsv", CN + "IsA\tdog\nIsA\ta\tb\tc\n", BY_RELATION, ("2 lines", "line 5 has 2", "line 6 has 4")),
    "many": ("t.tsv", "x\n" * 30, BY_RELATION, ("30 lines cannot be read, the first 10", "line 10 has 1")),
    "weight": ("t.tsv", "IsA\ta\tb\thigh\n", (*BY_RELATION, "weight"), ("line 1", "'high'", "a number")),
    "quotes": ("t.csv", 'IsA,a,"b"c\nIsA,"d\n', BY_RELATION, ("2 lines", "line 1 cannot", "line 2 cannot")),
    "nothing": ("t.tsv", "IsA\ta\ta\n", BY_RELATION, ("no row is left of 1", "a head that equals its tail")),
    "not UTF-8": ("t.tsv", "IsA\ta\t\udcff\n", BY_RELATION, ("line 1 is not UTF-8",)),
    "ending": ("t.xlsx", CN, BY_RELATION, ("'.xlsx'", ".tsv, .txt, .csv")),
    "empty": ("t.tsv", "", BY_RELATION, ("is empty",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_all_that_is_wrong(fault: str, tmp_path: Path) -> None:
    name, text, columns, says = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(VocabgraftError) as refusal:
        read_triples(path, TripleSelection(columns), ONE_USE)
    assert all(part in str(refusal.value) for part in (str(path), *says)), refusal.value


@pytest.mark.parametrize(
    "columns",
    [("head", "tail"), ("head", "relation", "tail", "tail"), ("head", "relation", "tail", "score")],
)
def test_columns_that_give_no_triple_are_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(VocabgraftError, match="allowed: head, relation, tail"):
        TripleSelection(columns)
    with pytest.raises(VocabgraftError, match="no column is named weight"):
        TripleSelection(BY_RELATION, min_weight=2.0)
