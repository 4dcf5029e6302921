"""Packs are combined from the command line, and a merged model is written only where the gate passes."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import flows.commands.pack.combine as module
from tests.flows.invoke import cli
from tests.vocabgraft.conftest import load
from tests.vocabgraft.pack_samples import BAD_PACKS, KIDNEY, LIVER, make_pack, write_bad_packs
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.storage.artifacts import hash_files

pytestmark = pytest.mark.usefixtures("isolated_forks")

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

main = cli("pack", "combine")

# Random rows have no size of their own.
LIMITS = CheckConsistencyParams.model_validate(
    {
        "waived": {"onnx_export": "takes seconds, and is tested elsewhere"},
        "max_norm_ratio": 3.0,
    }
)


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> "SentenceTransformer":
    return load(tiny_base)


@pytest.fixture
def project(in_folder: Path, tiny: "SentenceTransformer", tiny_base: Path) -> Path:
    """Two packs of the tiny base in the working folder."""
    for name, tokens, seed in (("kidney", KIDNEY, 1), ("liver", LIVER, 2)):
        pack = make_pack(tiny, name, tokens, seed)
        write_pack(replace(pack, base=replace(pack.base, model=str(tiny_base))), Path(name))
    return in_folder


def test_two_packs_become_one_that_reads_as_both(
    project: Path, tiny: "SentenceTransformer", capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kidney", "liver", "--out", "data/both"]) == 0
    said = capsys.readouterr().out
    assert "kidney" in said and "written: data/both" in said
    bank = VocabularyBank(tiny)
    for place in ("kidney", "liver", "data/both"):
        bank.load(place)
    texts = ["a nephrolith in the kidney", "dog <|IsA|> animal"]
    assert np.array_equal(bank.encode(texts, vocabulary="both"), bank.encode(texts, vocabulary="kidney"))


def test_the_merged_model_is_written_when_the_gate_passes(
    project: Path, tiny: "SentenceTransformer", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "CheckConsistencyParams", lambda: LIMITS)
    assert main(["kidney", "liver", "--out", "both", "--model", "merged"]) == 0, capsys.readouterr().err
    assert "checks passed" in capsys.readouterr().out
    bank = VocabularyBank(tiny)
    bank.load("both")
    texts = ["a nephrolith in the kidney", "wood => house", "a dog"]
    assert np.array_equal(load(Path("merged")).encode(texts), bank.encode(texts, vocabulary="both"))
    assert sorted(path.name for path in project.iterdir()) == ["both", "kidney", "liver", "merged"]


def test_a_merged_model_that_fails_the_gate_is_not_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = LIMITS.model_copy(update={"max_norm_ratio": 1e-3})
    monkeypatch.setattr(module, "CheckConsistencyParams", lambda: short)
    assert main(["kidney", "liver", "--out", "both", "--model", "merged"]) == 2
    assert "so nothing is written" in capsys.readouterr().err
    assert sorted(path.name for path in project.iterdir()) == ["kidney", "liver"]


def test_conflicts_are_refused_or_reported(
    project: Path, tiny: "SentenceTransformer", capsys: pytest.CaptureFixture[str]
) -> None:
    write_pack(make_pack(tiny, "kidney", KIDNEY, seed=3), Path("again"))
    assert main(["kidney", "again", "--out", "both"]) == 2
    told = capsys.readouterr().err
    assert "3 tokens conflict" in told and "'nephrolith' of kidney and kidney-2" in told
    assert not Path("both").exists()
    assert main(["kidney", "again", "--out", "both", "--on-conflict", "first"]) == 0
    assert "with different rows" in capsys.readouterr().out
    assert read_pack(Path("both")).rows.equal(read_pack(Path("kidney")).rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["kidney", "nothing", "--out", "both"], "nothing is not a folder"),
        (["kidney", "liver", "--out", "both", "--base", "./nowhere"], "--base is './nowhere'"),
        (["kidney", "liver", "--out", "."], "cannot name"),
        (["kidney", "liver", "--out", "other"], "is not a vocabulary pack"),
        (["kidney", "liver", "--out", "both", "--model", "kidney"], "exists already"),
        *((["liver", name, "--out", "both"], told) for name, told in BAD_PACKS.items()),
    ],
)
def test_bad_input_is_reported_and_leaves_nothing_behind(
    arguments: list[str], told: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("years of work")
    write_bad_packs(read_pack(Path("kidney")), project)
    before = hash_files(project)
    assert main(arguments) == 2
    # Behind the library's own progress bars, which end with no new line.
    said = capsys.readouterr().err.rpartition("vocabgraft: ")
    assert said[1] and told in said[2]
    assert "Traceback" not in said[0]
    assert hash_files(project) == before
