"""Surgery: the tensors of the route through memory, from files alone, and nothing written when something is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.embedding_tensor import find_embedding, read_rows
from vocabgraft.model_folder.resize_files import resize_folder
from vocabgraft.model_folder.safetensors_files import LongerTensor, as_bytes, write_lengthened
from vocabgraft.model_folder.safetensors_header import read_header
from vocabgraft.storage.artifacts import file_sha256, read_json, write_json

VOCABULARY, WIDTH, NEW = 300, 32, 7
SIZE = VOCABULARY + NEW
INDEX = "model.safetensors.index.json"
SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert(kind: str = "BertModel", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny BERT with or without a head."""
    import transformers

    # As many positions as tokens: a size alone does not tell what belongs to the vocabulary.
    config = transformers.BertConfig(**(SIZES | {"intermediate_size": 48, "max_position_embeddings": 300} | changes))
    return seeded(lambda: getattr(transformers, kind)(config)).to(dtype)


def seeded(build: Callable[[], Any]) -> Any:
    """A model with weights that do not depend on what ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def saved(model: Any, folder: Path, shard: str = "5GB") -> Path:
    """Save a model, in several files where `shard` is small."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def new_rows(count: int = NEW, dtype: torch.dtype = torch.float32, width: int = WIDTH) -> torch.Tensor:
    """Rows for new tokens."""
    return torch.randn((count, width), generator=torch.Generator().manual_seed(1)).to(dtype)


def resized(source: Path, rows: torch.Tensor, size: int = SIZE, **options: Any) -> Path:
    """The source resized into a new folder beside it."""
    destination = source.parent / f"{source.name}-resized"
    destination.mkdir()
    resize_folder(source, destination, rows, size, **options)
    return destination


