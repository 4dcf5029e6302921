"""What goes wrong around a registration, planted one fault at a time; each time a later run finds its way."""

import errno
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from flows.engine.dag import Stage
from flows.engine.registry_state import is_lost
from tasks import register_model as stage
from tasks.registry.lookup import CHALLENGER, CHAMPION, DIGEST_TAG, EXPERIMENT, PREVIOUS_CHAMPION, Registered, connect
from tasks.registry.register import DataSplit, RunRecord, log_and_register
from tasks.registry.versions import set_alias
from tests.conftest import ROOT
from tests.import_server import ImportServer
from tests.registered_models import Made, build
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.storage.artifacts import read_json

Make = Callable[..., Made]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> str:
    """One registry for all tests here."""
    return new_store(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture
def make(in_folder: Path, tiny_base: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes artifacts of a model under a name of this test alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    # For many threads of one process; processes have a pool each.
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "32")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    shutil.copy(ROOT / "params.yaml", in_folder)

    def build_here(mark: str, **options: Any) -> Made:
        return build(in_folder, tiny_base, f"model of {in_folder.name}", mark, **options)

    return build_here


def test_a_version_deleted_by_hand_comes_back_with_its_aliases(make: Make) -> None:
    made = make("first")
    made.register()
    connect().delete_model_version(made.name, "1")
    assert made.digest_at(CHAMPION) is None
    made.register()
    assert made.versions() == [2]
    assert made.digest_at(CHAMPION) == made.digest_at(CHALLENGER) == made.digest


def test_an_alias_moved_by_hand_meanwhile_is_judged_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = make("first", gain=5.0), make("second", gain=8.0), make("third", gain=6.0)
    first.register()
    second.register()
    set_alias(connect(), first.name, CHAMPION, 1)
    asked = stage.gates_of

    def ask(*arguments: Any) -> Any:
        # Between the question and the answer a person makes version 2, which is better than the third, champion.
        set_alias(connect(), first.name, CHAMPION, 2)
        return asked(*arguments)

    monkeypatch.setattr(stage, "gates_of", ask)
    third.register()
    assert third.digest_at(CHAMPION) == second.digest, "better than 1, which is champion no more"
    unmet = [gate["name"] for gate in read_json(stage.RECORD)["gates"] if gate["verdict"] != "holds"]
    assert unmet == ["gain over the champion, version 2"]


def test_an_alias_that_never_rests_ends_in_a_clear_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make(mark, gain=gain) for mark, gain in (("first", 5.0), ("second", 8.0), ("third", 9.0))]
    for entry in made[:2]:
        entry.register()
    asked, turns = stage.gates_of, iter([1, 2, 1, 2])

    def ask(*arguments: Any) -> Any:
        set_alias(connect(), made[0].name, CHAMPION, next(turns))
        return asked(*arguments)

    monkeypatch.setattr(stage, "gates_of", ask)
    with pytest.raises(VocabgraftError, match="moved 3 times"):
        made[2].register()


