"""The command `vocabgraft`: what its help imports, how a mistake ends, and that user text is printed as it is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from flows.cli import COMMANDS, Entry, Group
from flows.cli import Table as Commands
from flows.commands.output import Output
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, write_project

HEAVY = {*"prefect dvc torch mlflow transformers sentence_transformers great_expectations pandas".split()}
IMPORTED = f"""
import sys
from flows.cli import main
try:
    main(sys.argv[1:])
finally:
    loaded = {{name.partition(".")[0] for name in sys.modules}}
    commands = [name for name in sys.modules if name.startswith("flows.commands.")]
    print("imported:", sorted(loaded & {HEAVY}), commands)
"""


def leaves(table: Commands, *names: str) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """Every command with its words."""
    for name, entry in table.items():
        if isinstance(entry, Group):
            yield from leaves(entry.entries, *names, name)
        else:
            yield (*names, name), entry


LEAVES = dict(leaves(COMMANDS))


@pytest.mark.parametrize("arguments", [["--help"], [], ["registry", "--help"], ["vocab", "import"]])
def test_a_list_of_commands_imports_none_of_them(arguments: list[str]) -> None:
    command = [sys.executable, "-c", IMPORTED, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: vocabgraft" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: [] []"


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_command_has_the_one_line_help_of_the_table_and_an_example(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    entry = LEAVES[names]
    assert entry.example.startswith(f"vocabgraft {' '.join(names)}")
    assert cli(*names)(["--help"]) == 0
    shown = capsys.readouterr().out
    assert entry.summary in shown
    assert f"Example: {entry.example}" in shown


def test_the_exit_codes_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli()([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n {code}  " in shown for code in ("0", "1", "2", "3", "130, 143"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rnu"], ["vocabgraft: ", "'rnu'", "run, new"]),
        (["registry", "lst"], ["vocabgraft registry: ", "'lst'", "list, promote"]),
        (["run", "--jbos", "2"], ["vocabgraft run: ", "--jbos"]),
        (["run", "--jobs", "many"], ["vocabgraft run: ", "--jobs", "integer"]),
        (["run", "--until", "a", "--only", "b", "--plan"], ["vocabgraft: ", "--until a", "--only b"]),
        (["registry", "promote"], ["vocabgraft registry promote: ", "VERSION"]),
        (["registry", "prune", "--keep", "0"], ["vocabgraft registry prune: ", "--keep", "1"]),
        (["index", "reembed", "i", "--previous", "p", "--model", "m"], ["vocabgraft: ", "--out", "--dry-run"]),
        (["stage", "trian_adapter"], ["vocabgraft: ", "'trian_adapter'", "train_adapter"]),
        (["report", "--out", "."], ["vocabgraft: "]),
        (["sweep", "nowhere.yaml"], ["vocabgraft: ", "nowhere.yaml"]),
        (["pack", "inspect", "[bold]nowhere[/nothing]"], ["vocabgraft: ", "[bold]nowhere[/nothing]"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], told: list[str], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli()(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert all(part in shown.err for part in told)


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, in_folder: Path) -> None:
    monkeypatch.setattr("flows.commands.report.read_dag", lambda root: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli("report")([])


def test_text_of_a_user_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("reason")
    table.add_row(Text("[red]stage[/nothing] :smile:"))
    Output().show(table)
    Output().show("[/nothing]")
    Output().line("[bold]x[/nothing]")
    shown = capsys.readouterr().out
    assert "[red]stage[/nothing] :smile:" in shown
    assert shown.endswith("[/nothing]\n[bold]x[/nothing]\n")


def test_json_is_all_that_stdout_has_and_quiet_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(
        write_project(tmp_path / "project", {"validate_data": Trivial(), "after": Trivial(["validate_data"])})
    )
    assert cli("run")(["--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(row["stage"], row["runs"]) for row in plan] == [("validate_data", True), ("after", True)]
    assert cli("run")(["--no-server", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["outcome"]) for row in done["stages"]] == [
        ("validate_data", "Completed"),
        ("after", "Completed"),
    ]
    assert cli("run")(["--no-server", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_name_that_cron_lines_know_is_the_same_command() -> None:
    def help_of(*command: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert help_of("flows.build_model") == help_of("flows.cli", "run")
