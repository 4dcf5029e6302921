"""A file that would hang the project or fill the memory is refused within seconds, by its name.

Each test has a time-out far above what a refusal takes and far below what the fault would take.
"""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.engine.edit_params import edited
from flows.engine.stage_run import LONGEST_LINE as LONGEST_LINE_OF_A_STAGE
from flows.reporting.webhook import post
from flows.sweep.grid import read_sweep
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, add_stage, write_project
from vocabgraft.config.params import load_params
from vocabgraft.config.yaml_text import MOST_VALUES, load_yaml
from vocabgraft.data.beir import read_beir
from vocabgraft.data.raw_files import column_faults, read_lines, read_table
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.conceptnet import Selection, read_conceptnet
from vocabgraft.importers.obo import read_obo
from vocabgraft.importers.skos import read_skos
from vocabgraft.importers.triple_files import TripleSelection, read_triples
from vocabgraft.planning.corpus import find_files, read_blocks, split_files
from vocabgraft.storage.bounds import LONGEST_LINE, special_files

pytestmark = pytest.mark.timeout(60)
main = cli("run")
TERM = "[Term]\nid: X:1\nname: word\n"

IMPORTS: dict[str, Callable[[Path], object]] = {
    "a.obo": read_obo,
    "a.nt": lambda path: read_skos(path, "en"),
    "a.ttl": lambda path: read_skos(path, "en"),
    "a.rdf": lambda path: read_skos(path, "en"),
    "a.tsv": lambda path: read_triples(path, TripleSelection(("head", "relation", "tail"))),
    "a.csv": lambda path: read_conceptnet(path, Selection("en", 1.0, frozenset())),
}
TABLES: dict[str, Callable[[Path], object]] = {
    "a.csv": lambda path: read_table(path, ("token",)),
    "a.jsonl": lambda path: read_table(path, ("token",)),
    "a.txt": read_lines,
}


def read_corpus(path: Path) -> None:
    for part in split_files(find_files([path]), ("text",)):
        for _ in read_blocks(part, ("text",)):
            pass