def reference(source: Path, kind: Any, rows: torch.Tensor, multiple: int | None = None, shard: str = "5GB") -> Path:
    """The same through memory: load, `resize_token_embeddings`, set the rows, save."""
    model = kind.from_pretrained(source)
    model.resize_token_embeddings(SIZE, pad_to_multiple_of=multiple, mean_resizing=False)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[SIZE - len(rows) : SIZE] = rows
        weight[SIZE:] = 0
    return saved(model, source.parent / f"{source.name}-reference", shard)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor of a model folder."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def assert_same(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, types, shapes and bits."""
    assert sorted(seen) == sorted(expected)
    for name, value in expected.items():
        assert seen[name].dtype == value.dtype, name
        assert seen[name].shape == value.shape, name
        assert torch.equal(seen[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_file_becomes_the_file_that_resize_token_embeddings_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    import transformers

    source = saved(bert(dtype=dtype), tmp_path / "model")
    seen = resized(source, new_rows(dtype=dtype))
    expected = reference(source, transformers.AutoModel, new_rows(dtype=dtype))
    assert (seen / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert read_json(seen / "config.json") == read_json(expected / "config.json")


def test_of_several_files_only_the_one_with_the_embeddings_changes(tmp_path: Path) -> None:
    import transformers

    source = saved(bert(), tmp_path / "model", shard="30KB")
    seen = resized(source, new_rows())
    expected = reference(source, transformers.AutoModel, new_rows())
    assert_same(tensors_of(seen), tensors_of(expected))
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) > 2
    changed = [name for name in shards if file_sha256(seen / name) != file_sha256(source / name)]
    assert changed == [find_embedding(source).file.name]


def test_the_index_counts_the_new_bytes_and_parameters(tmp_path: Path) -> None:
    import transformers

    source = saved(bert(), tmp_path / "model", shard="30KB")
    seen = read_json(resized(source, new_rows()) / INDEX)
    expected = read_json(reference(source, transformers.AutoModel, new_rows(), shard="30KB") / INDEX)
    assert seen["metadata"] == expected["metadata"]
    assert sorted(seen["weight_map"]) == sorted(expected["weight_map"])


def test_a_tied_output_grows_with_its_bias_and_its_embeddings(tmp_path: Path) -> None:
    import transformers

    source = saved(bert("BertForMaskedLM"), tmp_path / "model", shard="30KB")
    embedding = find_embedding(source)
    assert embedding.name == "bert.embeddings.word_embeddings.weight"
    assert embedding.shape == (VOCABULARY, WIDTH)
    assert (embedding.tied, embedding.sized_alike) == ((), ("cls.predictions.bias",))
    seen = resized(source, new_rows())
    assert_same(tensors_of(seen), tensors_of(reference(source, transformers.BertForMaskedLM, new_rows())))
    assert transformers.BertForMaskedLM.from_pretrained(seen).get_output_embeddings().weight.shape[0] == SIZE


def test_a_tied_output_that_is_stored_twice_gets_the_same_rows(tmp_path: Path) -> None:
    source = saved(bert("BertForMaskedLM"), tmp_path / "model")
    weights = tensors_of(source)
    head = "cls.predictions.decoder.weight"
    weights[head] = weights["bert.embeddings.word_embeddings.weight"].clone()
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert find_embedding(source).tied == (head,)
    seen = tensors_of(resized(source, new_rows()))
    assert torch.equal(seen[head], torch.cat([weights[head], new_rows()]))
    assert torch.equal(seen[head], seen["bert.embeddings.word_embeddings.weight"])


def test_an_output_of_its_own_gets_zeros(tmp_path: Path) -> None:
    source = saved(bert("BertForMaskedLM", tie_word_embeddings=False), tmp_path / "model")
    head, bias = "cls.predictions.decoder.weight", "cls.predictions.bias"
    assert {head, bias} <= set(find_embedding(source).sized_alike)
    before, after = tensors_of(source), tensors_of(resized(source, new_rows()))
    assert torch.equal(after[head], torch.cat([before[head], torch.zeros(NEW, WIDTH)]))
    assert torch.equal(after[bias], torch.cat([before[bias], torch.zeros(NEW)]))


def test_a_bias_that_lies_in_a_row_grows_too(tmp_path: Path) -> None:
    import transformers

    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=1, decoder_layers=1, max_position_embeddings=40
    )
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    config.encoder_ffn_dim = config.decoder_ffn_dim = 48
    kind = transformers.BartForConditionalGeneration
    source = saved(seeded(lambda: kind(config)), tmp_path / "model")
    assert find_embedding(source).sized_alike == ("final_logits_bias",)
    seen = tensors_of(resized(source, new_rows()))
    assert seen["final_logits_bias"].shape == (1, SIZE)
    assert_same(seen, tensors_of(reference(source, kind, new_rows())))


def test_the_shared_embeddings_of_an_encoder_are_found(tmp_path: Path) -> None:
    import transformers

    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=1, num_heads=2)
    kind = transformers.T5EncoderModel
    source = saved(seeded(lambda: kind(config)), tmp_path / "model")
    assert find_embedding(source).name == "shared.weight"
    assert_same(tensors_of(resized(source, new_rows())), tensors_of(reference(source, kind, new_rows())))


def test_the_vocabulary_of_a_nested_text_model_is_set(tmp_path: Path) -> None:
    import transformers

    text = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    source = saved(seeded(lambda: transformers.Gemma3Model(config)), tmp_path / "model")
    seen = resized(source, new_rows())
    expected = reference(source, transformers.AutoModel, new_rows())
    assert_same(tensors_of(seen), tensors_of(expected))
    assert find_embedding(source).name == "language_model.model.embed_tokens.weight"
    assert read_json(seen / "config.json")["text_config"]["vocab_size"] == SIZE
    assert transformers.AutoConfig.from_pretrained(seen).get_text_config().vocab_size == SIZE


