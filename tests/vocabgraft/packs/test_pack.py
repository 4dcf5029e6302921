"""A pack comes back as it was written, and whatever is wrong with one is refused with nothing changed."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.vocabgraft.conftest import NEW_TOKENS, load
from tests.vocabgraft.pack_samples import KIDNEY, make_pack
from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.pack import LONGEST_CONTEXT, Pack, PackAdapter, PackToken, choose_contexts, identify, require_base
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.storage.artifacts import hash_files, read_json, write_json
from vocabgraft.tokens.tokenizer import added_token

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

    from vocabgraft.tokens.tokenizer import ExtendedToken


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> "SentenceTransformer":
    return load(tiny_base)


@pytest.fixture(scope="module")
def pack(tiny: "SentenceTransformer") -> Pack:
    config = {"peft_type": "LORA", "r": 2}
    weights = {"base_model.model.x.lora_A.weight": torch.arange(6.0).reshape(2, 3)}
    return make_pack(tiny, "kidney", KIDNEY, adapter=PackAdapter(config, weights))


@pytest.fixture
def folder(pack: Pack, tmp_path: Path) -> Path:
    write_pack(pack, tmp_path / "kidney")
    return tmp_path / "kidney"


def test_a_pack_comes_back_as_it_was_written(pack: Pack, folder: Path) -> None:
    read = read_pack(folder)
    assert torch.equal(read.rows, pack.rows)
    assert read.adapter is not None and pack.adapter is not None
    assert read.adapter.config == pack.adapter.config
    assert all(torch.equal(read.adapter.weights[name], value) for name, value in pack.adapter.weights.items())
    assert replace(read, rows=pack.rows, adapter=pack.adapter) == pack


def test_equal_packs_give_equal_folders(pack: Pack, folder: Path, tmp_path: Path) -> None:
    write_pack(pack, tmp_path / "again")
    assert hash_files(folder) == hash_files(tmp_path / "again")
    assert (folder / "manifest.json").read_bytes() == (tmp_path / "again" / "manifest.json").read_bytes()


def test_a_tokens_matching_is_that_of_the_pipeline() -> None:
    for token in NEW_TOKENS:
        mine, theirs = PackToken.of(token).added, added_token(token)
        for flag in ("content", "single_word", "lstrip", "rstrip", "normalized", "special"):
            assert getattr(mine, flag) == getattr(theirs, flag)


def test_the_same_base_loaded_again_is_the_same_and_one_changed_weight_is_another(tiny_base: Path) -> None:
    first, second = load(tiny_base), load(tiny_base)
    second.encode(["a text sets padding and truncation of the tokenizer"], show_progress_bar=False)
    assert identify(first, "tiny") == identify(second, "tiny")
    with torch.no_grad():
        second[0].auto_model.encoder.layer[1].output.dense.bias[3] += 1e-3
    assert identify(first, "tiny").weights_sha256 != identify(second, "tiny").weights_sha256


def test_another_base_is_named_with_what_differs_and_the_carry_over(pack: Pack) -> None:
    other = replace(pack.base, model="other", weights_sha256="f" * 64)
    with pytest.raises(
        VocabgraftError, match=r"is for the base tiny .*this is other .*another model.*vocabgraft pack transfer"
    ):
        require_base(pack, other)
    with pytest.raises(VocabgraftError, match="another tokenizer"):
        require_base(pack, replace(pack.base, tokenizer_sha256="f" * 64))
    require_base(pack, replace(pack.base, model="the same under another name"))


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_json(folder / "manifest.json", read_json(folder / "manifest.json") | changes)

    return change


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def flip(name: str, place: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return change


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_right_hash(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The change, and a manifest that knows of it: what its maker wrote wrongly."""

    def changed(folder: Path) -> None:
        change(folder)
        change_manifest(files=hash_files(folder))(folder)

    return changed


def write_tokens(value: Any) -> Callable[[Path], None]:
    return with_right_hash(lambda folder: (folder / "tokens.json").write_text(json.dumps(value)) and None)


def pickled(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            pickle.dump({"rows": [1.0]}, stream)

    return change


def torch_pickled(folder: Path) -> None:
    torch.save({"rows": torch.zeros(3, 32)}, folder / "rows.safetensors")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (delete("manifest.json"), "has no manifest.json"),
        (delete("rows.safetensors"), r"rows.safetensors is damaged: it is missing"),
        (delete("adapter/adapter_model.safetensors"), "adapter_model.safetensors is damaged: it is missing"),
        (truncate("rows.safetensors", 100), "damaged or incomplete"),
        (truncate("rows.safetensors", 3), "damaged or incomplete"),
        (truncate("manifest.json", 30), "manifest.json is damaged"),
        (truncate("tokens.json", 30), "SHA-256"),
        (flip("rows.safetensors", -1), "SHA-256"),
        (flip("contexts.json", 5), "SHA-256"),
        (change_manifest(format=3), "format 3, newer than 2.*update"),
        (change_manifest(format="1"), "has no format"),
        (change_manifest(files={}), "does not list"),
        (change_manifest(base=None), "its base is None"),
        (with_right_hash(delete("contexts.json")), "does not list"),
        (write_tokens({}), "not a list"),
        (write_tokens([{"text": "x"}]), "tokens.json is damaged"),
        (write_tokens([]), r"shape \[3, 32\], not \['1 or more', 32\]"),
        (pickled("rows.safetensors"), "is a pickle"),
        (with_right_hash(pickled("rows.safetensors")), "is a pickle"),
        (with_right_hash(torch_pickled), "is a pickle"),
        (pickled("adapter/adapter_model.bin"), "holds adapter/adapter_model.bin, a pickle"),
    ],
)
def test_what_is_wrong_with_a_pack_is_reported(damage: Callable[[Path], None], told: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(VocabgraftError, match=told):
        read_pack(folder)


def test_a_row_that_is_no_number_is_refused(pack: Pack, tmp_path: Path) -> None:
    rows = pack.rows.clone()
    rows[1, 2] = float("nan")
    write_pack(replace(pack, rows=rows), tmp_path / "broken")
    with pytest.raises(VocabgraftError, match="NaN"):
        read_pack(tmp_path / "broken")


def test_a_folder_of_something_else_is_not_replaced(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(VocabgraftError, match="not a vocabulary pack"):
        write_pack(pack, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_write_that_fails_leaves_the_pack_that_was_there(pack: Pack, folder: Path) -> None:
    before = hash_files(folder)
    with pytest.raises(VocabgraftError, match="cannot name"):
        write_pack(replace(pack, name="../up"), folder)
    with pytest.raises(TypeError):
        write_pack(replace(pack, figures={"x": object()}), folder)
    assert hash_files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_moved_pack_is_the_same(pack: Pack, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "elsewhere" / "x")
    assert read_pack(tmp_path / "elsewhere" / "x").name == pack.name


def test_contexts_are_a_few_short_texts_of_each_token(
    extended: "tuple[PreTrainedTokenizerFast, list[ExtendedToken]]",
) -> None:
    tokenizer, tokens = extended
    texts = [f"the nephrolith {number}" for number in range(9)] + ["nephrolith " * LONGEST_CONTEXT, "a dog"]
    chosen = choose_contexts(texts, tokenizer, tokens, 3, tokenizer.unk_token_id)
    for token in tokens:
        assert sum(token.text in text for text in chosen) == 3
    assert chosen[:3] == tuple(texts[:3])
    assert max(map(len, chosen)) <= LONGEST_CONTEXT
    assert choose_contexts(texts, tokenizer, tokens, 0, tokenizer.unk_token_id) == ()
