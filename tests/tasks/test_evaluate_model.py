"""The stages train_control and evaluate_model: files, console, and what the user asks for beyond the default."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tasks.evaluate_model import SPEED, evaluate_model
from tasks.extend_tokenizer import extend_tokenizer
from tasks.merge_adapter import merge_adapter
from tasks.resize_base import resize_base
from tasks.support.stage import run_stage
from tasks.train_adapter import train_adapter
from tasks.train_control import train_control
from tasks.validate_data import validate_data
from tests.conftest import ROOT, build_tiny_project, write_lines
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import hash_files, read_json

OUT, CONTROL = Path("data/evaluate_model"), Path("data/train_control")
BENCHMARK = {"name": "cases", "folder": "cases", "format": "beir"}


def change(section: str, **values: Any) -> None:
    """Set keys of a section of params.yaml."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def write_benchmark(folder: Path, *more: str) -> None:
    """Two judged questions over three documents."""
    documents = ["a stone in the kidney", "pain of the dog", "low blood"]
    corpus = [json.dumps({"_id": str(place), "text": text}) for place, text in enumerate(documents)]
    write_lines(folder / "corpus.jsonl", [*corpus, *more])
    queries = ["what is a nephrolith", "what does the dog have"]
    write_lines(
        folder / "queries.jsonl", [json.dumps({"_id": str(place), "text": text}) for place, text in enumerate(queries)]
    )
    write_lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", "0\t0\t1", "1\t1\t1"])


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The tiny project with a benchmark, up to the merged model."""
    root = tmp_path_factory.mktemp("evaluated")
    build_tiny_project(root, tiny_base)
    stages: tuple[Callable[..., None], ...] = (
        validate_data,
        extend_tokenizer,
        resize_base,
        train_adapter,
        merge_adapter,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        change("resize_base", initialisation="subword_mean")
        change("evaluate_model", benchmarks=[BENCHMARK])
        write_benchmark(root / "data" / "raw" / "cases")
        for stage in stages:
            assert run_stage(stage, []) == 0
    return root


@pytest.fixture
def project(merged: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The merged project as the working folder, its params.yaml as it was."""
    monkeypatch.chdir(merged)
    # MLflow's migrations, run by tests before these, switch off every logger that is there.
    for name in ("tasks.evaluate_model", "tasks.train_control", "vocabgraft"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    before = Path("params.yaml").read_text(encoding="utf-8")
    yield merged
    Path("params.yaml").write_text(before, encoding="utf-8")


def test_without_a_control_every_file_is_there_and_two_runs_give_the_same_bytes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(train_control, []) == 0
    assert read_json(CONTROL / "report.json") == {"trained": False}
    assert run_stage(evaluate_model, []) == 0
    first = hash_files(OUT)
    assert first.keys() == {
        "metrics.json", "key_metrics.json", "comparison.json", "retention.json", "tokens.json", "searches.json",
        "gains.json", "items.parquet",
    }  # fmt: skip
    metrics = read_json(OUT / "metrics.json")
    assert metrics.keys() == {"base", "resized", "merged"}
    assert metrics["merged"]["cases"]["all"]["queries"] == 2
    key = read_json(OUT / "key_metrics.json")
    assert key["relations_mrr"] == metrics["merged"]["relations"]["new_word"]["mrr"]
    assert key["tokens_per_text"] == metrics["merged"]["tokens_per_text"]
    assert read_json(SPEED).keys() == {"base_texts_per_second", "merged_texts_per_second", "ratio", "merged_digest"}
    assert read_json(SPEED)["merged_digest"] == read_json(Path("data/merge_adapter/manifest.json"))["digest"]
    assert "control" not in pq.read_table(OUT / "items.parquet").column_names
    told = capsys.readouterr().out
    assert ": smoke figure" in told
    assert "texts a second" in told
    assert run_stage(evaluate_model, []) == 0
    assert hash_files(OUT) == first


def test_a_control_is_trained_on_the_base_and_evaluated_beside_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change("evaluate_model", control=True)
    assert run_stage(train_control, []) == 0
    report = read_json(CONTROL / "report.json")
    assert (report["trained"], report["epochs"]) == (True, 1)
    assert report["examples"] == read_json(Path("data/train_adapter/report.json"))["examples"]
    first = hash_files(CONTROL)
    assert run_stage(train_control, []) == 0
    assert hash_files(CONTROL) == first
    assert run_stage(evaluate_model, []) == 0
    metrics, comparison = read_json(OUT / "metrics.json"), read_json(OUT / "comparison.json")
    assert metrics.keys() == {"base", "resized", "merged", "control"}
    items = pq.read_table(OUT / "items.parquet").to_pydict()
    similarities = [
        [items[name][place] for place, score in enumerate(items["score"]) if score is not None]
        for name in ("base", "control")
    ]
    assert similarities[0] != similarities[1]
    assert comparison["control"]["recompute"]["control"] == 100.0
    assert comparison["control"]["recompute"]["merged"] < 100.0
    assert "control: " in capsys.readouterr().out


def test_without_a_control_the_stage_loads_neither_torch_nor_a_model(project: Path) -> None:
    code = (
        "import sys; from tasks.support.stage import run_stage; from tasks.train_control import train_control\n"
        "assert run_stage(train_control, []) == 0\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'mlflow') if name in sys.modules])"
    )
    # The tiny project names its stages in dvc.yaml; the code is this one's.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_cannot_be_measured_is_said_on_the_console(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change("evaluate_model", reference_texts=9)
    assert run_stage(train_control, []) == 0
    assert run_stage(evaluate_model, []) == 0
    assert (
        "warning: the reference corpus has 9 texts, too few for 10 neighbors (at least 20)" in capsys.readouterr().out
    )
    retention = read_json(OUT / "retention.json")
    assert retention["neighbours_kept"] is None
    assert any("too few for 10 neighbors" in problem for problem in retention["problems"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"benchmarks": [BENCHMARK | {"name": "terms"}]}, "a benchmark named terms, the name of a dataset or metric"),
        ({"benchmarks": [BENCHMARK, BENCHMARK]}, "benchmarks share the name cases"),
        ({"benchmarks": [BENCHMARK | {"folder": "../elsewhere"}]}, "does not name a file inside data/raw/"),
        ({"benchmarks": [BENCHMARK | {"format": "trec"}]}, "evaluate_model.benchmarks.0.format"),
        ({"benchmarks": [BENCHMARK | {"folder": "absent"}]}, "BEIR's layout is corpus.jsonl, queries.jsonl and"),
        ({"mteb_tasks": ["NFCorpus"]}, "mteb_tasks lists NFCorpus"),
    ],
)
def test_what_the_evaluation_cannot_read_is_refused_before_anything_is_trained(
    settings: dict[str, Any],
    told: str,
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    before = hash_files(Path("data/validate_data"))
    change("evaluate_model", **settings)
    assert run_stage(validate_data, []) == 1
    errors = capsys.readouterr().err
    assert told in errors
    assert "Traceback" not in errors
    assert hash_files(Path("data/validate_data")) == before


def test_a_bad_line_of_a_benchmark_is_named_by_file_and_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(project / "data" / "raw" / "cases", "{")
    assert run_stage(validate_data, []) == 1
    assert "corpus.jsonl line 4: it is not JSON" in capsys.readouterr().err
    write_benchmark(project / "data" / "raw" / "cases")


def test_a_loss_that_lora_cannot_train_stops_a_control_when_the_file_is_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_lora(name: str, arguments: Any, method: str, *rest: Any) -> None:
        if method == "lora":
            raise ValueError("its weights are frozen")

    monkeypatch.setattr("vocabgraft.config.params.check_method", refuse_lora)
    assert not load_params().evaluate_model.control
    change("evaluate_model", control=True)
    told = r"evaluate_model\.control trains LoRA .* that of relations does not allow it: its weights are frozen"
    with pytest.raises(VocabgraftError, match=told):
        load_params()
