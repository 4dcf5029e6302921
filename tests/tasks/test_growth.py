"""The nightly case: a second run on the model of the first keeps its tokens and adds the new ones alone."""

import importlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.support.stage import run_stage

from ..conftest import ROOT, build_tiny_project

pytestmark = pytest.mark.usefixtures("without_data_docs")

RAW, VALIDATED, EXTENDED = Path("data/raw"), Path("data/validate_data"), Path("data/extend_tokenizer")
FIRST = ["nephrolith", "thrombopenia", "hepatoma", "gastrodyn", "<|IsA|>", "<|MadeOf|>"]


def run(*stages: str) -> int:
    """Run stages as dvc.yaml would, until one fails."""
    defined = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in stages:
        stage = getattr(importlib.import_module(f"tasks.{name}"), name)
        if code := run_stage(stage, shlex.split(defined[name]["cmd"])[3:]):
            return code
    return 0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append(name: str, *lines: str) -> None:
    with (RAW / name).open("a", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)


def put(section: str, key: str, value: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def first_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first run up to the resized base, which is the base of the second."""
    root = tmp_path_factory.mktemp("grown")
    build_tiny_project(root, tiny_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run("validate_data", "extend_tokenizer", "resize_base") == 0
        shutil.copytree("data/resize_base", "first")
        shutil.copytree(EXTENDED, "extended_first")
        put("base", "model", "./first")
    return root


@pytest.fixture
def second_run(first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, before its second run, as the working folder."""
    root = tmp_path / "project"
    shutil.copytree(first_run, root)
    monkeypatch.chdir(root)
    for made in (VALIDATED, EXTENDED, Path("data/resize_base")):
        shutil.rmtree(made)
    return root


def test_the_first_run_reports_each_token_with_its_subword_tokens_and_texts(first_run: Path) -> None:
    report = read(first_run / "extended_first" / "report.json")
    tokens = read(first_run / "extended_first" / "tokens.json")
    assert [entry["text"] for entry in report["tokens"]] == FIRST
    assert [(entry["id"], entry["pieces"]) for entry in report["tokens"]] == [(t["id"], t["pieces"]) for t in tokens]
    assert report["tokens"][0]["read_as"] == ["n", *(f"##{letter}" for letter in "ephrolith")]
    assert all(entry["texts"] > 0 and not entry["retrained"] for entry in report["tokens"])
    assert report["kept"] == []
    assert 0 < report["texts_changed"] <= report["texts"]
    assert report["tokens_per_text_after"] < report["tokens_per_text_before"]


def test_a_second_run_adds_the_new_words_alone(second_run: Path) -> None:
    append("vocabulary.csv", "cholelith,word,stone in the liver")
    append("contexts.txt", "a cholelith is high", "the cholelith of a nephrolith is high")
    assert run("validate_data", "extend_tokenizer", "resize_base") == 0
    first = {entry["text"]: entry["id"] for entry in read(Path("extended_first/tokens.json"))}
    (token,) = read(EXTENDED / "tokens.json")
    assert (token["text"], token["id"]) == ("cholelith", max(first.values()) + 1)
    report = read(EXTENDED / "report.json")
    assert {entry["text"]: entry["id"] for entry in report["kept"]} == first
    assert report["texts_changed"] == report["tokens"][0]["texts"] == 2
    assert read(VALIDATED / "report.json")["new_tokens"] == {"word": 1}
    assert read(VALIDATED / "report.json")["kept_tokens"] == len(FIRST)


def test_the_rows_of_the_first_run_stay_as_they_were(second_run: Path) -> None:
    import torch
    from safetensors.torch import load_file

    append("vocabulary.csv", "cholelith,word,stone in the liver")
    append("contexts.txt", "a cholelith is high", "the cholelith of a nephrolith is high")
    put("extend_tokenizer", "retrain", ["<|IsA|>"])
    assert run("validate_data", "extend_tokenizer", "resize_base") == 0
    assert [entry["text"] for entry in read(EXTENDED / "tokens.json")] == ["<|IsA|>", "cholelith"]
    name = "embeddings.word_embeddings.weight"
    before, after = (load_file(Path(folder) / "model.safetensors")[name] for folder in ("first", "data/resize_base"))
    assert len(after) == len(before) + 1
    assert torch.equal(after[: len(before)], before)


def test_kept_tokens_need_no_uses_no_description_and_count_in_no_limit(second_run: Path) -> None:
    put("validate_data", "max_new_tokens", 1)
    for name in ("contexts.txt", "terms.csv"):
        lines = (RAW / name).read_text(encoding="utf-8").splitlines()
        (RAW / name).write_text("\n".join(line for line in lines if "hepatoma" not in line) + "\n", encoding="utf-8")
    text = (RAW / "vocabulary.csv").read_text(encoding="utf-8").replace("is a kind of", "")
    (RAW / "vocabulary.csv").write_text(text, encoding="utf-8")
    (RAW / "relations.csv").write_text("head,relation,tail\n" + "".join(_triples()), encoding="utf-8")
    append("vocabulary.csv", "cholelith,word,stone in the liver")
    append("contexts.txt", "a cholelith is high", "the cholelith of a nephrolith is high")
    assert run("validate_data", "extend_tokenizer") == 0


def _triples() -> list[str]:
    return [
        f"{head} {tail},{relation},{tail}\n" for head in "bcdefgh" for tail in "xyz" for relation in ("IsA", "MadeOf")
    ]


def test_a_relation_whose_token_the_base_has_need_not_be_listed_again(second_run: Path) -> None:
    rows = ["token,kind,description", "cholelith,word,stone in the liver"]
    (RAW / "vocabulary.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    append("contexts.txt", "a cholelith is high", "the cholelith of a nephrolith is high")
    assert run("validate_data", "extend_tokenizer") == 0
    assert [entry["text"] for entry in read(EXTENDED / "tokens.json")] == ["cholelith"]


@pytest.mark.parametrize(
    ("retrain", "says"),
    [
        ([], "extend_tokenizer: all 6 words of the vocabulary are in the base already"),
        (["unheard"], "extend_tokenizer.retrain lists 'unheard'"),
    ],
)
def test_a_second_run_with_nothing_to_do_says_what_to_do(
    retrain: list[str], says: str, second_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("extend_tokenizer", "retrain", retrain)
    assert run("validate_data") == 0
    assert run("extend_tokenizer") == 1
    assert says in capsys.readouterr().err
    assert not EXTENDED.exists()


def test_a_word_that_would_hide_a_kept_one_is_refused(second_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append("vocabulary.csv", "nephrolith-like,word,like a stone")
    put("validate_data", "min_uses", 0)
    assert run("validate_data") == 1
    says = capsys.readouterr().err
    assert "1 problem " in says
    assert "token 'nephrolith-like': hides the base's token nephrolith" in says


def test_a_kept_token_of_another_kind_is_refused(second_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (RAW / "vocabulary.csv").read_text(encoding="utf-8").replace("hepatoma,word", "hepatoma,symbol")
    (RAW / "vocabulary.csv").write_text(text, encoding="utf-8")
    assert run("validate_data") == 1
    says = capsys.readouterr().err
    assert "1 problem " in says
    assert "kind 'symbol': differs from its kind in the base; set it to word" in says