def test_rows_are_padded_with_zeros_to_a_multiple(tmp_path: Path) -> None:
    import transformers

    source = saved(bert(), tmp_path / "model")
    seen = resized(source, new_rows(), pad_to_multiple_of=64)
    expected = reference(source, transformers.AutoModel, new_rows(), multiple=64)
    assert (seen / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert read_json(seen / "config.json")["vocab_size"] == 320
    assert not read_rows(seen, range(SIZE, 320)).any()


def test_rows_that_the_base_holds_beyond_its_tokenizer_are_used_first(tmp_path: Path) -> None:
    source = saved(bert(), tmp_path / "model")
    old = read_rows(source, range(VOCABULARY))
    inside = read_rows(resized(source, new_rows(), size=VOCABULARY - 3), range(VOCABULARY))
    assert torch.equal(inside, torch.cat([old[:-10], new_rows(), old[-3:]]))
    other = shutil.copytree(source, tmp_path / "other")
    across = resized(other, new_rows(), size=VOCABULARY + 2)
    assert torch.equal(read_rows(across, range(VOCABULARY + 2)), torch.cat([old[:-5], new_rows()]))


def test_no_new_row_gives_the_same_weights(tmp_path: Path) -> None:
    source = saved(bert(), tmp_path / "model")
    seen = resized(source, new_rows(0), size=VOCABULARY)
    assert file_sha256(seen / "model.safetensors") == file_sha256(source / "model.safetensors")


@pytest.mark.parametrize("sharded", [False, True])
def test_it_loads_in_stock_sentence_transformers_and_encodes_as_the_route_through_memory(
    tmp_path: Path, tiny_base: Path, extended: Any, sharded: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    from tests.vocabgraft.conftest import mean_rows
    from vocabgraft.models.base import load_model
    from vocabgraft.models.resize import extended_copy

    tokenizer, tokens = extended
    model = load_model(tiny_base, device="cpu")
    source = shutil.copytree(tiny_base, tmp_path / "base")
    if sharded:
        (source / "model.safetensors").unlink()
        saved(model[0].auto_model, source, shard="10KB")
    rows = mean_rows(tiny_base, tokens)
    folder = tmp_path / "resized"
    folder.mkdir()
    resize_folder(source, folder, rows, len(tokenizer))
    assert (folder / INDEX).is_file() == sharded
    tokenizer.save_pretrained(folder)
    texts = ["the nephrolith of a dog", "house -> wood", "a cat"]
    stock = SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in stock] == ["Transformer", "Pooling", "Normalize"]
    assert (stock.encode(texts) == extended_copy(model, tokenizer, rows).encode(texts)).all()


def test_a_transformer_in_a_folder_of_its_own_is_taken_along_and_a_pickle_beside_safetensors_is_not(
    tmp_path: Path,
) -> None:
    source = tmp_path / "model"
    saved(bert(), source / "0_Transformer")
    (source / "0_Transformer" / "vocab.txt").write_text("old")
    write_json(source / "0_Transformer" / "tokenizer.json", {})
    write_json(source / "manifest.json", {})
    modules = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    write_json(source / "modules.json", [{"path": path, "type": kind} for path, kind in modules.items()])
    for module in ("1_Pooling", "2_Dense"):
        (source / module).mkdir()
        write_json(source / module / "config.json", {"of": module})
    save_file({"linear.weight": torch.ones(3, 2)}, source / "2_Dense" / "model.safetensors")
    (source / "2_Dense" / "pytorch_model.bin").write_bytes(b"never read")
    seen = resized(source, new_rows())
    assert sorted(path.relative_to(seen).as_posix() for path in seen.rglob("*") if path.is_file()) == [
        "0_Transformer/config.json",
        "0_Transformer/model.safetensors",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "modules.json",
    ]
    assert torch.equal(load_file(seen / "2_Dense" / "model.safetensors")["linear.weight"], torch.ones(3, 2))
    assert find_embedding(seen).shape == (SIZE, WIDTH)


def test_unchanged_files_are_linked_only_when_asked(tmp_path: Path) -> None:
    source = saved(bert(), tmp_path / "model", shard="30KB")
    rewritten = find_embedding(source).file.name
    copied, linked = tmp_path / "copied", tmp_path / "linked"
    for folder, link in ((copied, False), (linked, True)):
        folder.mkdir()
        resize_folder(source, folder, new_rows(), SIZE, link=link)
    for file in source.glob("*.safetensors"):
        assert not (copied / file.name).samefile(file)
        assert (linked / file.name).samefile(file) == (file.name != rewritten)
    assert_same(tensors_of(linked), tensors_of(copied))


def test_rows_are_read_in_the_order_asked(tmp_path: Path) -> None:
    source = saved(bert(dtype=torch.bfloat16), tmp_path / "model", shard="30KB")
    weight = tensors_of(source)["embeddings.word_embeddings.weight"]
    assert torch.equal(read_rows(source, [299, 0, 7, 7]), weight[[299, 0, 7, 7]])
    assert read_rows(source, []).shape == (0, WIDTH)


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_a_row_that_is_not_there_is_refused(tmp_path: Path, wrong: int) -> None:
    source = saved(bert(), tmp_path / "model")
    with pytest.raises(VocabgraftError, match=f"row {wrong} .* allowed: 0 to 299"):
        read_rows(source, [0, wrong])


def test_finding_the_embeddings_draws_no_random_number(tmp_path: Path) -> None:
    source = saved(bert(), tmp_path / "model")
    before = torch.random.get_rng_state()
    find_embedding(source)
    assert torch.equal(torch.random.get_rng_state(), before)


TENSORS = st.lists(
    st.tuples(
        st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
        st.lists(st.integers(1, 3), max_size=3),
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(others=TENSORS, rows=st.integers(1, 5), new=st.integers(0, 4), zeros=st.integers(0, 3), half=st.booleans())
def test_a_lengthened_file_is_the_file_that_safetensors_writes(
    tmp_path_factory: pytest.TempPathFactory,
    others: list[tuple[torch.dtype, list[int]]],
    rows: int,
    new: int,
    zeros: int,
    half: bool,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    dtype = torch.float16 if half else torch.float32
    tensors = {f"t{i}": torch.ones(shape, dtype=kind) for i, (kind, shape) in enumerate(others)}
    old, added = torch.rand(rows, 3).to(dtype), torch.rand(new, 3).to(dtype)
    save_file({**tensors, "rows": old}, folder / "old", {"format": "pt"})
    longer = LongerTensor((rows + new + zeros, 3), 0, rows, as_bytes(added))
    write_lengthened(folder / "old", read_header(folder / "old"), folder / "new", {"rows": longer})
    grown = torch.cat([old, added, torch.zeros(zeros, 3, dtype=dtype)])
    save_file({**tensors, "rows": grown}, folder / "expected", {"format": "pt"})
    assert (folder / "new").read_bytes() == (folder / "expected").read_bytes()


def cut(path: Path, size: int) -> None:
    """Keep the first bytes of a file; a negative size counts from its end."""
    path.write_bytes(path.read_bytes()[:size])


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    value = read_json(path)
    change(value)
    write_json(path, value)


def change_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file, keeping its length."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(data[:8] + text.ljust(end - 8)[: end - 8] + data[end:])


def first_shard(folder: Path) -> Path:
    """The first weight file."""
    return sorted(folder.glob("*.safetensors"))[0]


def last_shard(folder: Path) -> Path:
    """The last weight file, which does not hold the embeddings."""
    return sorted(folder.glob("*.safetensors"))[-1]


def only_pickles(folder: Path) -> None:
    """Take every safetensors file away."""
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def without_embeddings(folder: Path) -> None:
    """Take the embeddings out of the index."""
    change_json(folder / INDEX, lambda index: index["weight_map"].pop("embeddings.word_embeddings.weight"))


def not_json(folder: Path) -> None:
    """Put other bytes where the header of a file should be."""
    data = bytearray(first_shard(folder).read_bytes())
    data[8:12] = b"\xff\xfe\x00\x01"
    first_shard(folder).write_bytes(data)


def retyped(header: dict[str, Any]) -> None:
    """Claim that every tensor is half as wide as its bytes are."""
    for entry in header.values():
        if "dtype" in entry:
            entry["dtype"] = "F16"


def quantised(header: dict[str, Any]) -> None:
    """Claim a type that is not a float, of the same width."""
    for entry in header.values():
        if "dtype" in entry:
            entry["dtype"] = "I32"


def shifted(header: dict[str, Any]) -> None:
    """Leave a gap before a tensor."""
    entry = next(entry for entry in header.values() if entry.get("data_offsets", [1])[0] == 0)
    entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no safetensors": (only_pickles, r"pytorch_model\.bin is a pickle"),
    "a shard is absent": (lambda folder: last_shard(folder).unlink(), "names the file .*not beside it"),
    "a shard outside of the folder": (
        lambda folder: change_json(folder / INDEX, lambda index: index["weight_map"].update(x="../x.safetensors")),
        r"names the file '../x.safetensors'",
    ),
    "a tensor is absent from its shard": (
        lambda folder: change_json(
            folder / INDEX, lambda index: index["weight_map"].update(ghost=first_shard(folder).name)
        ),
        "names ghost in .*does not hold it",
    ),
    "the embeddings are absent": (without_embeddings, "holds no input embeddings: embeddings.word_embeddings.weight"),
    "an index without a map": (lambda folder: write_json(folder / INDEX, {}), "no weight_map"),
    "an index that is a list": (lambda folder: write_json(folder / INDEX, []), "holds a list"),
    "a damaged index": (lambda folder: cut(folder / INDEX, 20), "is damaged"),
    "an empty shard": (lambda folder: cut(first_shard(folder), 0), "damaged or incomplete.*the file has 0"),
    "a header cut short": (lambda folder: cut(first_shard(folder), 60), "damaged or incomplete: its header"),
    "a header of other bytes": (not_json, "its header is not one of safetensors"),
    "the embeddings cut short": (lambda folder: cut(first_shard(folder), -1), "its tensors end at byte"),
    "another shard cut short": (lambda folder: cut(last_shard(folder), -1), "its tensors end at byte"),
    "shapes that contradict the bytes": (lambda folder: change_header(first_shard(folder), retyped), "bytes for shape"),
    "a gap between tensors": (lambda folder: change_header(first_shard(folder), shifted), "should start at byte"),
    "quantised embeddings": (lambda folder: change_header(first_shard(folder), quantised), "is I32; allowed: F64"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a damaged configuration": (
        lambda folder: cut(folder / "config.json", 20),
        r"config\.json is damaged or incomplete",
    ),
    "an unknown kind of model": (
        lambda folder: change_json(folder / "config.json", lambda config: config.update(model_type="mine")),
        "not a configuration that transformers knows.*mine",
    ),
    "a configuration of another size": (
        lambda folder: change_json(folder / "config.json", lambda config: config.update(vocab_size=299)),
        r"has shape \[300, 32\].*\[299, 32\]",
    ),
    "modules without paths": (lambda folder: write_json(folder / "modules.json", [{}]), "not a list of modules"),
    "a module outside of the folder": (
        lambda folder: write_json(folder / "modules.json", [{"path": ""}, {"path": "../other"}]),
        "names '../other', which is outside",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_and_nothing_written(tmp_path: Path, case: str) -> None:
    source = saved(bert(), tmp_path / "model", shard="30KB")
    spoil, message = BROKEN[case]
    spoil(source)
    with pytest.raises(VocabgraftError, match=f"(?s){message}"):
        resized(source, new_rows())
    assert not list((tmp_path / "model-resized").iterdir())


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (new_rows(width=31), {}, r"have shape \[7, 31\].*takes \(new tokens, 32\)"),
        (new_rows()[0], {}, r"have shape \[32\]"),
        (new_rows(dtype=torch.float64), {}, r"are torch.float64.*is torch.float32.*\.to\(torch.float32\)"),
        (new_rows(), {"size": SIZE + 1}, "has 308 tokens and 7 new rows .* has 300 rows; give a row for each"),
        (new_rows(), {"size": 6}, "has 6 tokens and 7 new rows"),
        (new_rows(), {"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; allowed"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_written(
    tmp_path: Path, rows: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    source = saved(bert(), tmp_path / "model")
    with pytest.raises(VocabgraftError, match=f"(?s){message}"):
        resized(source, rows, **options)
    assert not list((tmp_path / "model-resized").iterdir())


def test_a_destination_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = saved(bert(), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("text")
    for destination in (tmp_path / "full", tmp_path / "absent"):
        with pytest.raises(VocabgraftError, match="not an empty folder"):
            resize_folder(source, destination, new_rows(), SIZE)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]


def test_a_disk_that_fails_half_way_leaves_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(bert(), tmp_path / "model", shard="30KB")
    copy = shutil.copyfile

    def fail_at_the_last_shard(path: Path, target: Path) -> None:
        if path == last_shard(source):
            raise OSError(28, "No space left on device")
        copy(path, target)

    monkeypatch.setattr(shutil, "copyfile", fail_at_the_last_shard)
    with pytest.raises(OSError, match="No space left"):
        resized(source, new_rows())
    assert not list((tmp_path / "model-resized").iterdir())
