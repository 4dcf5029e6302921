"""promote, rollback, registry and compare over one registry of tiny models."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.commands.registry.rollback import rollback
from tasks.registry.lookup import CHALLENGER, CHAMPION, EXPERIMENT, PREVIOUS_CHAMPION, connect, download_model
from tasks.registry.register import REGISTRATION_KIND
from tasks.registry.versions import list_versions, prune
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import newest_flow_run
from tests.registered_models import build

list_them, prune_them = cli("registry", "list"), cli("registry", "prune")
promote, roll_back = cli("registry", "promote"), cli("registry", "rollback")
compare, relocate = cli("registry", "compare"), cli("registry", "relocate")
# Versions 1 to 4 of every test here: promoted, promoted over it, worse, worse.
GAINS = {"first": 5.0, "second": 6.0, "third": 4.0, "fourth": 3.0}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, new_store: Callable[[Path], str]) -> Path:
    """A project's folder with a store of four versions: 2 is champion, 1 the previous one, 4 challenger."""
    root = tmp_path_factory.mktemp("registry") / "project"
    root.mkdir()
    shutil.copy(ROOT / "params.yaml", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DVC_EXP_NAME", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", new_store(root / "mlflow.db"))
        for mark, gain in GAINS.items():
            build(root, tiny_base, "vocabgraft-minilm", mark, gain=gain).register()
    return root


