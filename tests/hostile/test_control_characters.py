"""Whatever a stage, a user or a model writes, no terminal, page, chat or store gets a character that it would obey."""

import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flows.commands.output import Output
from flows.console import LogFiles, PlainLines
from flows.engine.run_record import RUN_RECORD, FlowRun
from flows.engine.stage_outcome import Outcome, StageResult
from flows.reporting.webhook import tell_failure
from tasks.registry.lookup import connect
from tasks.registry.register import RunRecord
from tasks.registry.versions import find_version, tag_version
from tests.conftest import ROOT
from tests.flows.conftest import prefect_server
from tests.flows.invoke import cli
from tests.flows.projects import add_stage, write_project
from tests.flows.reporting.test_webhook import Hook, hook, set_hook
from vocabgraft.printable import json_text, print_line, printable, warn
from vocabgraft.storage.artifacts import read_json

__all__ = ["hook", "prefect_server"]

main = cli("run")
# What a terminal obeys: the title, a link, the clipboard, colours, the cursor, a device string, and turned writing.
ATTACKS = [
    "\x1b]0;title\x07",
    "\x1b]8;;http://x/\x1b\\",
    "\x1b]52;c;cm0=\x07",
    "\x9d0;title\x9c",
    "\x1b[31m",
    "\x1b[2J",
    "\x9b31m",
    "\x1bPq#0\x1b\\",
    "\x1b_command\x1b\\",
    "\x1bc",
    "\x1b",
    "\x00\x07\x08\x7f",
    "\u202e",
    "\u2066\u2069",
    "\r",
]
ALL = "".join(ATTACKS)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("attack", ATTACKS)
def test_control_characters_go_with_what_they_begin_and_the_text_around_them_stays(attack: str) -> None:
    assert printable(f"before{attack}after\n\tindented") == "beforeafter\n\tindented"


def test_a_sequence_that_is_never_ended_hides_no_message() -> None:
    said = printable("\x1b]0;the disk is full\nfree some space")
    assert "the disk is full" in said and "free some space" in said
    assert not OBEYED.search(said)


def test_letters_of_every_script_joiners_and_emoji_stay() -> None:
    text = "Übergröße 腎結石 کتاب\u200cخانه \u200f अक्षर 👩\u200d⚕️ [/red] :bug: \\x1b"
    assert printable(text) == text


def test_a_lone_surrogate_becomes_a_sign_that_can_be_encoded() -> None:
    assert printable("a\ud800b").encode() == "a\ufffdb".encode()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["\x9d", "\x1b]", "\x1b[", "\x1b[1;", "\x1b", "\x9b0", "\x1b ", "\x90x"])
def test_no_text_takes_time_with_the_square_of_its_length(part: str) -> None:
    assert not OBEYED.search(printable(part * 1_000_000))


def test_json_for_a_program_loses_nothing_and_shows_nothing_that_is_obeyed() -> None:
    value = {f"key{ALL}": [f"text{ALL}\ud800", 1.5, None], "ä": "腎"}
    written = json_text(value)
    assert json.loads(written) == value
    assert not OBEYED.search(written)
    assert "腎" in written


def test_a_stream_of_another_encoding_shows_the_signs_that_it_lacks() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_line("nieren\N{EN DASH}stein", stream)
    assert stream.buffer.getvalue() == b"nieren\\u2013stein\n"


def test_a_warning_that_nobody_can_read_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    warn("nobody reads this")


def hostile_table() -> Table:
    """A table each of whose parts has markup, an emoji code and control characters."""
    table = Table(title=f"title [/a] :bug:{ALL}", caption=f"caption [/b]{ALL}")
    table.add_column(f"head [/c]{ALL}")
    table.add_column(Text(f"styled head{ALL}", style="bold"))
    table.add_row(f"cell [/ticket-12] [red]x[/red] :bug:{ALL}", Text(f"styled cell{ALL}", style="red"))
    return table


def test_no_table_parses_the_texts_of_a_user(capsys: pytest.CaptureFixture[str]) -> None:
    Output().show(Group(hostile_table(), f"line [/d] :bug:{ALL}", Text(f"text{ALL}")))
    said = capsys.readouterr().out
    for part in ("title [/a] :bug:", "caption [/b]", "head [/c]", "cell [/ticket-12] [red]x[/red] :bug:", "line [/d]"):
        assert part in said
    assert not OBEYED.search(said)
    rows = [line for line in said.splitlines() if line[:1] in "┏┃┡│└"]
    assert len({len(line) for line in rows}) == 1, "columns are measured by what is seen"


