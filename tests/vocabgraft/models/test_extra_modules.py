"""Custom layers: an identity at first, trained with the adapter, saved, merged, and refused where they do not fit."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.markdown_files import blocks
from tests.vocabgraft.conftest import NEW_TOKENS, Graft, WriteDataset, load, train_params
from tests.vocabgraft.stored_encodings import stored
from vocabgraft.checks.context import Folders, gather_evidence
from vocabgraft.checks.runner import Check, check_all
from vocabgraft.config.stages import CheckConsistencyParams, ModuleParams
from vocabgraft.config.training import Method
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import carried_types, carry_own_code, load_model, own_module_types
from vocabgraft.models.extra_modules import add_modules, custom_modules, custom_parameters
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import hash_files, new_folder, read_json, write_manifest
from vocabgraft.training.adapters import merge_adapter, train_only
from vocabgraft.training.fit import train_adapter

TEXTS = ["a nephrolith in the kidney", "dog <|IsA|> animal", "a dog", "x -> y", "the dog of the doctor is a patient"]
RESIDUAL = {"type": "Dense", "place": "before_pooling", "arguments": {"use_residual": True}}
HEAD = {"type": "Dense", "arguments": {"use_residual": True}}
HEADS = {"type": "Router", "place": "after_pooling", "routes": {"query": [HEAD], "document": [HEAD]}}
OWN = {"type": "own_layers.Gate", "place": "before_pooling", "arguments": {"width": 32}}
OWN_SOURCE = """
import torch
from sentence_transformers.sentence_transformer.modules import Module

class Gate(Module):
    config_keys = ["width"]

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.gate = torch.nn.Parameter(torch.ones(width))

    def forward(self, features):
        features["token_embeddings"] = features["token_embeddings"] * self.gate
        return features

    def save(self, output_path, *args, safe_serialization=True, **kwargs):
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path, subfolder="", local_files_only=False, **kwargs):
        config = cls.load_config(model_name_or_path, subfolder=subfolder)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config))

class Forgetful(Gate):
    load = classmethod(lambda cls, path, subfolder="", **kwargs: cls(**cls.load_config(path, subfolder=subfolder)))

    def __init__(self, width):
        super().__init__(width)
        torch.nn.init.normal_(self.gate)

class Pickles(Gate):
    def save(self, output_path, *args, **kwargs):
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=False)

class Widens(Gate):
    def forward(self, features):
        features["sentence_embedding"] = torch.cat([features["sentence_embedding"]] * 2, dim=-1)
        return features

class Notebook(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, token_embeddings):
        return self.linear(token_embeddings)

def function():
    pass
