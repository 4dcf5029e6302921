"""Refused rows take part in nothing, repeats are dropped and counted, faults are reported before the Data Docs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from tasks.support.expectations import write_data_docs
from tasks.support.stage import run_stage
from tasks.validate_data import validate_data
from vocabgraft.config.params import load_params
from vocabgraft.data.judgement import JudgedTable, Judgement, judge, read_raw
from vocabgraft.data.rules import AtMostLong, Between, Empty, Filled, Matches, OneOf, Rule
from vocabgraft.data.splits import split_of
from vocabgraft.models.base import tokenizer_file
from vocabgraft.tokens.tokenizer import load_raw_tokenizer

from ..conftest import build_tiny_project
from .test_bad_input import append, setting, write

RAW, OUT, SITE = Path("data/raw"), Path("data/validate_data"), Path("reports/data_docs")
ARGUMENTS = ["--raw", str(RAW), "--out", str(OUT), "--site", str(SITE)]


def judged() -> Judgement:
    """The project's raw files, judged."""
    params = load_params()
    base = load_raw_tokenizer(tokenizer_file(Path(params.base.model)))
    raw = read_raw(RAW, params.validate_data)
    return judge(raw, RAW, base, params.validate_data, params.extend_tokenizer.max_token_characters)


def uses() -> dict[str, int]:
    """The accepted words with their uses."""
    rows = judged().tables["vocabulary"].accepted
    return dict(zip(rows["token"], rows["uses"], strict=True))


def refused() -> list[tuple[str, int | None]]:
    """File and row of what is refused."""
    return [(refusal.file, refusal.row) for refusal in judged().refusals]


def run() -> int:
    return run_stage(validate_data, ARGUMENTS)


@pytest.mark.parametrize(
    "rows",
    [
        ["hepatoma ,word,pain in the liver"],
        ["a hepatoma,word,pain in the liver", "the hepatoma,word,pain in the liver"],
        ["hepatoma\x07,word,pain in the liver", " hepatoma,word,pain in the liver"],
        # Each of these is found where the word would be: refused, it must give the place back.
        ["the hepatoma of,symbol,pain", "hepatoma of the\u2003a,word,pain in the liver"],
        ["hepatoma,noun,pain in the liver"],
    ],
)
def test_a_refused_word_changes_no_count_of_a_good_one(rows: list[str], tiny_project: Path) -> None:
    before = uses()
    assert before["hepatoma"] == 29
    content = (RAW / "vocabulary.csv").read_text(encoding="utf-8").splitlines()
    for lines in ([content[0], *rows, *content[1:]], [*content, *rows]):
        write("vocabulary.csv", "\n".join(lines) + "\n")()
        assert uses() == before
        assert {file for file, _ in refused()} == {"vocabulary.csv"}
        assert len(refused()) == len(rows)


@pytest.mark.usefixtures("without_data_docs")
def test_a_refused_word_leaves_the_good_one_in_the_quarantine(tiny_project: Path) -> None:
    setting("validate_data.on_invalid", "quarantine")()
    append("vocabulary.csv", "hepatoma ,word,pain in the liver")()
    assert run() == 0
    kept = pq.read_table(OUT / "vocabulary.parquet").to_pydict()
    assert dict(zip(kept["token"], kept["uses"], strict=True))["hepatoma"] == 29
    assert "hepatoma " not in kept["token"]


def test_a_rare_word_that_hides_a_good_one_is_refused_alone(tiny_project: Path) -> None:
    append("contexts.txt", *(f"hepat-cells of the {word}" for word in ("dog", "cat", "fish")))()
    append("vocabulary.csv", "hepat,word,of the liver", "hepat-cell,word,a cell of the liver")()
    # Of two words that begin at one place only the longer is tried, so that `hepat` is not found beside the other.
    assert refused() == [("vocabulary.csv", 9)]
    assert uses()["hepat"] == 3


def test_texts_of_refused_rows_are_not_counted(tiny_project: Path) -> None:
    append("vocabulary.csv", "cardiolith,word,a stone of the heart")()
    group = next(f"g{n}" for n in range(99) if split_of(f"g{n}", 0.15, 0.25) == "train")
    append("terms.csv", f"a cardiolith,bad \x07 sign,{group}", f"the cardiolith,also \x07 bad,{group}")()
    assert ("vocabulary.csv", 8) in refused()
    append("contexts.txt", "a cardiolith of the dog", "a cardiolith of the cat")()
    assert uses()["cardiolith"] == 2