def test_only_the_console_that_parses_nothing_is_used() -> None:
    wanted = Path("flows/plain_console.py")
    found = {
        path.relative_to(ROOT)
        for folder in ("flows", "tasks", "vocabgraft")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bConsole\(|import print\b|from rich import|rich\.print", path.read_text(encoding="utf-8"))
    }
    assert found <= {wanted}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage, written by the test, as the working folder."""
    root = write_project(tmp_path / "project", {})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(root)
    return root


def add_python_stage(root: Path, body: Sequence[str]) -> None:
    """A stage of the project's kind with this body."""
    lines = [
        "from pathlib import Path",
        "from tasks.support.stage import logger, run_stage",
        "from vocabgraft.errors import VocabgraftError",
        f"ALL = {ALL!r}",
        "def told(out: Path) -> None:",
        *(f"    {line}" for line in body),
        "raise SystemExit(run_stage(told, ['--out', 'x']))",
    ]
    (root / "told.py").write_text("\n".join(lines), encoding="utf-8")
    add_stage(root, "told", {"cmd": "python told.py", "deps": ["raw.txt"], "outs": ["x"]})


def test_what_a_failing_stage_says_is_obeyed_nowhere(
    project: Path, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    set_hook(project, hook.url)
    add_python_stage(project, ["print('printed' + ALL)", "raise VocabgraftError('the reason' + ALL)"])
    assert main(["--no-server"]) == 1
    told = capsys.readouterr()
    record, page = read_json(project / RUN_RECORD), (project / "reports" / "report.html").read_text(encoding="utf-8")
    (stage,) = record["stages"]
    assert (stage["reason"], stage["log"]) == ("the reason", "printed")
    for text in (told.out, told.err, page, *texts_of(record), *texts_of(hook.told)):
        assert not OBEYED.search(text)
    assert "the reason" in page and "the reason" in hook.told[0]["text"]


def texts_of(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict):
        return [text for key, part in value.items() for text in (key, *texts_of(part))]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []


def test_a_log_that_raises_decides_no_outcome(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("invalid literal for int() with base 10: '0;title'")

    for watch in (LogFiles, PlainLines):
        for method in ("started", "line", "note", "ended"):
            monkeypatch.setattr(watch, method, refuse)
    monkeypatch.setattr("flows.engine.scheduler.keep_seconds", refuse)
    add_python_stage(project, ["print('printed' + ALL)", "print(' 50%|#####')", "Path('x').write_text('done')"])
    assert main(["--no-server"]) == 0
    (stage,) = read_json(project / RUN_RECORD)["stages"]
    assert stage["outcome"] == "Completed"
    assert "not shown: ValueError" in capsys.readouterr().err


def test_artifacts_that_prefect_refuses_decide_no_outcome(
    prefect_server: None, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    for name in ("create_markdown_artifact", "create_link_artifact", "create_progress_artifact", "_emit_assets"):
        monkeypatch.setattr(f"flows.prefect_flow.{name}", refuse)
    monkeypatch.setattr("prefect.artifacts.create_markdown_artifact", refuse)
    add_python_stage(project, ["print('printed' + ALL)", "print(' 50%|#####')", "Path('x').write_text('done')"])
    assert main([]) == 0
    (stage,) = read_json(project / RUN_RECORD)["stages"]
    assert stage["outcome"] == "Completed"
    assert capsys.readouterr().err.count("the server is gone") >= 2


def test_a_stage_that_is_run_by_itself_logs_and_fails_in_printable_text(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.support.stage import logger, read_failure, run_stage
    from vocabgraft.errors import VocabgraftError

    def told(out: Path) -> None:
        logger.info("%s", f"logged{ALL}")
        raise VocabgraftError(f"the reason{ALL}")

    told.__annotations__["out"] = Path
    assert run_stage(told, ["--out", "x"]) == 1
    said = capsys.readouterr()
    assert "logged\n" in said.out and "told: the reason\n" in said.err
    assert not OBEYED.search(said.out + said.err)
    assert read_failure(project, "told") == "the reason"


def test_a_failure_from_anywhere_is_reported_in_printable_text(project: Path, hook: Hook) -> None:
    from datetime import UTC, datetime

    set_hook(project, hook.url)
    result = StageResult("told", Outcome.FAILED, 1.0, f"why{ALL}", log=f"log{ALL}")
    assert (result.reason, result.log) == ("why", "log")
    assert tell_failure(FlowRun(datetime.now(UTC), [], [result], failure=f"how{ALL}"), project)
    assert all(not OBEYED.search(text) for text in texts_of(hook.told))


def test_tags_parameters_and_cards_are_kept_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "mlflow.db"))
    client = connect()
    client.create_registered_model("a model")
    client.create_model_version("a model", str(tmp_path))
    tag_version(client, "a model", 1, {"decision_reason": f"see [/ticket-12]{ALL}"})
    assert find_version(client, "a model", 1).tags["decision_reason"] == "see [/ticket-12]"
    record = RunRecord({"base.model": f"a{ALL}"}, {}, [], [], {"base": f"b{ALL}"}, card=f"# c{ALL}")
    assert (record.params, record.tags, record.card) == ({"base.model": "a"}, {"base": "b"}, "# c")
