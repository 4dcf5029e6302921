"""The export to ONNX: what it writes gives the model's embeddings, wherever it is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, load
from tests.vocabgraft.export.models import LONGEST, build_bpe, build_last_token, with_layers
from vocabgraft.errors import VocabgraftError
from vocabgraft.export import to_onnx
from vocabgraft.export.encoder import OnnxEncoder
from vocabgraft.export.to_onnx import export_onnx

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

QUERIES = ["a dog", "stone in the kidney", "the cat is an animal of the house", "low blood"]
DOCUMENTS = ["the dog and the cat", "kidney stones", "wood", "a doctor treated the patient with a drug", "blood", "b"]
LONG = "the dog and " * 40
BUILD: dict[str, Callable[[Path], Path]] = {"bpe": build_bpe, "unigram": build_last_token}


@pytest.fixture(scope="module")
def exports(graft: Graft, tmp_path_factory: pytest.TempPathFactory) -> "dict[str, tuple[SentenceTransformer, Path]]":
    """A model and its export by the family of its tokenizer; the first has new words."""
    root = tmp_path_factory.mktemp("exports")
    folders = {"wordpiece": graft.merged["tokens"]} | {name: build(root / name) for name, build in BUILD.items()}
    found = {}
    for name, folder in folders.items():
        model = load(folder)
        made = export_onnx(model, root / f"{name}-onnx", queries=QUERIES, documents=DOCUMENTS)
        assert made.agreement.cosine_min > 1 - 1e-6
        assert (made.agreement.nearest_kept, made.agreement.first_kept) == (1.0, 1.0)
        found[name] = (model, made.folder)
    return found


@pytest.mark.parametrize("family", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_export_gives_the_embeddings_of_the_model_at_any_batch_and_length(
    exports: "dict[str, tuple[SentenceTransformer, Path]]", family: str, batch_size: int
) -> None:
    model, folder = exports[family]
    texts = [*QUERIES, *DOCUMENTS, "a nephrolith in the Thrombopenia -> dog <|IsA|> animal", LONG]
    expected = model.encode(texts, batch_size=batch_size, show_progress_bar=False)
    found = OnnxEncoder.from_folder(folder, threads=1).encode(texts, batch_size=batch_size)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


@pytest.mark.parametrize("family", ["wordpiece", "bpe", "unigram"])
def test_pooling_the_token_embeddings_as_the_folder_says_gives_the_same(
    exports: "dict[str, tuple[SentenceTransformer, Path]]", family: str
) -> None:
    model, folder = exports[family]
    encoder = OnnxEncoder.from_folder(folder, threads=1)
    (tokens,) = encoder.run(QUERIES, ["last_hidden_state"])
    mask = encoder.features(QUERIES)["attention_mask"]
    settings = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    pooled = _pooled(tokens, mask, settings)
    if any(entry["type"].endswith(".Normalize") for entry in _modules(folder)):
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert np.abs(pooled - model.encode(QUERIES, show_progress_bar=False)).max() < 1e-5


def _pooled(tokens: Any, mask: Any, settings: dict[str, Any]) -> Any:
    """As a reader of the long-known keys of Pooling does it."""
    (mode,) = [key for key, chosen in settings.items() if key.startswith("pooling_mode_") and chosen]
    if mode == "pooling_mode_mean_tokens":
        return (tokens * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    places = mask.argmax(axis=1)
    if mode == "pooling_mode_lasttoken":
        places = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    return tokens[np.arange(len(tokens)), places]


def _modules(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "modules.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("family", ["wordpiece", "bpe", "unigram"])
def test_sentence_transformers_loads_the_folder_beside_the_weights(
    exports: "dict[str, tuple[SentenceTransformer, Path]]", family: str, tmp_path: Path
) -> None:
    # Its ONNX backend needs another release of transformers; all else that it reads is read here.
    model, folder = exports[family]
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert not list(copied.rglob("*.safetensors"))
    model[0].auto_model.save_pretrained(copied)
    texts = [*QUERIES, LONG]
    again = load(copied).encode(texts, show_progress_bar=False)
    assert np.abs(again - model.encode(texts, show_progress_bar=False)).max() < 1e-6


def test_every_reader_truncates_where_the_model_does(
    exports: "dict[str, tuple[SentenceTransformer, Path]]", tmp_path: Path
) -> None:
    model, folder = exports["bpe"]
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    lengths = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["max_length"] == settings["model_max_length"] == lengths["max_seq_length"] == LONGEST
    assert tokenizer["truncation"]["max_length"] == model.max_seq_length == LONGEST


def test_the_files_do_not_depend_on_the_machine_or_on_what_was_encoded_before(
    exports: "dict[str, tuple[SentenceTransformer, Path]]", tmp_path: Path
) -> None:
    _, folder = exports["wordpiece"]
    content = (folder / "onnx" / "model.onnx").read_bytes()
    for path in (__file__, to_onnx.__file__, "site-packages", "modeling_"):
        assert str(Path(path).parent if path.startswith("/") else path).encode() not in content
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert about["precision"] == "float32" and about["agreement"]["nearest_kept"] == 1.0


def test_layers_before_the_pooling_are_in_the_graph_and_those_after_it_in_both(tiny_base: Path, tmp_path: Path) -> None:
    model = with_layers(load(tiny_base))
    made = export_onnx(model, tmp_path / "out", queries=QUERIES, documents=DOCUMENTS)
    assert made.agreement.cosine_min > 1 - 1e-6
    assert [entry["type"].rpartition(".")[2] for entry in _modules(made.folder)] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    encoder = OnnxEncoder.from_folder(made.folder, threads=1)
    tokens, sentence = encoder.run(QUERIES, ["last_hidden_state", "sentence_embedding"])
    assert (tokens.shape[-1], sentence.shape[-1]) == (24, 16)
    assert sorted(model.state_dict()) == sorted(with_layers(load(tiny_base)).state_dict())


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_weights_in_8_bits_are_smaller_and_their_loss_is_stated(graft: Graft, tmp_path: Path, precision: str) -> None:
    model = load(graft.merged["tokens"])
    made = export_onnx(model, tmp_path / "out", precision, QUERIES, DOCUMENTS)  # type: ignore[arg-type]
    about = json.loads((made.folder / "export.json").read_text(encoding="utf-8"))
    assert about["agreement"] == made.agreement.as_json() and about["precision"] == precision
    assert 0.9 < made.agreement.cosine_min < 1 - 1e-6
    exact = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert [path.name for path in (made.folder / "onnx").iterdir()] == ["model.onnx"]
    import onnx

    stored = onnx.load(made.folder / "onnx" / "model.onnx").graph.initializer
    assert sum(len(tensor.raw_data) for tensor in stored) < 0.6 * exact


def test_a_graph_that_is_not_the_models_leaves_nothing_behind(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = to_onnx.write_graph

    def of_another(model: "SentenceTransformer", path: Path) -> None:
        other = load(tiny_base)
        other[0].auto_model.encoder.layer[1].output.LayerNorm.weight.data[:16] *= -1
        own(other, path)

    monkeypatch.setattr(to_onnx, "write_graph", of_another)
    with pytest.raises(VocabgraftError, match=r"cosine -?0\.\d+ for '.*', at least 0\.9999 is allowed"):
        export_onnx(load(tiny_base), tmp_path / "out", queries=QUERIES, documents=DOCUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_torch_cannot_export_is_named_and_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    model = load(tiny_base)
    transformer = model[0].auto_model

    class LoopingModel(type(transformer)):  # type: ignore[misc]
        """Repeats itself as often as its input says, which no graph can."""

        def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **given: Any) -> Any:
            for _ in range(int(input_ids.sum())):
                found = super().forward(input_ids, attention_mask, token_type_ids, **given)
            return found

    transformer.__class__ = LoopingModel
    with pytest.raises(VocabgraftError, match="does not cover the architecture LoopingModel"):
        export_onnx(model, tmp_path / "out", queries=QUERIES, documents=DOCUMENTS)
    assert list(tmp_path.iterdir()) == []


def _routed(model: "SentenceTransformer") -> None:
    from vocabgraft.config.stages import ModuleParams
    from vocabgraft.models.extra_modules import insert_modules

    layer = {"type": "Dense", "arguments": {"out_features": 32}}
    router = {"type": "Router", "place": "after_pooling", "routes": {"query": [layer], "document": [layer]}}
    insert_modules(model, [ModuleParams.model_validate(router)], seed=1)


def _unpooled_prompt(model: "SentenceTransformer") -> None:
    model[1].include_prompt = False


def _without_pooling(model: "SentenceTransformer") -> None:
    del model._modules["1"]


def _with_adapter(model: "SentenceTransformer") -> None:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(target_modules=["query"]))


@pytest.mark.parametrize(
    ("change", "named"),
    [(_routed, "Router"), (_unpooled_prompt, "prompt"), (_without_pooling, "0 modules"), (_with_adapter, "merge it")],
)
def test_a_model_that_no_graph_holds_is_refused_before_anything_is_written(
    tiny_base: Path, tmp_path: Path, change: "Callable[[SentenceTransformer], None]", named: str
) -> None:
    model = load(tiny_base)
    change(model)
    with pytest.raises(VocabgraftError, match=named):
        export_onnx(model, tmp_path / "out", queries=QUERIES, documents=DOCUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_and_an_unknown_precision_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept", encoding="utf-8")
    with pytest.raises(VocabgraftError, match="out exists already"):
        export_onnx(load(tiny_base), tmp_path / "out")
    with pytest.raises(VocabgraftError, match=r"'int4' \(do you mean int8\?\); allowed: float32, int8, uint8"):
        export_onnx(load(tiny_base), tmp_path / "new", "int4")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_missing_package_is_named(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vocabgraft.export import graph

    monkeypatch.setattr(graph, "EXTRA", ("onnxruntime", "no_such_package"))
    with pytest.raises(VocabgraftError, match=r"no_such_package, not installed here; pip install 'vocabgraft\[onnx\]'"):
        export_onnx(load(tiny_base), tmp_path / "out")


def test_an_encoder_uses_the_models_prompts(
    exports: "dict[str, tuple[SentenceTransformer, Path]]", tmp_path: Path
) -> None:
    model, folder = exports["wordpiece"]
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copied / "config_sentence_transformers.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"prompts": {"query": "query ", "document": ""}, "default_prompt_name": "query"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    encoder = OnnxEncoder.from_folder(copied, threads=1)
    expected = model.encode(["query a dog", "a dog"], show_progress_bar=False)
    assert np.abs(encoder.encode(["a dog"]) - expected[0]).max() < 1e-5
    assert np.abs(encoder.encode(["a dog"], prompt_name="document") - expected[1]).max() < 1e-5
    assert encoder.encode([]).shape[0] == 0
    with pytest.raises(VocabgraftError, match=r"no prompt 'passage'; allowed: query, document"):
        encoder.encode(["a dog"], prompt_name="passage")
    with pytest.raises(VocabgraftError, match=r"has no onnx/model\.onnx"):
        OnnxEncoder.from_folder(tmp_path)
