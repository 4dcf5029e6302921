"""run_stage: its command line, its parameters, and how it ends."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.support.stage import QUIET, read_failure, run_stage, switch_telemetry_off
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import BaseParams, ExtendTokenizerParams
from vocabgraft.errors import VocabgraftError

seen: dict[str, Any] = {}
Stage = Callable[..., None]

OPTIONS = ["--base-identity", "a/base.json", "--out", "b"]


def extend_tokenizer(
    base_identity: Path, out: Path, params: ExtendTokenizerParams, seed: int, base: BaseParams
) -> None:
    """Record what it was given."""
    seen.update(base_identity=base_identity, out=out, params=params, seed=seed, base=base)


def failing(error: Exception) -> Stage:
    """A stage of the project's that raises this."""

    def extend_tokenizer(out: Path) -> None:
        raise error

    return extend_tokenizer


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


def write_dvc_yaml(command: str) -> None:
    Path("dvc.yaml").write_text(f"stages:\n  extend_tokenizer:\n    cmd: {command}\n", encoding="utf-8")


def test_path_parameters_are_options_with_hyphens(tiny_project: Path) -> None:
    assert run_stage(extend_tokenizer, OPTIONS) == 0
    assert (seen["base_identity"], seen["out"]) == (Path("a/base.json"), Path("b"))


def test_other_parameters_come_from_params_yaml_by_name(tiny_project: Path) -> None:
    assert run_stage(extend_tokenizer, OPTIONS) == 0
    params = load_params()
    assert seen["params"] == params.extend_tokenizer
    assert seen["seed"] == params.seed
    assert seen["base"] == params.base


def test_without_options_those_of_dvc_yaml_are_taken(tiny_project: Path) -> None:
    write_dvc_yaml(">-\n      python -m tasks.extend_tokenizer --base-identity c/base.json\n      --out d")
    assert run_stage(extend_tokenizer, []) == 0
    assert (seen["base_identity"], seen["out"]) == (Path("c/base.json"), Path("d"))


def test_the_command_line_is_read_when_no_arguments_are_passed(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m tasks.extend_tokenizer", *OPTIONS])
    assert run_stage(extend_tokenizer) == 0
    assert seen["out"] == Path("b")


def test_options_win_over_dvc_yaml(tiny_project: Path) -> None:
    write_dvc_yaml("python -m tasks.extend_tokenizer --base-identity c/base.json --out d")
    assert run_stage(extend_tokenizer, OPTIONS) == 0
    assert seen["out"] == Path("b")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "b"], "the following arguments are required: --base-identity"),
        ([*OPTIONS, "--seed", "3"], "unrecognized arguments: --seed 3"),
        ([*OPTIONS, "--params", "x"], "unrecognized arguments: --params x"),
    ],
)
def test_an_option_that_is_missing_or_none_of_the_stages_ends_with_usage_and_code_2(
    arguments: list[str], says: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_stage(extend_tokenizer, arguments)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert "usage: python -m tasks.extend_tokenizer" in errors
    assert says in errors
    assert seen == {}


def test_options_are_required_where_dvc_yaml_does_not_have_the_stage(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dvc.yaml").unlink()
    with pytest.raises(SystemExit) as ended:
        run_stage(extend_tokenizer, [])
    assert ended.value.code == 2
    assert "required: --base-identity, --out" in capsys.readouterr().err


def test_help_shows_the_stages_own_words(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_stage(extend_tokenizer, ["--help"])
    assert ended.value.code == 0
    assert "Record what it was given." in capsys.readouterr().out


def test_a_users_mistake_ends_with_code_1_and_its_message_on_standard_error(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(failing(VocabgraftError("x.csv is missing; put it there")), ["--out", "b"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "extend_tokenizer: x.csv is missing; put it there\n"
    assert captured.out == ""


def test_a_mistake_in_params_yaml_ends_before_the_stage_starts(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert run_stage(extend_tokenizer, OPTIONS) == 1
    assert "extend_tokenizer: params.yaml: key 'base' is missing; add it" in capsys.readouterr().err
    assert seen == {}


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full while writing f.txt"),
        (errno.EDQUOT, "the disk is full while writing f.txt"),
        (errno.EACCES, "no permission to read or write f.txt"),
        (errno.EPERM, "no permission to read or write f.txt"),
        (errno.EROFS, "no permission to read or write f.txt"),
    ],
)
def test_a_disk_that_refuses_is_explained_and_ends_with_code_1(
    number: int, says: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(failing(OSError(number, os.strerror(number), "f.txt")), ["--out", "b"]) == 1
    assert f"extend_tokenizer: {says}; " in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(errno.EBADF, "a bug"), OSError("a bug")])
def test_a_fault_of_the_program_is_raised_with_its_traceback(error: Exception, tiny_project: Path) -> None:
    with pytest.raises(type(error), match="a bug"):
        run_stage(failing(error), ["--out", "b"])


def test_a_good_run_says_and_records_its_times(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(extend_tokenizer, OPTIONS) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("extend_tokenizer: imports ")
    assert captured.err == ""
    recorded = json.loads(Path("reports/speed/extend_tokenizer.json").read_text(encoding="utf-8"))
    assert set(recorded) == {"imports", "work"}


def test_a_failing_run_records_no_times(tiny_project: Path) -> None:
    assert run_stage(failing(VocabgraftError("no")), ["--out", "b"]) == 1
    assert not Path("reports/speed").exists()


def test_a_stage_that_fails_leaves_its_reason_and_one_that_succeeds_leaves_none(tiny_project: Path) -> None:
    assert run_stage(failing(VocabgraftError("x.csv is missing:\nput it there")), ["--out", "b"]) == 1
    assert read_failure(Path(), "extend_tokenizer") == "x.csv is missing:\nput it there"
    with pytest.raises(ZeroDivisionError):
        run_stage(failing(ZeroDivisionError("a bug")), ["--out", "b"])
    assert read_failure(Path(), "extend_tokenizer") == "unexpected ZeroDivisionError: a bug"
    assert run_stage(extend_tokenizer, OPTIONS) == 0
    assert read_failure(Path(), "extend_tokenizer") is None


def test_of_several_processes_the_first_that_fails_says_why(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launching(out: Path) -> None:
        """As train_adapter: processes of the same stage do the work, and each of them may fail."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", "1")
            assert run_stage(extend_tokenizer_of("out of memory"), ["--out", "b"]) == 1
            patch.setenv("RANK", "0")
            assert run_stage(extend_tokenizer_of("the connection was closed"), ["--out", "b"]) == 1
        raise VocabgraftError("process 1 of 2 ended with exit code 1")

    def extend_tokenizer_of(message: str) -> Stage:
        return failing(VocabgraftError(message))

    launching.__name__ = "extend_tokenizer"
    assert run_stage(launching, ["--out", "b"]) == 1
    assert read_failure(Path(), "extend_tokenizer") == "out of memory"


def test_a_reason_that_cannot_be_written_is_printed_all_the_same(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("reports").write_text("a file where a folder should be", encoding="utf-8")
    assert run_stage(failing(VocabgraftError("x.csv is missing")), ["--out", "b"]) == 1
    said = capsys.readouterr().err
    assert "extend_tokenizer: x.csv is missing\n" in said and "reports/failures/extend_tokenizer.txt" in said


def test_telemetry_is_off_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, *others = QUIET
    monkeypatch.setenv(chosen, "chosen")
    for name in others:
        monkeypatch.delenv(name)
    switch_telemetry_off()
    assert os.environ[chosen] == "chosen"
    assert {name: os.environ[name] for name in others} == {name: QUIET[name] for name in others}
