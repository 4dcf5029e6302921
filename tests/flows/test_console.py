"""What a run shows while it works."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from flows import console
from flows.console import LOGS, AllLines, LiveTable, PlainLines, watching
from flows.engine.dag import Planned, Stage
from flows.engine.stage_outcome import Outcome, StageResult
from flows.key_figures import key_figure
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, write_project
from vocabgraft.storage.artifacts import write_json

BAR = "distillation, epoch 1 of 2:  {}%|####      | 1/9 [00:01<00:03]"
DICTIONARY = "{'loss': 0.61, 'grad_norm': 1.2, 'epoch': 0.5}"
STAGE = Stage("resize_base", (), (Path("made"),))
PLANNED = [Planned(STAGE, ("forced",), ()), Planned(Stage("other", ("resize_base",), (Path("other"),)), (), ())]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All work counts as long."""
    monkeypatch.setattr(console, "SECONDS_OF_LONG_WORK", 0.0)


@pytest.mark.usefixtures("at_once")
def test_elsewhere_a_stage_has_a_line_and_long_work_one_for_each_tenth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = PlainLines([STAGE], tmp_path)
    watch.started("resize_base")
    for percent in (0, 4, 11, 12, 19, 20, 45, 46, 100):
        watch.line("resize_base", BAR.format(percent))
    watch.line("resize_base", BAR.replace("1 of 2", "2 of 2").format(10))
    watch.line("resize_base", DICTIONARY)
    watch.line("resize_base", "warning: two words are common")
    watch.note("resize_base", "waits: another process")
    write_json(tmp_path / "made" / "report.json", {"distillation": {"after": {"all": {"mean": 0.93867}}}})
    watch.ended(StageResult("resize_base", Outcome.COMPLETED, 61.25, "forced"))
    assert capsys.readouterr().out.splitlines() == [
        *(f"resize_base: distillation, epoch 1 of 2 {tenth} %" for tenth in (10, 20, 40, 100)),
        "resize_base: distillation, epoch 2 of 2 10 %",
        "resize_base: warning: two words are common",
        "resize_base: waits: another process",
        "resize_base: completed in 61.2 s; fidelity 0.939",
    ]


def test_a_bar_that_is_through_at_once_is_no_long_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = PlainLines([STAGE], tmp_path)
    watch.started("resize_base")
    watch.line("resize_base", "Loading weights: 100%|##########| 103/103")
    assert capsys.readouterr().out == ""


def drawn(table: LiveTable) -> str:
    """The table as a terminal shows it."""
    stream = io.StringIO()
    Console(file=stream, width=120).print(table)
    return stream.getvalue()


def test_the_table_of_a_terminal_has_state_bar_seconds_and_figure_of_each_stage(tmp_path: Path) -> None:
    table = LiveTable(PLANNED, tmp_path)
    assert drawn(table).count("waiting") == 2
    table.started("resize_base")
    table.line("resize_base", BAR.format(45))
    table.line("resize_base", DICTIONARY)
    table.line("resize_base", "warning: [two] words are common")
    shown = drawn(table)
    assert "runs" in shown and "distillation, epoch 1 of 2" in shown and "━" in shown
    assert "grad_norm" not in shown
    write_json(tmp_path / "made" / "report.json", {"distillation": {"after": {"all": {"mean": 0.93867}}}})
    table.ended(StageResult("resize_base", Outcome.COMPLETED, 61.25, "forced"))
    table.ended(StageResult("other", Outcome.FAILED, 1.0, "it broke"))
    shown = drawn(table)
    assert "Completed" in shown and "61.2" in shown and "fidelity 0.939" in shown
    assert "Failed" in shown
    assert table.warnings == ["resize_base: warning: [two] words are common"]


@pytest.mark.parametrize(
    ("shown", "terminal", "kind"),
    [
        ("table or lines", True, "LiveTable"),
        ("table or lines", False, "PlainLines"),
        ("lines", True, "PlainLines"),
        ("every line", True, "AllLines"),
    ],
)
def test_a_table_is_drawn_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: console.Shown, terminal: bool, kind: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    with watching(PLANNED, tmp_path, shown) as watch:
        assert isinstance(watch, console.Both)
        assert [type(part).__name__ for part in watch._watches] == ["LogFiles", kind]


def test_every_line_is_in_the_stages_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LOGS).mkdir(parents=True)
    (tmp_path / LOGS / "resize_base.log").write_text("of an earlier run\n", encoding="utf-8")
    with watching(PLANNED, tmp_path, "lines") as watch:
        watch.started("resize_base")
        watch.line("resize_base", DICTIONARY)
        watch.note("resize_base", "waits: another process")
    kept = (tmp_path / LOGS / "resize_base.log").read_text(encoding="utf-8")
    assert kept == f"{DICTIONARY}\nwaits: another process\n"
    assert DICTIONARY not in capsys.readouterr().out


def test_with_verbose_every_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    AllLines().line("resize_base", DICTIONARY)
    assert capsys.readouterr().out == f"resize_base | {DICTIONARY}\n"


COUNTS = {"passed": 28, "failed": 0, "waived": 0, "too few to judge": 1, "does not apply": 7}
FILES: dict[str, tuple[dict[str, object], str]] = {
    "validate_data": (
        {
            "report.json": {
                "new_tokens": {"word": 74, "special": 14},
                "datasets": {"terms": {"train": 1000, "test": 464}},
            }
        },
        "88 new tokens, 1,464 rows",
    ),
    "extend_tokenizer": (
        {"report.json": {"tokens_per_text_before": 9.5, "tokens_per_text_after": 6.25}},
        "9.50 to 6.25 tokens per text",
    ),
    "train_adapter": ({"report.json": {"final_loss": 0.6123}}, "loss 0.612"),
    "check_consistency": (
        {"checks.json": {"counts": COUNTS}},
        "28 of 36 checks passed; 1 too few to judge, 7 do not apply",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_stage_has_the_one_figure_that_matters(tmp_path: Path, name: str) -> None:
    files, expected = FILES[name]
    for file, content in files.items():
        write_json(tmp_path / name / file, content)  # type: ignore[arg-type]
    stage = Stage(name, (), (Path(name),))
    assert key_figure(stage, StageResult(name, Outcome.COMPLETED, 1.0, ""), tmp_path) == expected
    assert key_figure(stage, StageResult(name, Outcome.FAILED, 1.0, ""), tmp_path) == ""
    assert key_figure(stage, StageResult(name, Outcome.COMPLETED, 1.0, ""), tmp_path / "another project") == ""


def shown_by_a_run(root: Path, *options: str) -> Callable[[], int]:
    """A run of one stage that writes a dictionary and a warning."""
    said = f'echo "{DICTIONARY}" && echo "warning: two words are common"'
    write_project(root, {"one": Trivial(before=said)})
    return lambda: cli("run")(["--no-server", *options])


def test_a_run_keeps_the_trainers_dictionaries_for_the_log_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shown_by_a_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run() == 0
    said = capsys.readouterr().out
    assert DICTIONARY not in said
    assert "one: warning: two words are common" in said and "one: completed in " in said
    assert DICTIONARY in (tmp_path / LOGS / "one.log").read_text(encoding="utf-8")


def test_verbose_brings_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shown_by_a_run(tmp_path, "-v")
    monkeypatch.chdir(tmp_path)
    assert run() == 0
    assert f"one | {DICTIONARY}" in capsys.readouterr().out