def test_a_refused_row_contradicts_hides_and_repeats_nothing(tiny_project: Path) -> None:
    append("vocabulary.csv", "<|Antonym|>,special,is the opposite of")()
    setting("validate_data.min_uses", 0)()
    # The first has no token, so the second cannot contradict it, and what repeats the fourth stands for itself.
    append("relations.csv", "hot,Synonym,warm", "hot,Antonym,warm")()
    append("retention.csv", "a b,c d,7", "a b,c d,0.7")()
    assert refused() == [("retention.csv", 64), ("relations.csv", 50)]


def test_a_refused_row_that_is_held_out_leaks_nothing(tiny_project: Path) -> None:
    write("test.csv", "anchor,positive,group\na nephrolith of the dog,,q\nan unseen text,another,q\n")()
    setting("validate_data.datasets.1.files.test", "test.csv")()
    setting("validate_data.datasets.1.held_out", {"validation": 0.0, "test": 0.0})()
    assert refused() == [("test.csv", 2)]


def test_a_relation_whose_token_is_refused_takes_its_triples_with_it_and_they_count_no_words(
    tiny_project: Path,
) -> None:
    append("vocabulary.csv", "<|PartOf|>,special,", "cardiolith,word,a stone of the heart")()
    append("relations.csv", "a cardiolith,PartOf,heart", "the cardiolith,PartOf,dog", "old cardiolith,PartOf,cat")()
    assert refused() == [("vocabulary.csv", 8), ("vocabulary.csv", 9), *(("relations.csv", n) for n in (50, 51, 52))]
    assert [refusal.follows for refusal in judged().refusals] == [False, False, True, True, True]


REPEATS: dict[str, tuple[str, list[str]]] = {
    "vocabulary": ("vocabulary.csv", ["hepatoma,word,pain in the liver"]),
    "contexts": ("contexts.txt", ["the Nephrolith of the  a is high", "the nephrolith of the a is high"]),
    "retention": ("retention.csv", ["a the is and,THE the of the dog,0.10"]),
    "relations": ("relations.csv", ["Old nephrolith,IsA,kind  nep"]),
    "terms": ("terms.csv", ["a stone in the kidney of the dog,A nephrolith of the dog,a nephrolith"]),
}


@pytest.mark.usefixtures("without_data_docs")
@pytest.mark.parametrize("table", REPEATS)
def test_repeated_rows_are_dropped_and_counted(table: str, tiny_project: Path) -> None:
    before = {name: len(found.accepted) for name, found in judged().tables.items()}
    file, lines = REPEATS[table]
    append(file, *lines)()
    assert run() == 0
    report = json.loads((OUT / "report.json").read_text(encoding="utf-8"))
    assert (report["repeated"], report["rejected"]) == ({table: len(lines)}, 0)
    assert {name: len(found.accepted) for name, found in judged().tables.items()} == before