def bomb(path: Path, unit: bytes) -> None:
    """Four gigabytes of the same few bytes, packed into four megabytes: a gzip file may have many members."""
    member = gzip.compress(unit * ((16 << 20) // len(unit)), 9)
    with path.open("wb") as stream:
        for _ in range(256):
            stream.write(member)


@pytest.mark.parametrize("name", ["a.obo", "a.nt", "a.tsv", "a.csv"])
def test_a_line_of_an_import_has_a_longest_length(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"{TERM if name == 'a.obo' else ''}x: {'y' * (LONGEST_LINE + 1)}\n", encoding="utf-8")
    with pytest.raises(VocabgraftError) as refused:
        IMPORTS[name](path)
    assert str(path) in str(refused.value) and "1,048,576" in str(refused.value)


@pytest.mark.parametrize("name", TABLES)
def test_a_line_of_a_raw_file_has_a_longest_length(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("token\n" + "y" * (LONGEST_LINE + 1), encoding="utf-8")
    with pytest.raises(VocabgraftError) as refused:
        TABLES[name](path)
    assert str(path) in str(refused.value) and "1,048,576" in str(refused.value)


def test_a_continued_line_of_an_ontology_has_a_longest_length(tmp_path: Path) -> None:
    path = tmp_path / "a.obo"
    path.write_text(TERM + "def: \\\n" + "y\\\n" * LONGEST_LINE, encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"a\.obo: .*1,048,576"):
        read_obo(path)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Path]:
    """Gzip bombs, by what they repeat."""
    folder, units = tmp_path_factory.mktemp("bombs"), (b"\0", b"\n", b"! a comment\n", b" ")
    for number, unit in enumerate(units):
        bomb(folder / str(number), unit)
    return {unit: folder / str(number) for number, unit in enumerate(units)}


@pytest.mark.parametrize("name", IMPORTS)
def test_a_gzip_bomb_is_not_imported(name: str, bombs: dict[bytes, Path], tmp_path: Path) -> None:
    for number, packed in enumerate(bombs.values()):
        path = tmp_path / f"{number}-{name}"
        path.symlink_to(packed)
        with pytest.raises(VocabgraftError) as refused:
            IMPORTS[name](path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.csv.gz", "a.jsonl.gz"])
def test_a_gzip_bomb_is_not_counted_as_a_corpus(name: str, bombs: dict[bytes, Path], tmp_path: Path) -> None:
    for number, packed in enumerate(bombs.values()):
        path = tmp_path / f"{number}-{name}"
        path.symlink_to(packed)
        with pytest.raises(VocabgraftError) as refused:
            read_corpus(path)
        assert str(path) in str(refused.value)


def test_text_that_packs_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb") as stream:
        for number in range(400_000):
            stream.write(b"the same sentence of sixty letters, again and again, and %d\n" % (number % 100))
    read_corpus(path)


@pytest.mark.parametrize(
    "value",
    [
        " " * 500_000 + "x",
        "\t" * 500_000 + "\0",
        '"[' * 250_000,
        "{a=" * 150_000,
        '{a="' * 100_000,
        '{a=""' * 100_000,
        'x{a="b"} ' * 50_000 + "x",
        '"' * 500_000,
        '"x" ' * 100_000,
        "\\" * 500_001,
        "!" * 500_000,
        " ! x" * 100_000,
    ],
)
@pytest.mark.parametrize("tag", ["name", "is_a", "def", "synonym", "relationship"])
def test_no_value_of_an_ontology_takes_time_with_the_square_of_its_length(tag: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.obo"
    for begin in ("", '"'):
        path.write_text(f"{TERM}{tag}: {begin}{value}\n\n", encoding="utf-8")
        try:
            read_obo(path)
        except VocabgraftError as error:
            assert str(path) in str(error)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circular(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [fifo, dangling, device, circular])
def test_what_is_no_file_is_refused_by_its_name(make: Callable[[Path], None], tmp_path: Path) -> None:
    readers: dict[str, Callable[[Path], object]] = {**IMPORTS, **TABLES, "a.txt.gz": read_corpus}
    for number, (name, read) in enumerate(readers.items()):
        path = tmp_path / f"{number}-{name}"
        make(path)
        with pytest.raises(VocabgraftError) as refused:
            read(path)
        assert str(path) in str(refused.value)
    (fault,) = column_faults(tmp_path / "6-a.csv", ("token",))
    assert "6-a.csv" in fault
    (tmp_path / "beir").mkdir()
    make(tmp_path / "beir" / "corpus.jsonl")
    with pytest.raises(VocabgraftError, match=r"corpus\.jsonl"):
        read_beir(tmp_path / "beir", "b")


@pytest.mark.parametrize("make", [fifo, dangling, device])
def test_a_dependency_that_dvc_would_hash_for_ever_is_refused_before(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_project(tmp_path / "project", {"first": Trivial()})
    (root / "raw" / "deep").mkdir(parents=True)
    (root / "raw" / "good.txt").write_text("good", encoding="utf-8")
    make(root / "raw" / "deep" / "strange")
    add_stage(root, "second", {"cmd": "touch second.txt", "deps": ["raw"], "outs": ["second.txt"]})
    monkeypatch.chdir(root)
    for arguments in (["--plan"], ["--no-server"]):
        assert main(arguments) == 2
        assert "raw/deep/strange is a" in capsys.readouterr().err


def test_files_folders_and_links_to_them_are_not_strange(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(special_files(tmp_path)) == []


def nested_aliases(merge: bool) -> str:
    """Ten levels, each ten times the one before."""
    lines = ["l0: &l0 {a: 1}" if merge else "l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        ten = ", ".join([f"*l{level - 1}"] * 10)
        lines.append(f"l{level}: &l{level} " + (f"{{<<: [{ten}]}}" if merge else f"[{ten}]"))
    return "\n".join(lines)


BOMBS = {
    "aliases": nested_aliases(merge=False),
    "merges": nested_aliases(merge=True),
    "itself": "a: &a [*a]",
    "itself by a merge": "a: &a {<<: *a}",
    "deep lists": "a: " + "[" * 100_000,
    "deep mappings": "a: " + "{a: " * 50_000,
    "deep blocks": "\n".join(" " * depth + "a:" for depth in range(400)),
    "long": "# " + "x" * 200_000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_yaml_bomb_is_refused_by_the_files_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(BOMBS[kind], encoding="utf-8")
    for read in (load_params, read_sweep):
        with pytest.raises(VocabgraftError) as refused:
            read(path)
        assert str(path) in str(refused.value) and len(str(refused.value)) < 1000
    assert not post(tmp_path, None, [], "why")
    # The blocks are deep, but YAML without a hook.
    assert ("params.yaml" in capsys.readouterr().err) == (kind != "deep blocks")
    with pytest.raises(VocabgraftError) as refused:
        edited(BOMBS[kind], ["seed=1"], str(path))
    assert str(path) in str(refused.value)
    if "\n" not in BOMBS[kind] and not kind.startswith("long"):
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        with pytest.raises(VocabgraftError, match="--set seed"):
            edited(text, [f"seed={BOMBS[kind].removeprefix('a: ')}"], str(path))


def test_aliases_of_a_sensible_file_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 2}\nd: 'R & D'"
    plain = {"x": 1, "y": [1, 2]}
    assert load_yaml(text, "f") == {"a": plain, "b": plain, "c": {"x": 2, "y": [1, 2]}, "d": "R & D"}
    assert len(load_yaml("[" + ", ".join(["1"] * (MOST_VALUES - 10)) + "] # &", "f")) == MOST_VALUES - 10


DEEP = 100_000


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "text",
    ["[" * DEEP, '{"token": ' * DEEP, '{"token": ' + "[" * 900 + "]" * 900 + "}", '{"token": ' + "9" * 10**6 + "}"],
)
def test_json_of_any_depth_ends_in_one_message(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    try:
        read_table(path, ("token",))
    except VocabgraftError as error:
        assert str(path) in str(error) and len(str(error)) < 1000


def test_deep_values_of_other_files_end_in_one_message(tmp_path: Path) -> None:
    turtle = tmp_path / "a.ttl"
    turtle.write_text("<a> <b> " + "[ <c> " * 20_000, encoding="utf-8")
    assertions = tmp_path / "a.csv"
    assertions.write_text(f"/a/x\t/r/IsA\t/c/en/dog\t/c/en/animal\t{'[' * 100_000}\n", encoding="utf-8")
    corpus = tmp_path / "b.jsonl"
    corpus.write_text("[" * 100_000, encoding="utf-8")
    for path, read in ((turtle, IMPORTS["a.ttl"]), (assertions, IMPORTS["a.csv"]), (corpus, read_corpus)):
        with pytest.raises(VocabgraftError) as refused:
            read(path)
        assert str(path) in str(refused.value)


def test_a_grade_with_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"_id": "1", "text": "x"}) + "\n", encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n1\t1\t{'9' * 5000}\n", encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"test\.tsv line 2"):
        read_beir(tmp_path, "b")


def test_a_parquet_file_with_more_rows_than_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"token": pa.DictionaryArray.from_arrays(pa.array([0] * 3_000_000, pa.int8()), ["x"])})
    pq.write_table(table, path, compression="zstd", row_group_size=3_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(VocabgraftError, match=r"a\.parquet .*3,000,000 rows"):
        read_table(path, ("token",))


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_a_stage_may_print_a_line_of_any_length(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_project(tmp_path / "project", {})
    print_it = f"python -c \"print('9' * 3000000); print('x' * {LONGEST_LINE_OF_A_STAGE + 1}, end='')\""
    add_stage(root, "long", {"cmd": f"{print_it} && touch x", "deps": ["raw.txt"], "outs": ["x"]})
    monkeypatch.chdir(root)
    begun = time.process_time()
    assert main(["--no-server", *options]) == 0
    said = capsys.readouterr().out
    # A search for a progress bar that takes the square of a line's length would take hours here.
    assert time.process_time() - begun < 30
    shown = said if options else (root / "reports/logs/long.log").read_text(encoding="utf-8")
    assert shown.count("9") >= 3_000_000 and max(map(len, shown.splitlines())) < LONGEST_LINE_OF_A_STAGE + 100
