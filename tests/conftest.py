"""Tiny real models, built in code: a BERT of two layers with a WordPiece tokenizer. No network, no downloads."""

import gc
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

from tasks.support.stage import switch_telemetry_off
from tests.coded_base import build_coded_base
from tests.import_server import Forked, ImportServer

ROOT = Path(__file__).parent.parent

WORDS = (
    "a the of in and is kind dog cat animal house wood made used for to with stone stones kidney blood low high heart "
    "pain water is able has as one its parts query passage liver sugar doctor patient treat drug sleep bark fish bird"
).split()
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", ".", ",", "-", "'", "<", ">", "|", "?", ":"]

# Hypothesis fails an example that takes over 200 ms, which the first call on a busy machine does.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


def pytest_configure() -> None:
    """Take SIGINT as on a terminal: a shell that starts the tests in the background lets all children ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the file whose fixture runs the whole chain, so that no process waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_chain.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process, and all files that use `prefect_server` to one: to start it takes 12 s of CPU."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "prefect" if "prefect_server" in (ROOT / file).read_text(encoding="utf-8") else file

    return OneServer(config, log)


FROZEN = pytest.StashKey[int]()
MANY_MODULES = 100


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Exempt imported modules from garbage collection.

    accelerate collects garbage at the start of each training. That took 0.6 s of CPU, most of a small training, because
    it looked at the millions of objects of the imported libraries.
    """
    if len(sys.modules) - item.config.stash.get(FROZEN, 0) >= MANY_MODULES:
        gc.collect()
        gc.freeze()
        item.config.stash[FROZEN] = len(sys.modules)


@pytest.fixture(autouse=True, scope="session")
def _offline() -> None:
    """No test may reach a network or send telemetry."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    switch_telemetry_off()


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build_wordpiece() -> Any:
    """An uncased WordPiece tokenizer: the words above, and every letter as a first and a following piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*WORDS, *LETTERS])]
    vocabulary += [f"##{letter}" for letter in LETTERS if letter.isalnum()]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def tiny_bert(tokens: int, positions: int = 64) -> Any:
    """The configuration of a BERT with two small layers."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=tokens,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=positions,
    )


def build_tiny_base(folder: Path) -> Path:
    """Save a tiny sentence-transformers model (BERT, mean pooling, Normalize) and return its folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertModel, BertTokenizerFast

    tokenizer = BertTokenizerFast(tokenizer_object=build_wordpiece(), model_max_length=64)
    config = tiny_bert(len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    raw = folder.parent / f"{folder.name}-transformer"
    model.save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    transformer = Transformer(str(raw))
    pooled = SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu")
    pooled.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny base; shared by the session, never changed."""
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(autouse=True)
def transformers_is_as_it_was() -> Iterator[None]:
    """Fails the test that left transformers patched: two loads in threads do, and later tests would pay for it."""
    yield
    if modeling := sys.modules.get("transformers.modeling_utils"):
        assert modeling.PreTrainedModel.tie_weights.__name__ == "tie_weights", "models were loaded in threads"


@pytest.fixture(scope="session")
def coded_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny base with code of its own; shared by the session, never changed.

    What transformers runs of it is kept in a place of the tests alone, for this process and those that it starts.
    """
    from transformers import dynamic_module_utils

    place = str(tmp_path_factory.mktemp("hf_modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", place)
        patch.setenv("HF_MODULES_CACHE", place)
        yield build_coded_base(tmp_path_factory.mktemp("coded") / "shift", tiny_base)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that the first process of a session to ask for it makes; read it, never change it."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            make(shared / f"{name}.partial")
            (shared / f"{name}.partial").rename(shared / name)
    return shared / name


def make_empty_store(path: Path) -> None:
    """Let MLflow make the tables of a SQLite store, and delete its default experiment, which names a folder."""
    from tasks.registry.lookup import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        connect()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM experiments")
    connection.close()


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Makes a SQLite store for MLflow at a path and returns its URI.

    A copy of one store that the session makes: the tables take MLflow 2 s of CPU. It makes the default experiment of
    each copy anew.
    """
    empty = made_once(tmp_path_factory, "mlflow.db", make_empty_store)

    def copy(path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty, path)
        return f"sqlite:///{path}"

    return copy


@pytest.fixture(scope="session")
def import_server() -> Iterator[ImportServer]:
    """A process that has imported sentence-transformers; shared by the session."""
    server = ImportServer()
    yield server
    server.close()


@pytest.fixture
def isolated_forks(import_server: ImportServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process of the checks is a fork of `import_server`."""
    from vocabgraft.checks import isolated

    def start(command: list[str], **options: Any) -> Any:
        return Forked(import_server, command, options["cwd"], options["env"])

    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "PIPE", "TimeoutExpired")}
    monkeypatch.setattr(isolated, "subprocess", SimpleNamespace(Popen=start, **names))


