"""Every format through validate_data and train_adapter: typed, judged by its loss, and refused with one message."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks import validate_data as stage
from tasks.support.stage import run_stage
from tasks.validate_data import validate_data
from vocabgraft.data.judgement import Judgement

OUT = Path("data/validate_data")
ARGUMENTS = ["--raw", "data/raw", "--out", str(OUT), "--site", "reports/data_docs"]
WORDS = ("nephrolith", "thrombopenia", "hepatoma", "gastrodyn")
TEXTS = [f"{head} {word} {number}" for head in ("a", "the", "high") for word in WORDS for number in range(4)]
PLACES = range(len(TEXTS))
ROWS: dict[str, list[dict[str, Any]]] = {
    "triplets": [
        {"anchor": text, "positive": f"{text} right", "negative": f"wrong {place}", "negative_2": f"bad {place}"}
        for place, text in enumerate(TEXTS)
    ],
    "scored_pairs": [{"sentence1": t, "sentence2": f"{t} too", "score": n / 50} for n, t in enumerate(TEXTS)],
    "labelled_pairs": [{"sentence1": t, "sentence2": f"{t} too", "label": n % 2} for n, t in enumerate(TEXTS)],
    "labelled_texts": [{"text": t, "label": 10 * (n % 3)} for n, t in enumerate(TEXTS)],
    "texts": [{"text": t, "group": f"group {n % 9}"} for n, t in enumerate(TEXTS)],
    "teacher_embeddings": [{"text": t, "embedding": [n / 7, 0.5, -1.0]} for n, t in enumerate(TEXTS)],
    "margins": [
        {"query": t, "positive": f"{t} right", "negative": f"wrong {n}", "margin": n / 9 - 2}
        for n, t in enumerate(TEXTS)
    ],
}
TYPES = {"score": pa.float64(), "margin": pa.float64(), "label": pa.int64(), "embedding": pa.list_(pa.float32())}


@pytest.fixture(autouse=True)
def data_docs_of_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """validate_data writes the Data Docs of the dataset `own` alone."""
    write = stage._write_data_docs

    def only(judgement: Judgement, site: Path) -> None:
        tables = {name: table for name, table in judgement.tables.items() if name == "own"}
        write(replace(judgement, tables=tables), site)

    monkeypatch.setattr(stage, "_write_data_docs", only)


def add(dataset_format: str, rows: list[dict[str, Any]] | None = None, **settings: Any) -> None:
    """Add a dataset named `own` to the project, as JSONL."""
    lines = [json.dumps(row) for row in rows or ROWS[dataset_format]]
    Path("data/raw/own.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    entry = {"name": "own", "format": dataset_format, "files": {"train": "own.jsonl"}}
    params["validate_data"]["datasets"].append(entry | {"held_out": {"validation": 0.3}} | settings)
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def changed(dataset_format: str, **values: Any) -> list[dict[str, Any]]:
    """The rows of a format, the third with other values."""
    rows = [dict(row) for row in ROWS[dataset_format]]
    rows[2] |= values
    return rows


@pytest.mark.parametrize("dataset_format", ROWS)
def test_every_format_is_accepted_with_its_types(dataset_format: str, tiny_project: Path) -> None:
    add(dataset_format)
    assert run_stage(validate_data, ARGUMENTS) == 0
    splits = {name: pq.read_table(OUT / f"datasets/own/{name}.parquet") for name in ("train", "validation", "test")}
    assert sum(len(table) for table in splits.values()) == len(TEXTS)
    assert len(splits["validation"]) > 0
    assert len({table.schema for table in splits.values()}) == 1
    for field in splits["train"].schema:
        assert field.type == TYPES.get(field.name, pa.string())
    assert set(splits["train"].column_names) == set(ROWS[dataset_format][0])
    given = sorted(str(row.get("label", row.get("score", row.get("margin")))) for row in ROWS[dataset_format])
    kept = [row for table in splits.values() for row in table.to_pylist()]
    assert sorted(str(row.get("label", row.get("score", row.get("margin")))) for row in kept) == given


@pytest.mark.parametrize(
    ("dataset_format", "loss", "rows", "told"),
    [
        (
            "scored_pairs",
            None,
            [row | {"score": "high"} for row in ROWS["scored_pairs"]],
            "score 'high': is not a number; allowed: a number",
        ),
        (
            "scored_pairs",
            "CosineSimilarityLoss",
            changed("scored_pairs", score=4),
            "out of range; allowed: a number",
        ),
        ("scored_pairs", None, changed("scored_pairs", score=None), "row 3, score '': is empty; allowed: a number"),
        ("labelled_pairs", None, changed("labelled_pairs", label=2), "whole number from 0 to 1 (ContrastiveLoss)"),
        ("labelled_pairs", "SoftmaxLoss", changed("labelled_pairs", label=7), "whole number from 0 to 2 (SoftmaxLoss)"),
        ("labelled_pairs", None, changed("labelled_pairs", label=0.5), "label '0.5': is not a label; allowed: a whole"),
        (
            "labelled_texts",
            None,
            changed("labelled_texts", label=-1),
            "is out of range; allowed: a whole number",
        ),
        (
            "labelled_texts",
            None,
            changed("labelled_texts", text=TEXTS[0]),
            "contradicts own.jsonl row 1, the same",
        ),
        ("labelled_texts", None, [row | {"label": 1} for row in ROWS["labelled_texts"]], "fewer than two labels"),
        ("triplets", None, changed("triplets", negative_2=TEXTS[2]), "is a negative that equals the text"),
        ("triplets", None, changed("triplets", positive=TEXTS[2]), "format: texts with loss: SimCSELoss"),
        ("triplets", None, changed("triplets", negative_2=None), "negative_2 '': is empty"),
        (
            "teacher_embeddings",
            None,
            changed("teacher_embeddings", embedding=[1.0]),
            "of 1 numbers, but most have 3",
        ),
        ("teacher_embeddings", None, changed("teacher_embeddings", embedding="x"), "allowed: a list of numbers"),
        ("margins", None, changed("margins", margin="wide"), "margin 'wide': is not a number"),
    ],
)
def test_bad_rows_are_reported_with_what_is_allowed(
    dataset_format: str,
    loss: str | None,
    rows: list[dict[str, Any]],
    told: str,
    tiny_project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(dataset_format, rows, loss=loss)
    assert run_stage(validate_data, ARGUMENTS) == 1
    errors = capsys.readouterr().err
    assert told in errors
    assert "Traceback" not in errors
    assert not OUT.exists()


def test_vectors_in_a_csv_are_refused(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add("teacher_embeddings", files={"train": "own.csv"})
    Path("data/raw/own.csv").write_text("text,embedding\na,1\n", encoding="utf-8")
    assert run_stage(validate_data, ARGUMENTS) == 1
    assert "lists of numbers, which .csv cannot store; save it as .parquet or .jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"loss": "TripletLoss"},
            "TripletLoss does not fit the format texts (it reads triplets); losses that do",
        ),
        ({"loss": "DenoisingAutoEncoderLoss"}, "loss: DenoisingAutoEncoderLoss ties its decoder to the encoder"),
        ({"weight": 0}, "weight' is 0; it should be greater than 0"),
    ],
)
def test_a_misfit_is_refused_when_the_file_is_read(
    settings: dict[str, Any], told: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add("texts", **settings)
    assert run_stage(validate_data, ARGUMENTS) == 1
    errors = capsys.readouterr().err
    assert told in errors
    assert "validate_data.datasets.2" in errors