def test_a_model_that_comes_back_changed_is_taken_out_of_the_registry(
    make: Make, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    made, other = make("first"), make("other", blurred=True)
    monkeypatch.setattr("tasks.registry.read_back.download_model", lambda uri: other.root / "merged")
    with pytest.raises(VocabgraftError, match="differently from"):
        made.register()
    assert made.versions() == []
    assert not (made.root / "out").exists()
    monkeypatch.undo()


def test_a_registration_at_the_same_time_leaves_the_lowest_version(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("first")
    made.register()
    found = stage.find_by_digest
    answers = iter([None])

    def not_yet(*arguments: Any) -> Registered | None:
        return next(answers, None) or None

    # As if version 1 had not been there yet when this registration looked.
    monkeypatch.setattr(stage, "find_by_digest", not_yet)
    made.register()
    monkeypatch.setattr(stage, "find_by_digest", found)
    assert made.versions() == [1]
    assert read_json(stage.RECORD)["version"] == 1
    assert made.digest_at(CHAMPION) == made.digest_at(CHALLENGER) == made.digest
    assert made.digest_at(PREVIOUS_CHAMPION) is None


@pytest.mark.parametrize(
    ("models", "registrations"), [(2, 5), pytest.param(5, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_parallel_registrations_leave_one_version_for_each_content(
    make: Make, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, models: int, registrations: int
) -> None:
    name = make("first").name
    client = connect()
    # transformers patches its classes while it loads, and threads of one process undo that in the wrong order: of two
    # loads at once tied weights were left apart in every model that was loaded later. Pipelines are processes. MLflow
    # loads what it logs to try its example.
    model = load_model(tiny_base, device="cpu")
    monkeypatch.setattr("mlflow.models.utils._validate_serving_input", lambda **_: None)

    def register(number: int) -> Registered:
        tags = {DIGEST_TAG: f"{name} {number % models}"}
        # Of the same data, as two pipelines have it.
        splits = [DataSplit("terms", "train", Path("terms.parquet"), "0" * 64, 3, ["anchor", "positive"])]
        record = RunRecord({}, {"merged.x": 1.0}, curve=[], artifacts=[], tags=tags, splits=splits)
        return log_and_register(client, name, model, record)

    with ThreadPoolExecutor(registrations) as pool:
        got = list(pool.map(register, range(registrations)))
    left = [entry for entry in client.search_model_versions() if entry.name == name]
    assert len(left) == models
    by_digest = {entry.tags[DIGEST_TAG]: int(entry.version) for entry in left}
    assert [entry.version for entry in got] == [by_digest[entry.tags[DIGEST_TAG]] for entry in got]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
import mlflow
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from tests.registered_models import Made
from pathlib import Path

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "in the upload":
    log = LocalArtifactRepository.log_artifacts
    def half(self, folder, path=None):
        if (Path(folder) / "MLmodel").exists():
            next(file for file in Path(folder).rglob("*.safetensors")).write_bytes(b"half")
            log(self, folder, path)
            die()
        log(self, folder, path)
    LocalArtifactRepository.log_artifacts = half
else:
    mlflow.register_model = die
Made(Path(sys.argv[2]), sys.argv[3]).register()
"""


@pytest.mark.parametrize("when", ["in the upload", "before the version"])
def test_leftovers_of_a_killed_registration_do_no_harm(
    make: Make, when: str, store: str, tmp_path: Path, import_server: ImportServer
) -> None:
    made = make("first")
    script = tmp_path / "killed.py"
    script.write_text(KILLED, encoding="utf-8")
    request = {"script": str(script), "arguments": [when, str(made.root), made.name, str(ROOT)], "cwd": str(tmp_path)}
    env = {"MLFLOW_TRACKING_URI": store}
    code, said = import_server.run(request | {"env": env, "imports": ["mlflow"]})
    assert code == -signal.SIGKILL, said
    assert made.versions() == []
    made.register()
    assert made.versions() == [1]
    assert made.digest_at(CHAMPION) == made.digest


def test_a_full_disk_leaves_no_version_and_a_later_run_registers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("first")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "log_artifacts", full)
        with pytest.raises(VocabgraftError, match="No space left on device; free some space"):
            made.register()
    assert made.versions() == [] and not (made.root / "out").exists()
    made.register()
    assert made.versions() == [1]


def test_an_artifact_folder_that_cannot_be_written_is_reported(
    make: Make, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    made = make("first")
    # A store of its own, whose artifacts are to lie where not even root can make a folder.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "own.db"))
        connect().create_experiment(EXPERIMENT, artifact_location="/proc/nowhere")
        with pytest.raises(VocabgraftError, match=r"MLflow refused the registration of .*/proc"):
            made.register()
        assert made.versions() == []


def test_a_server_that_is_down_at_registration_is_reported_and_a_later_run_registers(
    make: Make, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    made = make("first")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden-word@127.0.0.1:9")
    with pytest.raises(VocabgraftError, match="cannot be used") as caught:
        made.register()
    assert "hidden-word" not in str(caught.value)
    assert not (made.root / "out").exists(), "so DVC runs this stage again, and this stage alone"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    made.register()
    assert made.versions() == [1]


def test_the_flow_registers_a_lost_version_again_but_leaves_one_whose_files_were_moved(make: Make) -> None:
    made = make("first")
    made.register()
    stage, told = Stage("register_model", (), (made.root / "out",)), list[str]()
    assert not is_lost(stage, Path(), told.append)
    client = connect()
    model = client.get_model_version(made.name, "1").source.rpartition("/")[2]
    files = Path(client.get_logged_model(model).artifact_location)
    files.rename(files.with_name("moved"))
    with pytest.raises(VocabgraftError, match="registry relocate"):
        is_lost(stage, Path(), told.append)
    assert made.digest_at(CHAMPION) == made.digest
    client.delete_model_version(made.name, "1")
    assert told == []
    assert is_lost(stage, Path(), told.append)
    assert "no version" in told[0]