"""


def modules_of(*entries: dict[str, Any]) -> list[ModuleParams]:
    return [ModuleParams.model_validate(entry) for entry in entries]


Seat = Callable[..., Path]


@pytest.fixture
def seat(graft: Graft, tmp_path: Path) -> Seat:
    """Copies the resized tiny base into a root of its own and puts modules into it."""

    def put(*entries: dict[str, Any], seed: int = 5, name: str = "seat") -> Path:
        import shutil

        folder = tmp_path / name / "data" / "resize_base"
        shutil.copytree(graft.resized, folder)
        add_modules(folder, modules_of(*entries), seed)
        return folder

    return put


@pytest.fixture
def own_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `own_layers` as it would lie in a project's root."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_layers.py").write_text(OWN_SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    yield
    sys.modules.pop("own_layers", None)


@pytest.fixture
def datasets(write_dataset: WriteDataset) -> list[AcceptedDataset]:
    """Pairs with new words."""
    pairs: list[tuple[str | None, ...]] = [
        (f"{head} {word}", f"{head} {meaning}", word)
        for head in ("big", "old", "new", "red")
        for word, meaning in (
            ("nephrolith", "stone"),
            ("thrombopenia", "low blood"),
            ("x -> y", "wood"),
            ("dog <|IsA|>", "animal"),
        )
    ]
    return [write_dataset("terms", "pairs", ("anchor", "positive", "group"), train=pairs)]


def encode(model: SentenceTransformer) -> dict[str, Any]:
    """Embeddings as a query, as a document, and without a role."""
    return {
        "query": model.encode_query(TEXTS),
        "document": model.encode_document(TEXTS),
        "none": model.encode(TEXTS),
    }


def equal(left: SentenceTransformer, right: SentenceTransformer) -> bool:
    first, second = encode(left), encode(right)
    return all(np.array_equal(first[role], second[role]) for role in first)


@pytest.mark.parametrize(
    "entries",
    [
        [RESIDUAL],
        [{**RESIDUAL, "place": "after_pooling"}],
        [{**RESIDUAL, "arguments": {"use_residual": True, "activation_function": "torch.nn.Tanh", "bias": False}}],
        [RESIDUAL, {**RESIDUAL, "place": "after_pooling"}, RESIDUAL],
        [{"type": "WeightedLayerPooling", "place": "before_pooling"}, RESIDUAL],
        [{"type": "Dropout", "place": "after_pooling", "arguments": {"dropout": 0.5}}],
        [HEADS],
        [{**HEADS, "place": "before_pooling"}],
    ],
)
def test_new_residual_layers_leave_every_embedding_bit_for_bit(
    graft: Graft, seat: Seat, entries: list[dict[str, Any]]
) -> None:
    model = load(seat(*entries))
    assert len(custom_modules(model)) == len(entries)
    assert equal(model, load(graft.resized))


@pytest.mark.parametrize(
    ("entry", "width"),
    [
        ({"type": "Dense", "place": "before_pooling"}, 32),
        ({"type": "Dense", "place": "before_pooling", "arguments": {"out_features": 12}}, 12),
        ({"type": "Dense", "place": "after_pooling", "arguments": {"out_features": 12, "use_residual": True}}, 12),
        ({"type": "LayerNorm", "place": "after_pooling"}, 32),
        ({"type": "Normalize", "place": "before_pooling"}, 32),
        ({"type": "Normalize", "place": "after_pooling"}, 32),
        ({"type": "CNN", "place": "before_pooling", "arguments": {"out_channels": 8, "kernel_sizes": [1, 3]}}, 16),
        ({"type": "Dropout", "place": "after_pooling"}, 32),
        ({"type": "WeightedLayerPooling", "place": "before_pooling", "arguments": {"layer_start": 1}}, 32),
    ],
)
def test_every_stock_class_loads_with_stock_sentence_transformers_and_its_size_flows_through(
    seat: Seat, entry: dict[str, Any], width: int
) -> None:
    folder = seat(entry)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors = model.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), width)
    assert model.get_embedding_dimension() == width
    # The base's Normalize stays last.
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert own_module_types(folder) == []


def test_the_weighted_layers_can_move_what_is_pooled(graft: Graft, seat: Seat) -> None:
    model = load(seat({"type": "WeightedLayerPooling", "place": "before_pooling"}))
    (weights,) = custom_parameters(model).values()
    with torch.no_grad():
        weights.fill_(1)
    assert not equal(model, load(graft.resized))


def test_random_layers_come_from_the_seed_and_leave_the_global_generator(seat: Seat) -> None:
    entry = {"type": "Dense", "place": "after_pooling"}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = hash_files(seat(entry, name="a"))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert hash_files(seat(entry, name="b")) == first
    assert hash_files(seat(entry, name="c", seed=6)) != first


def test_no_modules_leave_the_folder_as_it_was(graft: Graft) -> None:
    before = hash_files(graft.resized)
    add_modules(graft.resized, [], 5)
    assert hash_files(graft.resized) == before


def chain(graft: Graft, resized: Path, datasets: list[AcceptedDataset], **changes: Any) -> tuple[Path, Path]:
    """Train over a resized base with modules, save, merge and save, as the stages do."""
    model = load_model(resized, device="cpu", own_modules=True)
    train_adapter(model, datasets, graft.new_ids, train_params(learning_rate=0.05, epochs=3, **changes), 3)
    adapter, merged = resized.parent / "train_adapter", resized.parent / "merge_adapter"
    with new_folder(adapter) as work:
        save_model(model, work, adapter_base="data/resize_base")
    start = load_model(resized, device="cpu", own_modules=True)
    merge_adapter(start, adapter)
    with new_folder(merged) as work:
        save_model(start, work)
    return adapter, merged


def checks_of(graft: Graft, resized: Path, adapter: Path, merged: Path, method: Method) -> dict[str, Check]:
    with contextlib.chdir(resized.parent.parent):
        folders = Folders(graft.base, graft.tokenizer, resized, adapter, merged)
        params = CheckConsistencyParams(max_norm_ratio=2.0, waived={"onnx_export": "not installed"})
        evidence = gather_evidence(folders, graft.tokens, method, TEXTS, (), (), params)
        return {check.name: check for check in check_all(stored(evidence))}


@pytest.mark.parametrize("method", ["tokens", "lora_and_tokens"])
@pytest.mark.parametrize("entry", [RESIDUAL, HEADS], ids=["dense", "heads"])
def test_layers_are_trained_saved_and_merged(
    graft: Graft, seat: Seat, datasets: list[AcceptedDataset], entry: dict[str, Any], method: Method
) -> None:
    resized = seat(entry)
    adapter, merged = chain(graft, resized, datasets, method=method)
    trained = custom_parameters(load(merged))
    assert trained
    assert all(tensor.detach().any() for name, tensor in trained.items()), "a layer was left at zero"
    with contextlib.chdir(resized.parent.parent):
        with_peft = encode(load(adapter))
    plain = encode(SentenceTransformer(str(merged), device="cpu", local_files_only=True))
    assert all(np.allclose(with_peft[role], plain[role], atol=1e-5) for role in plain)
    if entry is HEADS:
        assert np.abs(plain["query"] - plain["document"]).max() > 1e-3
    checks = checks_of(graft, resized, adapter, merged, method)
    assert [name for name, check in checks.items() if check.verdict == "failed"] == []
    assert checks["untouched_texts"].verdict == "does not apply"
    if method == "tokens":
        assert "custom modules were trained" in checks["untouched_texts"].reason
        assert checks["other_weights"].verdict == "passed"


def test_a_merge_that_forgets_the_trained_layers_fails_the_checks(
    graft: Graft, seat: Seat, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    resized = seat(RESIDUAL)
    monkeypatch.setattr("vocabgraft.training.adapters.load_custom_modules", lambda *_: None)
    adapter, merged = chain(graft, resized, datasets)
    assert checks_of(graft, resized, adapter, merged, "tokens")["merged_as_adapter"].verdict == "failed"


def test_layers_belong_to_the_part_adapter_and_rows_train_without_them(
    graft: Graft, seat: Seat, datasets: list[AcceptedDataset]
) -> None:
    from vocabgraft.config.training import LoraParams
    from vocabgraft.training.adapters import add_adapter

    model = load(seat(RESIDUAL))
    add_adapter(model, "tokens", graft.new_ids, LoraParams(target_modules=["query"]))
    layer, rows = 32 * 32 + 32, len(NEW_TOKENS) * 32
    assert [train_only(model, part) for part in ("rows", "adapter", "all")] == [rows, layer, rows + layer]


def test_layers_learn_at_the_rate_of_the_adapter(graft: Graft, seat: Seat, datasets: list[AcceptedDataset]) -> None:
    resized = seat(RESIDUAL)
    ends = []
    for rate in (1e-9, 1e-2):
        model = load(resized)
        params = train_params(learning_rate=rate, rows_learning_rate=1e-3)
        train_adapter(model, datasets, graft.new_ids, params, 3)
        ends.append(max(float(tensor.detach().abs().max()) for tensor in custom_parameters(model).values()))
    assert ends[0] < 1e-6
    assert ends[1] > 1e-3


def test_layers_of_another_run_are_not_merged(graft: Graft, seat: Seat, datasets: list[AcceptedDataset]) -> None:
    adapter, _ = chain(graft, seat(RESIDUAL), datasets)
    other = load(seat(RESIDUAL, RESIDUAL, name="other"))
    with pytest.raises(
        VocabgraftError, match=r"has the custom modules custom_0, .*resized base has custom_0, custom_1"
    ):
        merge_adapter(other, adapter)


@pytest.mark.parametrize("routed", [False, True])
def test_an_own_class_goes_through_the_chain_and_is_refused_elsewhere(
    graft: Graft, seat: Seat, datasets: list[AcceptedDataset], own_layers: None, routed: bool
) -> None:
    layer = {"type": OWN["type"], "arguments": OWN["arguments"]}
    routes = {"query": [layer], "document": [layer]}
    resized = seat({"type": "Router", "place": "before_pooling", "routes": routes} if routed else OWN)
    adapter, merged = chain(graft, resized, datasets)
    assert own_module_types(merged) == ["own_layers.Gate"]
    assert all((tensor != 1).any() for tensor in custom_parameters(load_model(merged, own_modules=True)).values())
    checks = checks_of(graft, resized, adapter, merged, "tokens")
    assert [name for name, check in checks.items() if check.verdict == "failed"] == []
    assert "needs own_layers.Gate" in checks["fresh_process"].reason
    with pytest.raises(VocabgraftError, match=r"(?s)does not load .*trust_remote_code"):
        load_model(merged)


def test_an_own_class_leaves_home_with_the_model(
    graft: Graft, seat: Seat, datasets: list[AcceptedDataset], own_layers: None, tmp_path: Path
) -> None:
    resized = seat(OWN)
    adapter, merged = chain(graft, resized, datasets)
    carry_own_code(merged)
    write_manifest(merged, {})
    source = tmp_path / "own" / "own_layers.py"
    assert (merged / "own_layers.py").read_bytes() == source.read_bytes()
    assert own_module_types(merged) == carried_types(merged) == ["own_layers.Gate"]
    # A process without the project loads it, where it lies, moved, and with everything else out of reach.
    checks = checks_of(graft, resized, adapter, merged, "tokens")
    assert [name for name, check in checks.items() if check.verdict == "failed"] == []
    assert {checks[name].verdict for name in ("fresh_process", "moved_folder", "base_absent")} == {"passed"}
    # Here the project's own class is taken, and the file in the folder is not run.
    assert type(load_model(merged, own_modules=True)[1]).__module__ == "own_layers"
    with pytest.raises(VocabgraftError, match=r"(?s)does not load .*trust_remote_code"):
        load_model(merged)
    source.write_text(OWN_SOURCE + "# edited\n", encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"made with another .*own_layers\.py .*run again from resize_base"):
        load_model(merged, own_modules=True)


def test_a_class_that_no_loader_finds_in_the_folder_stays_at_home(
    seat: Seat, own_layers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = {"type": OWN["type"], "arguments": OWN["arguments"]}
    routed = seat({"type": "Router", "place": "before_pooling", "routes": {"query": [layer], "document": [layer]}})
    (tmp_path / "own" / "parts").mkdir()
    (tmp_path / "own" / "parts" / "inner.py").write_text(OWN_SOURCE, encoding="utf-8")
    packaged = seat(OWN | {"type": "parts.inner.Gate"}, name="packaged")
    for folder, name in ((routed, "own_layers.Gate"), (packaged, "parts.inner.Gate")):
        carry_own_code(folder)
        assert not list(folder.rglob("*.py"))
        assert own_module_types(folder) == [name] and carried_types(folder) == []


def test_the_example_in_the_docs_is_a_layer(seat: Seat, own_layers: None, tmp_path: Path) -> None:
    (source,) = [block.text for block in blocks("python") if "class Gate(Module)" in block.text]
    (tmp_path / "own" / "own_layers.py").write_text(source, encoding="utf-8")
    folder = seat(OWN)
    model = load_model(folder, own_modules=True)
    assert type(model[1]).__doc__ and model[1].gate.shape == (32,)


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.GELU", "torch.nn.GELU", "GELU"])
def test_an_activation_is_taken_as_dense_itself_writes_it(seat: Seat, name: str) -> None:
    folder = seat({"type": "Dense", "place": "after_pooling", "arguments": {"activation_function": name}})
    (layer,) = custom_modules(load(folder)).values()
    assert type(layer.activation_function).__name__ == "GELU"
    (path,) = folder.glob("custom_0_Dense/config.json")
    assert read_json(path)["activation_function"] == "torch.nn.modules.activation.GELU"


REFUSED = [
    ({"type": "Dens", "place": "after_pooling"}, r"modules\.0\.type is 'Dens'; allowed: CNN, Dense, .*MODULE\.CLASS"),
    ({"type": "LSTM", "place": "before_pooling"}, r"'LSTM' \(it reads .*sentence_lengths"),
    ({"type": "WordWeights", "place": "before_pooling"}, r"does not load them again"),
    (
        {"type": "Dense", "place": "after_pooling", "arguments": {"size": 3}},
        r"has size, which Dense does not take; allowed: in_features, .*use_residual",
    ),
    (
        {"type": "Dense", "place": "after_pooling", "arguments": {"in_features": 7}},
        r"modules\.0 \(Dense\) does not fit.*sentence_embedding=\(2, 32\).*32.*7",
    ),
    (
        {"type": "Dense", "place": "after_pooling", "arguments": {"out_features": "many"}},
        r"modules\.0: Dense\(.*out_features=many.*\) cannot be built",
    ),
    (
        {"type": "Dense", "place": "after_pooling", "arguments": {"module_input_name": "token_embeddings"}},
        r"module_input_name is 'token_embeddings'; at after_pooling it is 'sentence_embedding'",
    ),
    (
        {"type": "Dense", "place": "after_pooling", "arguments": {"activation_function": "os.system"}},
        r"activation_function is 'os.system'; allowed: null or a class of torch.nn",
    ),
    (
        {"type": "Dense", "place": "after_pooling", "arguments": {"use_residual": True, "activation_function": "ReLU"}},
        r"ReLU, with which a residual layer cannot start as an identity",
    ),
    ({"type": "LayerNorm", "place": "before_pooling"}, r"LayerNorm at before_pooling .* allowed: after_pooling"),
    ({"type": "CNN", "place": "after_pooling"}, r"CNN at after_pooling .* allowed: before_pooling"),
    (
        {"type": "CNN", "place": "before_pooling", "arguments": {"kernel_sizes": [2]}},
        r"only the last dimension may change",
    ),
    (
        {"type": "WeightedLayerPooling", "place": "before_pooling", "arguments": {"num_hidden_layers": 7}},
        r"modules\.0 \(WeightedLayerPooling\) does not fit",
    ),
    (
        HEADS | {"routes": {"query": [HEAD], "document": [HEAD | {"arguments": {"out_features": 4}}]}},
        r"the routes end in different widths, \{'query': 32, 'document': 4\}",
    ),
    (HEADS | {"arguments": {"default_route": "passage"}}, r"default_route is 'passage'; allowed: query, document"),
    ({"type": "no_such_place.Gate", "place": "before_pooling"}, r"'no_such_place.Gate' does not import"),
    ({"type": "own_layers.Gone", "place": "before_pooling"}, r"'own_layers.Gone' is nothing, not a class"),
    ({"type": "own_layers.function", "place": "before_pooling"}, r"not a class of torch.nn.Module"),
    (
        {"type": "own_layers.Notebook", "place": "before_pooling"},
        r"lacks a method save; a method load; the base class .*\.Module, .*; width in config_keys.*`features`",
    ),
    (OWN | {"arguments": {"width": 7}}, r"own_layers.Gate\) does not fit.*token_embeddings=\(2, \d+, 32\)"),
    (OWN | {"arguments": {}}, r"own_layers.Gate\(nothing\) cannot be built"),
    (OWN | {"type": "own_layers.Forgetful"}, r"does not load what it saved"),
    (OWN | {"type": "own_layers.Pickles"}, r"saves pytorch_model.bin; only safetensors"),
    (OWN | {"type": "own_layers.Widens", "place": "after_pooling"}, r"width 32.*width 64"),
]


@pytest.mark.parametrize(("entry", "says"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    graft: Graft, seat: Seat, own_layers: None, entry: dict[str, Any], says: str
) -> None:
    folder = seat(name="untouched")
    before = hash_files(folder)
    with pytest.raises(VocabgraftError, match=says):
        add_modules(folder, modules_of(entry), 5)
    assert hash_files(folder) == before


def test_weighted_layers_behind_another_module_are_refused(seat: Seat) -> None:
    with pytest.raises(VocabgraftError, match="would undo the modules before it"):
        seat(RESIDUAL, {"type": "WeightedLayerPooling", "place": "before_pooling"})


def test_the_modules_keep_the_order_of_the_list(seat: Seat) -> None:
    names = [
        entry["name"] for entry in read_json(seat({**RESIDUAL, "place": "after_pooling"}, RESIDUAL) / "modules.json")
    ]
    assert names == ["0", "custom_1", "1", "custom_0", "2"]