def test_one_text_with_two_embeddings_is_a_contradiction_unless_they_differ_by_rounding(tiny_project: Path) -> None:
    rows = [{"text": f"a dog {n}", "embedding": [n, 0.5]} for n in range(1, 4)]
    rows += [{"text": "A dog 1", "embedding": [1.000001, 0.5]}, {"text": "a dog 2", "embedding": [0.5, 2]}]
    (RAW / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["validate_data"]["datasets"].append(
        {"name": "own", "format": "teacher_embeddings", "files": {"train": "own.jsonl"}}
    )
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert refused() == [("own.jsonl", 5)]
    assert judged().repeated == {"own": 1}


def test_all_kinds_of_faults_of_all_files_are_reported_at_once(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append("terms.csv", b"caf\xe9,b,c", "a,b,c,d", *(f"a dog {number},,x" for number in range(20)), "x\0y,b,c")()
    append("retention.csv", "a b,c d,high", "a b,c e,7")()
    append("contexts.txt", b"\xff")()
    append("vocabulary.csv", "kidney,word,again")()
    (RAW / "relations.csv").unlink()
    assert run() == 1
    told = capsys.readouterr().err
    assert told.startswith("validate_data: 28 problems in the raw data:")
    for fault in (
        "terms.csv row 50: is not UTF-8",
        "terms.csv row 51: has 4 fields",
        "terms.csv row 52, positive ''",
        "and 19 more of this kind",
        "terms.csv row 72: contains a NUL",
        "retention.csv row 64, score 'high'",
        "retention.csv row 65, score '7'",
        "contexts.txt row 49: is not UTF-8",
        "vocabulary.csv row 8, token 'kidney'",
        "relations.csv is missing",
    ):
        assert fault in told, fault
    assert len(pd.read_csv(SITE / "rejected.csv")) == 28
    assert not OUT.exists()


@pytest.mark.usefixtures("without_data_docs")
def test_lines_that_cannot_be_read_are_quarantined_as_rows_are(tiny_project: Path) -> None:
    before = {name: len(found.accepted) for name, found in judged().tables.items()}
    setting("validate_data.on_invalid", "quarantine")()
    append("terms.csv", b"caf\xe9,b,c", "a,b,c,d")()
    assert run() == 0
    assert pd.read_csv(OUT / "rejected.csv")["row"].tolist() == [50, 51]
    assert {name: len(found.accepted) for name, found in judged().tables.items()} == before


@pytest.mark.parametrize("name", ["vocabulary.csv", "contexts.txt", "retention.csv", "relations.csv", "terms.csv"])
@pytest.mark.parametrize("content", [None, "", "\ufeff\n"])
def test_a_file_that_cannot_be_used_makes_no_fault_of_another(
    name: str, content: str | None, tiny_project: Path
) -> None:
    (RAW / name).unlink()
    if content is not None:
        (RAW / name).write_text(content, encoding="utf-8")
    assert refused() == [(name, None)]


def test_uses_are_not_judged_where_a_file_cannot_be_read(tiny_project: Path) -> None:
    setting("validate_data.min_uses", 1000)()
    (RAW / "contexts.txt").unlink()
    assert refused() == [("contexts.txt", None)]


def test_a_split_of_several_files_and_patterns_is_read_in_order(tiny_project: Path) -> None:
    lines = (RAW / "terms.csv").read_text(encoding="utf-8").splitlines()
    expected = judged().tables["terms"].accepted
    for number, start in enumerate(range(1, len(lines), 20)):
        write(f"terms-{number}.csv", "\n".join([lines[0], *lines[start : start + 20]]) + "\n")()
    for given in (["terms-0.csv", "terms-1.csv", "terms-2.csv"], "terms-*.csv", ["terms-0.csv", "terms-?.csv"]):
        setting("validate_data.datasets.1.files.train", given)()
        found = judged().tables["terms"].accepted
        assert found.drop(columns=["file", "row"]).equals(expected.drop(columns=["file", "row"]))
        assert set(found["file"]) == {"terms-0.csv", "terms-1.csv", "terms-2.csv"}
    setting("validate_data.contexts", ["context*.txt"])()
    assert refused() == []
    setting("validate_data.datasets.1.files.train", "nothing-*.csv")()
    assert refused() == [("nothing-*.csv", None)]


def groups_before_and_after(write_rows: Callable[[list[dict[str, Any]]], str]) -> tuple[dict[str, str], dict[str, str]]:
    """The split of each anchor, without and with a row whose group is missing."""
    numbers = [900_000_000_000_207_008 + number // 3 for number in range(48)]
    rows = [{"anchor": f"a dog {n}", "positive": f"a cat {n}", "group": group} for n, group in enumerate(numbers)]
    found = []
    for content in (rows, [*rows, {"anchor": "alone", "positive": "by itself", "group": None}]):
        setting("validate_data.datasets.1.files.train", write_rows(content))()
        table = judged().tables["terms"].accepted
        assert set(table["group"].dropna()) == set(map(str, numbers))
        found.append(dict(zip(table["anchor"], table["split"], strict=True)))
    return found[0], found[1]


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    (RAW / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "t.jsonl"


def as_parquet(rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows), RAW / "t.parquet")
    assert pq.read_schema(RAW / "t.parquet").field("group").type == pa.int64()
    return "t.parquet"


def as_json(rows: list[dict[str, Any]]) -> str:
    (RAW / "t.json").write_text(json.dumps(rows), encoding="utf-8")
    return "t.json"


@pytest.mark.parametrize("write_rows", [as_jsonl, as_json, as_parquet])
def test_a_row_without_a_group_moves_no_other_row(
    write_rows: Callable[[list[dict[str, Any]]], str], tiny_project: Path
) -> None:
    before, after = groups_before_and_after(write_rows)
    assert set(before.values()) == {"train", "validation", "test"}
    assert {anchor: after[anchor] for anchor in before} == before


TABLE = pd.DataFrame(
    {
        "text": pd.Series(["a", None, " ", "a b", "\u00a0x", "x\x07", "abcdef"], dtype=object),
        "number": pd.Series([0.5, None, 2.0, -1.0, 0.0, 1.0, float("inf")], dtype=object),
        "only": [1, 1, 0, 1, 0, 1, 1],
        "file": "t.csv",
        "row": range(2, 9),
    }
)
CHECKS: list[tuple[str, Any]] = [
    ("text", Filled()),
    ("text", Empty()),
    ("text", Matches(r"^\s*$", wanted=False)),
    ("text", Matches(r"^\s", wanted=False)),
    ("text", Matches("[\u0000-\u0008]", wanted=False)),
    ("text", Matches("a", wanted=True)),
    ("text", AtMostLong(3)),
    ("text", OneOf(("a", "a b"))),
    ("number", Between(0, 1)),
    ("number", Between(least=0.5)),
    ("number", Between(most=0.5)),
]


def test_great_expectations_shows_what_was_judged(tmp_path: Path) -> None:
    for where in ((), (("only", 1),)):
        rules = [Rule(column, check, "no", column, where) for column, check in CHECKS]
        table = JudgedTable("t", TABLE.copy())
        table.judge(rules)
        results = write_data_docs([table], tmp_path / "site")["t"]
        for rule, result in zip(rules, results, strict=True):
            expected = list(rule.failures(TABLE).index)
            assert expected or where, rule
            assert result.result["unexpected_index_list"] == expected, rule
    pages = list((tmp_path / "site").rglob("*.html"))
    assert tmp_path / "site" / "index.html" in pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "Content-Security-Policy" in text and ".breadcrumb" in text and 'name="viewport"' in text
        assert "\x08" not in text, "a control character of a pattern is shown as an escape"
        assert not re.findall(r'(?:src|href)="(?:https?:)?//|<script|url\(', text), page


BEFORE_DATA_DOCS = """
import os, sys
from tasks.support.stage import ToldFirstError, _parameters
from tasks.validate_data import validate_data
from pathlib import Path
from vocabgraft.errors import VocabgraftError
from vocabgraft.config.params import load_params
for project in sys.argv[1:]:
    os.chdir(project)
    try:
        paths = {"raw": Path("data/raw"), "out": Path("data/validate_data"), "site": Path("reports/data_docs")}
        validate_data(**paths, **_parameters(validate_data, load_params()))
    except VocabgraftError as error:
        print(error)
# The tokenizer that the model uses comes from transformers, which takes about 2 s.
heavy = {"great_expectations", "datasets", "sentence_transformers", "mlflow", "pyarrow.dataset"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
EARLY_FAULTS: list[tuple[Callable[[], object], str]] = [
    (append("terms.csv", "a dog,,x"), "terms.csv row 50, positive ''"),
    (append("vocabulary.csv", "kidney,word,again"), "is one token in the base already"),
    ((RAW / "terms.csv").unlink, "terms.csv is missing"),
]


def test_a_fault_is_reported_before_anything_slow_is_imported(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [tmp_path / str(number) for number in range(len(EARLY_FAULTS))]
    for root, (plant, _) in zip(roots, EARLY_FAULTS, strict=True):
        build_tiny_project(root, tiny_base)
        monkeypatch.chdir(root)
        plant()
    command = [sys.executable, "-c", BEFORE_DATA_DOCS, *map(str, roots)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    for _, told in EARLY_FAULTS:
        assert ran.stdout.count(told) == 1, ran.stdout + ran.stderr
    assert "loaded: []" in ran.stdout


@pytest.mark.usefixtures("without_data_docs")
def test_rows_that_a_shared_text_moved_and_groups_that_were_cut_are_reported(tiny_project: Path) -> None:
    of = {
        split: next(f"lone {n}" for n in range(99) if split_of(f"lone {n}", 0.15, 0.25) == split)
        for split in ("train", "test")
    }
    write("terms.csv", "anchor,positive\n" + "".join(f"a nephrolith {n},stone {n}\n" for n in range(60)))()
    append("terms.csv", *(f"{anchor},one text of both" for anchor in of.values()))()
    append("terms.csv", *(f"the hepatoma {n},disease" for n in range(20)))()
    assert run() == 0
    moved = (
        pd.read_csv(OUT / "moved_by_shared_texts.csv").query("joined_group.str.startswith('lone')").to_dict("records")
    )
    assert len(moved) == 1
    assert (moved[0]["own_group"], moved[0]["split"]) in [(of["train"], "test"), (of["test"], "train")]
    assert moved[0]["joined_group"] in set(of.values()) - {moved[0]["own_group"]}
    report = json.loads((OUT / "report.json").read_text(encoding="utf-8"))
    (warning,) = [entry for entry in report["warnings"] if entry.startswith("dataset terms")]
    assert "20 of 82 rows" in warning
    assert "disease" in warning
    rows = [
        row
        for split in ("train", "validation", "test")
        for row in pq.read_table(OUT / "datasets" / "terms" / f"{split}.parquet").to_pylist()
    ]
    assert len(rows) == 82
