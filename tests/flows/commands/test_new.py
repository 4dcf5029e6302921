"""`vocabgraft new`: a project from the user's own files that validate_data accepts, or nothing at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.flows.invoke import cli
from vocabgraft.config.params import load_params

WORDS = "token\nnephrolith\nhemiparesis\n"
PAIRS = "anchor,positive,extra\n" + "".join(f"nephrolith {n},a stone number {n},x\n" for n in range(100))


@pytest.fixture
def files(in_folder: Path) -> Path:
    (in_folder / "words.csv").write_text(WORDS, encoding="utf-8")
    (in_folder / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    (in_folder / "notes.txt").write_text("the nephrolith was seen\n\nthe nephrolith was seen\n", encoding="utf-8")
    return in_folder


def made(*options: str) -> dict[str, Any]:
    assert cli("new")(["mine", "--vocabulary", "words.csv", *options, "--quiet"]) == 0
    loaded: dict[str, Any] = yaml.safe_load(Path("mine/params.yaml").read_text(encoding="utf-8"))
    load_params(Path("mine/params.yaml"))
    return loaded


def test_words_alone_make_a_project_without_datasets(files: Path) -> None:
    params = made()
    assert params["validate_data"] == {"vocabulary": "vocabulary.csv", "contexts": [], "datasets": []}
    assert params["register_model"]["gates"]["benefit"] is None
    kinds = Path("mine/data/raw/vocabulary.csv").read_text(encoding="utf-8").splitlines()
    assert kinds == ["token,kind,description", "nephrolith,word,", "hemiparesis,word,"]


def test_a_corpus_is_measured_by_fidelity(files: Path) -> None:
    assert made("--corpus", "notes.txt")["register_model"]["gates"]["benefit"] == "fidelity"


def test_pairs_and_a_corpus_are_read_by_their_columns(files: Path) -> None:
    params = made("--pairs", "pairs.csv", "--corpus", "notes.txt")
    dataset = params["validate_data"]["datasets"][0]
    assert (dataset["format"], dataset["files"]) == ("pairs", {"train": "pairs.csv"})
    gates = params["register_model"]["gates"]
    assert (gates["benefit"], gates["first_champion"]) == ("pairs.new_word.mrr", "any")
    assert Path("mine/data/raw/contexts.txt").read_text(encoding="utf-8") == "the nephrolith was seen\n"
    assert Path("mine/data/raw/pairs.csv").read_text(encoding="utf-8").startswith("anchor,positive\n")


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("sentence1,sentence2,score", "a nephrolith,a stone,0.5", ("scored_pairs", "pairs.new_word.spearman")),
        ("anchor,positive,negative", "a nephrolith,a stone,a dog", ("triplets", "pairs.new_word.mrr")),
        ("head,relation,tail", "nephrolith,IsA,stone", ("triples", "pairs.new_word.mrr")),
    ],
)
def test_the_format_follows_the_columns(files: Path, header: str, row: str, expected: tuple[str, str]) -> None:
    Path("pairs.csv").write_text("\n".join([header, *[row] * 900]) + "\n", encoding="utf-8")
    params = made("--pairs", "pairs.csv")
    gates = params["register_model"]["gates"]
    assert (params["validate_data"]["datasets"][0]["format"], gates["benefit"]) == expected
    assert gates["first_champion"] == "evidence"


@pytest.mark.parametrize(("words", "benefit", "first"), [(20, "fidelity", None), (150, "glosses.new_word.mrr", "any")])
def test_described_words_without_pairs_train_on_their_descriptions(
    files: Path, words: int, benefit: str, first: str | None
) -> None:
    rows = "".join(f"nephrolith{'x' * number},a stone number {number}\n" for number in range(words))
    Path("words.csv").write_text("token,description\n" + rows, encoding="utf-8")
    params = made("--corpus", "notes.txt")
    (dataset,) = params["validate_data"]["datasets"]
    assert (dataset["name"], dataset["from"], "files" in dataset) == ("glosses", "descriptions", False)
    gates = params["register_model"]["gates"]
    assert (gates["benefit"], gates.get("first_champion")) == (benefit, first)


def test_each_file_of_examples_is_a_dataset_and_the_larger_one_judges(files: Path) -> None:
    Path("links.csv").write_text("head,relation,tail\n" + "nephrolith,IsA,stone\n" * 10, encoding="utf-8")
    params = made("--pairs", "links.csv", "--pairs", "pairs.csv")
    datasets = params["validate_data"]["datasets"]
    assert [(one["name"], one["format"]) for one in datasets] == [("links", "triples"), ("pairs", "pairs")]
    assert params["register_model"]["gates"]["benefit"] == "pairs.new_word.mrr"
    assert Path("mine/data/raw/links.csv").is_file()


def test_a_handful_of_pairs_is_no_evidence(files: Path) -> None:
    Path("pairs.csv").write_text("anchor,positive\nnephrolith,stone\n", encoding="utf-8")
    assert made("--pairs", "pairs.csv")["register_model"]["gates"]["benefit"] == "fidelity"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--vocabulary", "missing.csv"], "missing.csv"),
        (["--vocabulary", "pairs.csv"], "token"),
        (["--vocabulary", "words.csv", "--pairs", "words.csv"], "anchor, positive"),
        (["--vocabulary", "words.csv", "--pairs", "pairs.csv", "--pairs", "pairs.csv"], "twice"),
        (["--vocabulary", "words.csv", "--corpus", "none.txt"], "none.txt"),
        (["--vocabulary", "words.csv", "--base", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_written(
    options: list[str], told: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in files.iterdir())
    assert cli("new")(["mine", *options]) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in files.iterdir()) == before


def test_a_folder_that_exists_is_kept(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "mine").mkdir()
    assert cli("new")(["mine", "--vocabulary", "words.csv"]) == 2
    assert "mine exists" in capsys.readouterr().err
    assert list((files / "mine").iterdir()) == []


def test_dvc_runs_the_first_stages_of_the_project(tiny_base: Path, files: Path) -> None:
    (files / "words.csv").write_text("token\nnephrolith\n", encoding="utf-8")
    made("--pairs", "pairs.csv", "--corpus", "notes.txt", "--base", str(tiny_base))
    bins = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bins}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dvc", "repro", "extend_tokenizer"]
    done = subprocess.run(command, cwd="mine", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    tokens = json.loads(Path("mine/data/extend_tokenizer/tokens.json").read_text(encoding="utf-8"))
    assert "nephrolith" in json.dumps(tokens)
