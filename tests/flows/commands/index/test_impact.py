"""The impact on an index as a command."""

import json
from pathlib import Path

import pytest

from tests.conftest import build_wordpiece, write_lines
from tests.flows.invoke import cli
from tests.flows.projects import run_dvc
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import extend_tokenizer

main = cli("index", "impact")


def write_extension(out: Path) -> None:
    """What the stage extend_tokenizer leaves."""
    from transformers import BertTokenizerFast

    extended = BertTokenizerFast(tokenizer_object=build_wordpiece())
    tokens = extend_tokenizer(extended, build_wordpiece(), [NewToken("hepatoma", "word", "")], 64)
    with new_folder(out) as folder:
        extended.save_pretrained(folder / "tokenizer")
        write_json(folder / "tokens.json", [token.as_json() for token in tokens])


@pytest.fixture
def project(in_folder: Path) -> Path:
    write_lines(in_folder / "corpus.txt", ["a hepatoma", "a dog", "hepatomas", "Hepatoma, hepatoma"])
    write_extension(in_folder / "extended")
    return in_folder


def test_it_says_which_share_of_the_vectors_stays_valid(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus.txt", "--tokenizer", "extended/tokenizer"]) == 0
    report = json.loads(Path("reports/index_impact.json").read_text(encoding="utf-8"))
    assert report["share_of_vectors_valid"] == 0.5
    assert report["uses"] == {"hepatoma": 2}
    assert report["tokens_per_text_before"] == (9 + 2 + 9 + 17) / 4
    assert report["tokens_per_text_after"] == (2 + 2 + 9 + 3) / 4
    assert "50.00 %" in capsys.readouterr().out
    assert [path.name for path in Path("reports").iterdir()] == ["index_impact.json"]


def test_without_a_name_the_tokenizer_is_the_one_that_the_dag_makes(project: Path) -> None:
    run_dvc(Path(), "init", "--no-scm")
    write_lines(Path("dvc.yaml"), ["stages:", "  extend_tokenizer:", "    cmd: 'true'", "    outs: [somewhere]"])
    write_extension(Path("somewhere"))
    assert main(["corpus.txt", "--out", "impact.json"]) == 0
    assert json.loads(Path("impact.json").read_text(encoding="utf-8"))["texts"] == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["missing.txt"], "missing.txt is missing"),
        (["blank.txt"], "only blank texts"),
        (["corpus.txt", "--tokenizer", "nowhere/tokenizer"], "nowhere/tokenizer is missing"),
        (["corpus.txt", "--out", "extended"], "--out extended is a folder"),
    ],
)
def test_bad_input_is_reported_and_leaves_nothing_behind(
    project: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    write_lines(Path("blank.txt"), ["", " "])
    before = sorted(Path().rglob("*"))
    assert main(["--tokenizer", "extended/tokenizer", *options]) == 2
    error = capsys.readouterr().err
    assert says in error and "vocabgraft: " in error
    assert sorted(Path().rglob("*")) == before


def test_an_incomplete_tokenizer_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("extended/manifest.json").unlink()
    assert main(["corpus.txt", "--tokenizer", "extended/tokenizer"]) == 2
    assert "incomplete" in capsys.readouterr().err
