"""The re-embedding of an index as a command."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from flows.engine.stage_run import environment
from tasks.support.models import model_folder
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.test_examples import add_word
from tests.vocabgraft.reembedding_samples import read_vectors, vectors_of, write_index
from vocabgraft.models.base import load_model

main = cli("index", "reembed")

TEXTS = ["the dog", "a nephrolith", "stone in the kidney", "nephrolith and pain", "a fish"] * 3


@pytest.fixture(scope="module")
def new(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_word(tiny_base, tmp_path_factory.mktemp("models") / "new", "nephrolith")


def test_it_says_what_it_computed_and_what_that_saved(
    tiny_base: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = write_index(tmp_path / "index.parquet", vectors_of(load_model(tiny_base, "cpu"), TEXTS), TEXTS)
    out = tmp_path / "new.parquet"
    assert main([str(index), "--previous", str(tiny_base), "--model", str(new), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    said, progress = captured.out, captured.err
    assert "15 texts: 6 (40.00 %) computed again, 9 vectors kept" in said
    assert "9 random kept vectors differ" in said and "s saved" in said and f"written: {out}" in said
    assert "looking for texts that change" in progress and "embedding" in progress
    assert np.abs(read_vectors(out) - vectors_of(load_model(new, "cpu"), TEXTS)).max() < 1e-6


def test_it_says_why_every_text_is_computed(
    tiny_base: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vocabgraft.models.saving import save_model

    model = load_model(new, "cpu")
    model[0].auto_model.encoder.layer[0].output.dense.weight.data.mul_(1.1)
    save_model(model, tmp_path / "other")
    index = write_index(tmp_path / "index.parquet", np.zeros((15, 32)), TEXTS)
    out = tmp_path / "new.parquet"
    assert main([str(index), "--previous", str(tiny_base), "--model", str(tmp_path / "other"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "every text is encoded again: the weight " in said and "15 (100.00 %) computed again" in said
    assert np.abs(read_vectors(out) - vectors_of(model, TEXTS)).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "nowhere"], "--model is 'nowhere' at revision main"),
        (["--previous", "package:nothing_of_the_kind/model"], "no package 'nothing_of_the_kind' is installed"),
        (["--vector-column", "embedding"], "column embedding is missing"),
        (["--out", "index.parquet"], "index.parquet exists already"),
        (["--vector-column", "narrow"], "vectors have width 31, the model gives 32"),
        ([], "differs from the new model's by"),
    ],
)
def test_bad_input_is_reported_and_leaves_nothing_behind(
    tiny_base: Path, new: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    index = write_index(in_folder / "index.parquet", np.ones((15, 32)), TEXTS)
    narrow = pa.array([[1.0] * 31] * 15, pa.list_(pa.float32()))
    parquet.write_table(parquet.read_table(index).append_column("narrow", narrow), index)
    given = ["index.parquet", "--previous", str(tiny_base), "--model", str(new), "--out", "new.parquet"]
    assert main([*given, *options]) == 2
    error = capsys.readouterr().err
    assert says in error and "vocabgraft: " in error and "Traceback" not in error
    assert [path.name for path in in_folder.iterdir()] == ["index.parquet"]


def test_an_alias_of_the_registry_is_resolved_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.lookup.resolve_version", lambda uri: f"version of {uri}")
    monkeypatch.setattr("tasks.registry.lookup.download_model", Path)
    assert model_folder("--model", "models:/name@champion") == Path("version of models:/name@champion")


HELD_UP = """
import sys
from pathlib import Path
from flows.cli import main
from vocabgraft.index import reembed as reembedding

def compute(*arguments):
    Path("begun").touch()
    sys.stdin.read()

reembedding._compute = compute
main(["index", "reembed", *sys.argv[1:]])
"""


def test_of_two_runs_for_one_place_the_second_is_refused_until_the_first_is_dead(
    tiny_base: Path, new: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_index(in_folder / "index.parquet", vectors_of(load_model(tiny_base, "cpu"), TEXTS), TEXTS)
    given = ["index.parquet", "--previous", str(tiny_base), "--model", str(new), "--out", "new.parquet"]
    command = [sys.executable, "-c", HELD_UP, *given]
    environ = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
        try:
            while not Path("begun").exists():
                assert first.poll() is None
                time.sleep(0.02)
            files = sorted(in_folder.rglob("*"))
            assert main(given) == 2
            error = capsys.readouterr().err
            assert "new.parquet is being written by another run: process" in error
            assert f"process {first.pid}, " in error and "--out new.parquet, since 2" in error
            assert sorted(in_folder.rglob("*")) == files
        finally:
            # Without a chance to let anything go.
            first.kill()
    assert (in_folder / ".new.parquet.lock").exists()
    assert main(given) == 0
    assert sorted(path.name for path in in_folder.iterdir()) == ["begun", "index.parquet", "new.parquet"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_was_killed_is_gone_on_with(tiny_base: Path, new: Path, tmp_path: Path) -> None:
    texts = [f"nephrolith {number}" for number in range(30_000)]
    index = write_index(tmp_path / "index.parquet", np.zeros((30_000, 32)), texts)
    given = [str(index), "--previous", str(tiny_base), "--model", str(new)]
    command = [sys.executable, "-m", "flows.cli", "index", "reembed", *given, "--out", str(tmp_path / "new.parquet")]
    running = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob(".*/part-*"))) < 3:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "new.parquet").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert "came from a stopped run" in done.stdout
    assert main([*given, "--out", str(tmp_path / "at once.parquet")]) == 0
    assert (tmp_path / "new.parquet").read_bytes() == (tmp_path / "at once.parquet").read_bytes()