@pytest.fixture
def project(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in another folder, its paths rewritten, as the working folder."""
    root = tmp_path / "project"
    shutil.copytree(filled, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    assert relocate([]) == 0
    return root


@pytest.fixture
def listed(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[int, dict[str, Any]]]:
    """What `--json` says, by version."""

    def read() -> dict[int, dict[str, Any]]:
        capsys.readouterr()
        assert list_them(["--json"]) == 0
        return {row["version"]: row for row in json.loads(capsys.readouterr().out)["versions"]}

    return read


Listed = Callable[[], dict[int, dict[str, Any]]]


def aliases(rows: dict[int, dict[str, Any]]) -> dict[str, int]:
    """Versions by alias."""
    return {alias: number for number, row in rows.items() for alias in row["aliases"]}


def test_the_list_has_every_version_with_its_aliases_metrics_gates_and_age(listed: Listed) -> None:
    rows = listed()
    assert list(rows) == [4, 3, 2, 1]
    assert aliases(rows) == {CHAMPION: 2, PREVIOUS_CHAMPION: 1, CHALLENGER: 4}
    assert (rows[2]["benefit"], rows[2]["figures"]["terms.new_word.mrr"]) == (56.0, 56.0)
    assert 0 <= rows[2]["age_seconds"] < 3600
    assert rows[2]["decision"].startswith("promoted") and rows[3]["decision"].startswith(
        "not promoted: gain over the c"
    )
    assert [gate["kind"] for gate in rows[3]["gates"] if gate["verdict"] != "holds"] == ["champion"]


def test_the_table_names_the_champion_and_the_decision(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert list_them([]) == 0
    said = capsys.readouterr().out
    assert "champion" in said and "56.00" in said and "4 of 5" in said


def test_a_version_that_misses_a_gate_is_promoted_only_by_force_and_with_a_reason_that_is_kept(
    listed: Listed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote(["3"]) == 2
    said = capsys.readouterr().err
    assert "gain over the champion, version 2: -2.00 points" in said and "24 items" in said and "--force" in said
    assert promote(["3", "--force"]) == 2
    assert "--reason" in capsys.readouterr().err
    assert aliases(listed())[CHAMPION] == 2
    assert promote(["3", "--force", "--reason", "the clinic asked for it"]) == 0
    rows = listed()
    assert (aliases(rows)[CHAMPION], aliases(rows)[PREVIOUS_CHAMPION]) == (3, 2)
    assert rows[3]["reason"] == "the clinic asked for it"
    tags = connect().get_model_version("vocabgraft-minilm", "3").tags
    assert tags["decision"] == "promoted by force"


def test_a_version_is_judged_against_the_champion_of_now(listed: Listed, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote(["3", "--force", "--reason", "a trial"]) == 0
    # Version 2 was judged against version 1 when it was registered, and is better than 3.
    assert promote(["2"]) == 0
    assert "gate holds: gain over the champion, version 3: +2.00 points" in capsys.readouterr().out
    assert aliases(listed())[CHAMPION] == 2
    assert promote(["4"]) == 2
    assert "gain over the champion, version 2: -3.00 points" in capsys.readouterr().err


def test_promoting_the_champion_changes_nothing(listed: Listed) -> None:
    before = aliases(listed())
    assert promote(["2"]) == 0
    assert aliases(listed()) == before


@pytest.mark.parametrize("arguments", [["promote", "9"], ["compare", "1", "9", "--text", "a"]])
def test_an_unknown_version_is_named_with_those_that_there_are(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli("registry")(arguments) == 2
    assert "no version 9; it has 1, 2, 3, 4" in capsys.readouterr().err


def test_an_unknown_model_is_named_with_those_that_there_are(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_them(["--name", "other"]) == 2
    assert "'other'; it has vocabgraft-minilm" in capsys.readouterr().err


def test_a_roll_back_is_one_command_and_a_second_undoes_it(listed: Listed, capsys: pytest.CaptureFixture[str]) -> None:
    assert roll_back(["--reason", "complaints"]) == 0
    assert "version 1 is the champion again" in capsys.readouterr().out
    rows = listed()
    assert (aliases(rows)[CHAMPION], aliases(rows)[PREVIOUS_CHAMPION]) == (1, 2)
    assert rows[1]["reason"] == "complaints"
    assert roll_back([]) == 0
    assert aliases(listed())[CHAMPION] == 2


def test_without_a_previous_champion_a_roll_back_says_what_to_do(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connect().delete_registered_model_alias("vocabgraft-minilm", PREVIOUS_CHAMPION)
    assert roll_back([]) == 2
    assert "no previous_champion" in capsys.readouterr().err


def test_pruning_keeps_the_newest_and_every_alias_and_deletes_files(project: Path, listed: Listed) -> None:
    def folders() -> set[str]:
        models, runs = project.glob("mlruns/*/models/*"), project.glob("mlruns/*/*/artifacts")
        return {str(path) for path in [*models, *runs] if any(path.rglob("*"))}

    before = folders()
    assert len(before) == 8
    assert prune_them(["--keep", "1"]) == 0
    rows = listed()
    assert sorted(rows) == [1, 2, 4], "3 has no alias"
    assert aliases(rows) == {CHAMPION: 2, PREVIOUS_CHAMPION: 1, CHALLENGER: 4}
    assert len(before - folders()) == 2, "its model and its run"


def test_pruning_removes_what_a_killed_registration_left_but_not_one_that_is_at_work(project: Path) -> None:
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {"vocabgraft.kind": REGISTRATION_KIND, "vocabgraft.model": "vocabgraft-minilm"}
    run = client.create_run(experiment, tags=tags).info.run_id
    client.log_text(run, "half", "evaluation/half.json")
    assert prune(client, "vocabgraft-minilm", keep=4).runs == 0
    assert prune(client, "vocabgraft-minilm", keep=4, now=time.time() + 25 * 3600).runs == 1
    assert client.get_run(run).info.lifecycle_stage == "deleted"
    assert len(list_versions(client, "vocabgraft-minilm")) == 4


def test_a_moved_store_is_found_again_after_relocating(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    shutil.copytree(filled, first, symlinks=True)
    monkeypatch.chdir(first)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{first}/mlflow.db")
    assert relocate([]) == 0
    second = tmp_path / "second"
    first.rename(second)
    monkeypatch.chdir(second)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{second}/mlflow.db")
    with pytest.raises(Exception, match="cannot be read"):
        download_model("models:/vocabgraft-minilm@champion")
    capsys.readouterr()
    assert relocate([]) == 0
    assert str(first / "mlruns") in capsys.readouterr().out
    assert download_model("models:/vocabgraft-minilm@champion").is_relative_to(second)


def test_a_store_behind_a_server_is_not_relocated_from_afar(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden-word@127.0.0.1:9")
    assert relocate([]) == 2
    said = capsys.readouterr().err
    assert "on the server's machine" in said and "hidden-word" not in said


def test_versions_are_compared_text_by_text_and_figure_by_figure(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert compare(["1", "3", "--json", "--text", "a dog", "--text", "kidney stone"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"] == [1, 3]
    assert [row["text"] for row in found["texts"]] == ["a dog", "kidney stone"]
    # The two are one model but for the mark.
    assert [row["cosine"] for row in found["texts"]] == pytest.approx([1.0, 1.0])
    assert found["texts"][0]["tokens"] == [2, 2]
    assert found["figures"]["terms.new_word.mrr"] == [55.0, 54.0]
    assert (found["changes"]["since"], found["changes"]["params"]) == (1, {})
    (mrr,) = [entry for entry in found["changes"]["figures"] if entry["metric"] == "mrr"]
    assert (mrr["before"], mrr["after"], mrr["gain"], mrr["verdict"]) == (55.0, 54.0, -1.0, "worse")


def test_without_texts_held_out_items_are_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(["1", "2"]) == 0
    said = capsys.readouterr().out
    assert "kidney the test items 0" in said and "terms.new_word.mrr" in said
    assert "what changed from version 1 to 2" in said and "no parameter, word or row of data" in said
    assert "+1.00" in said and "better" in said


def test_a_file_of_texts_that_is_missing_is_reported(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(["1", "2", "--file", "nowhere.txt"]) == 2
    assert "nowhere.txt cannot be read" in capsys.readouterr().err


def test_a_command_is_a_flow_run_where_a_server_records_it(prefect_server: None, project: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.engine.prefect_run import recorded

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        assert recorded("rollback", lambda: rollback(None)).startswith("vocabgraft-minilm version 1")
    with temporary_settings(), get_client(sync_client=True) as client:
        newest = newest_flow_run(client)
        assert client.read_flow(newest.flow_id).name == "rollback"
        assert newest.state is not None and newest.state.is_completed()
