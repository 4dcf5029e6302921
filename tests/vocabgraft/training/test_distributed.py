"""Several processes train as one does, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import ROOT
from tests.vocabgraft.conftest import Graft, train_params
from tests.vocabgraft.training.sharing import CHANGES, DIES_AT, KEPT, first_gradients
from tests.vocabgraft.training.test_checkpoints import datasets
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.distributed import NODE, NODES, RENDEZVOUS, _interfaces, launch, writes
from vocabgraft.training.samplers import SharesOfBatches

__all__ = ["datasets"]


# Two processes import torch and the rest on what may be two busy cores: 26 s there.
@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(
    graft: Graft,
    datasets: list[AcceptedDataset],
    tmp_path: Path,
) -> None:
    folder = datasets[0].folder.parent
    alone = first_gradients(graft.resized, folder, graft.new_ids, CHANGES)
    ids = [str(number) for number in graft.new_ids]
    launch(["-m", "tests.vocabgraft.training.sharing", str(graft.resized), str(folder), str(tmp_path), *ids], 2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [entry[:2] for entry in both[0]["curve"]] == [entry[:2] for entry in alone["curve"]]
    for shared, single in zip(both[0]["curve"], alone["curve"], strict=True):
        for here, there in zip(shared[2:], single[2:], strict=True):
            assert here == (there if there is None else pytest.approx(there, rel=1e-4)), single
    assert alone["gradients"]
    for name, gradient in alone["gradients"].items():
        for shared in both:
            difference = (shared["gradients"][name] - gradient).norm()
            assert difference <= 1e-4 * gradient.norm(), name
    for name, rows in both[0]["trained"].items():
        assert torch.equal(rows, both[1]["trained"][name])
        assert torch.allclose(rows, alone["trained"][name], atol=1e-3)


@pytest.mark.slow
def test_two_processes_of_which_one_was_killed_go_on_to_the_same_weights(
    graft: Graft, datasets: list[AcceptedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["-m", "tests.vocabgraft.training.sharing", str(graft.resized), str(datasets[0].folder.parent)]
    ids = [str(number) for number in graft.new_ids]
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    launch([*given, str(tmp_path / "undisturbed"), *ids], 2)
    monkeypatch.setenv(KEPT, "1")
    monkeypatch.setenv(DIES_AT, "3")
    with pytest.raises(VocabgraftError, match="process 1 of 2 was ended by signal 9, and the others were stopped"):
        launch([*given, str(tmp_path / "killed"), *ids], 2)
    assert not list((tmp_path / "killed").glob("*.pt"))
    monkeypatch.delenv(DIES_AT)
    launch([*given, str(tmp_path / "killed"), *ids], 2)
    for rank in (0, 1):
        undisturbed, resumed = (
            torch.load(tmp_path / name / f"{rank}.pt", weights_only=True) for name in ("undisturbed", "killed")
        )
        assert resumed["steps"][0] == 2, "it went on from the checkpoint, and not from the start"
        assert len(resumed["steps"]) < len(undisturbed["steps"])
        assert resumed["curve"] == undisturbed["curve"]
        for name, rows in undisturbed["trained"].items():
            assert torch.equal(rows, resumed["trained"][name]), name


def test_an_error_of_one_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys, time; sys.exit('no luck') if os.environ['RANK'] == '1' else time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(VocabgraftError, match="process 1 of 2 ended with exit code 1, and the others were stopped"):
        launch(["-c", code], 2)
    assert time.monotonic() - started < 30
    assert "no luck" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_none_outlives_its_launcher(how: signal.Signals, tmp_path: Path) -> None:
    worker = (
        "import os, time; from pathlib import Path; from vocabgraft.training.distributed import enter; enter(); "
        f"Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid())); time.sleep(60)"
    )
    code = f"from vocabgraft.training.distributed import launch; launch(['-c', {worker!r}], 2)"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    _until(lambda: all(path.is_file() and path.read_text() for path in (tmp_path / "0", tmp_path / "1")))
    workers = [int((tmp_path / number).read_text()) for number in "01"]
    os.kill(launcher.pid, how)
    assert launcher.wait(timeout=120) != 0
    _until(lambda: not any(psutil.pid_exists(pid) and _runs(pid) for pid in workers))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until(condition: "object", seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.1)


def test_more_processes_than_there_is_room_for_are_refused() -> None:
    told = r"launcher.processes is 100000, 100000 of them on this machine, which has \d+ \w+; allowed"
    with pytest.raises(VocabgraftError, match=told):
        launch(["-c", "pass"], 100_000)


def test_two_machines_share_the_processes_and_meet_at_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR')"
    code = f"import os, sys; open(sys.argv[1] + os.environ['RANK'], 'w').write(' '.join({place}))"
    monkeypatch.setenv(NODES, "2")
    monkeypatch.setenv(RENDEZVOUS, "127.0.0.1:2345")
    monkeypatch.setattr("vocabgraft.training.distributed._require_room", lambda here: None)
    for node in "01":
        monkeypatch.setenv(NODE, node)
        launch(["-c", code, f"{tmp_path}/"], 4)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        "0": "0 0 4 2 127.0.0.1",
        "1": "1 1 4 2 127.0.0.1",
        "2": "2 0 4 2 127.0.0.1",
        "3": "3 1 4 2 127.0.0.1",
    }


def test_the_first_process_of_each_machine_writes_where_files_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not writes(), "torchrun's processes of another machine may share the first one's files"
    monkeypatch.setenv(NODES, "2")
    assert writes()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not writes()


def test_libraries_are_reported_the_interface_that_the_machines_meet_on() -> None:
    (own,) = (name for name, of in psutil.net_if_addrs().items() if any(entry.address == "127.0.0.1" for entry in of))
    assert _interfaces("127.0.0.1", 2345) == {"GLOO_SOCKET_IFNAME": own, "NCCL_SOCKET_IFNAME": own}


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_that_machines_cannot_share_are_refused(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NODES, "2")
    told = rf"launcher.processes is {processes}, and the stage runs on 2 machines .* give a multiple of 2"
    with pytest.raises(VocabgraftError, match=told):
        launch(["-c", "pass"], processes)


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 3), (2, 2)])
def test_a_batch_that_processes_cannot_share_is_refused(batch_size: int, processes: int) -> None:
    with pytest.raises(ValueError, match=f"launcher.processes is {processes} and batch_size {batch_size}"):
        train_params(batch_size=batch_size, launcher={"processes": processes})


def test_shares_are_of_one_length_and_of_the_same_batches() -> None:
    batches = [[1, 2, 3, 4], [5, 6, 7], [8]]
    shares = [list(SharesOfBatches(batches, rank, 2)) for rank in (0, 1)]
    assert shares == [[[1, 2], [5], [8]], [[3, 4], [6], [8]]]