@pytest.fixture
def without_data_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """validate_data writes no Data Docs: they are most of its second, and tests/tasks/test_bad_input.py has them."""
    monkeypatch.setattr("tasks.validate_data._write_data_docs", lambda judgement, site: None)


def write_lines(path: Path, lines: list[str]) -> Path:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tiny_project(in_folder: Path, tiny_base: Path) -> Path:
    """The project's dvc.yaml and params.yaml over tiny raw data and the tiny base, as the working folder."""
    build_tiny_project(in_folder, tiny_base)
    return in_folder


def build_tiny_project(root: Path, base: Path) -> None:
    """Write params.yaml, dvc.yaml and data/raw of a project that runs in seconds."""
    import yaml

    raw = root / "data" / "raw"
    words = ["nephrolith", "thrombopenia", "hepatoma", "gastrodyn"]
    meanings = ["stone in the kidney", "low blood", "pain in the liver", "pain with fish"]
    write_lines(
        raw / "vocabulary.csv",
        [
            "token,kind,description",
            *(f"{word},word,{meaning}" for word, meaning in zip(words, meanings, strict=True)),
            "<|IsA|>,special,is a kind of",
            "<|MadeOf|>,special,is made of",
        ],
    )
    pairs = [
        f"{prefix} {word} {suffix},{prefix} {meaning} {suffix},{prefix} {word}"
        for word, meaning in zip(words, meanings, strict=True)
        for prefix in ("a", "the", "high", "low")
        for suffix in ("of the dog", "of a cat", "and sugar")
    ]
    write_lines(raw / "terms.csv", ["anchor,positive,group", *pairs])
    triples = [
        f"{head} {word},{relation},{tail} {word[:3]}"
        for word in words
        for head in ("old", "big", "new", "red", "own", "sad")
        for relation, tail in (("IsA", "kind"), ("MadeOf", "wood"))
    ]
    write_lines(raw / "relations.csv", ["head,relation,tail", *triples])
    write_lines(raw / "contexts.txt", [f"the {word} of the {w} is high" for word in words for w in WORDS[:12]])
    retention = [
        f"the {w} of the dog,a {w} is {v},{round(i % 11 / 10, 1)}"
        for i, (w, v) in enumerate(zip(WORDS, WORDS[3:], strict=False))
    ]
    retention += [
        f"the {w} and {word},{word} is {w},{round(i % 7 / 10, 1)}"
        for i, w in enumerate(WORDS[:10])
        for word in words[:2]
    ]
    write_lines(raw / "retention.csv", ["sentence1,sentence2,score", *retention])
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] = {
        "model": str(base),
        "revision": None,
        "sha256": None,
        "prompts": {"query": None, "document": None},
        "trust_remote_code": False,
    }
    params["validate_data"]["min_uses"] = 2
    for dataset in params["validate_data"]["datasets"]:
        dataset["held_out"] = {"validation": 0.15, "test": 0.25}
    params["train_adapter"] |= {"epochs": 1, "batch_size": 8}
    params["train_adapter"]["lora"]["r"] = 2
    # An export takes seconds; tests/vocabgraft/checks and tests/tasks/test_check_consistency.py have the real one.
    params["check_consistency"]["waived"] = {"onnx_export": "a test that is about something else"}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """An artifact's manifest."""
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return loaded
