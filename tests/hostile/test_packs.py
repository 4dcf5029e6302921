"""A pack or a manifest with a wrong value anywhere is refused with one message that names the file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from tests.vocabgraft.conftest import load
from tests.vocabgraft.pack_samples import KIDNEY, make_pack
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.safetensors_files import read_header, read_json_object
from vocabgraft.packs.pack import Pack, PackAdapter
from vocabgraft.packs.pack_files import LARGEST_NUMBER, read_pack, write_pack
from vocabgraft.printable import spreadsheet_cell
from vocabgraft.storage.artifacts import hash_files, read_manifest, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Change = Callable[[Any], Any]
WRONG = [None, True, 1, -1, 1.5, 10**400, "", " ", "\ud800", [], {}, [[]], {"a": {}}, "x" * 10_000]


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> "SentenceTransformer":
    return load(tiny_base)


@pytest.fixture(scope="module")
def pack(tiny: "SentenceTransformer") -> Pack:
    weights = {"base_model.model.x.lora_A.weight": torch.arange(6.0).reshape(2, 3)}
    return make_pack(tiny, "kidney", KIDNEY, adapter=PackAdapter({"peft_type": "LORA", "r": 2}, weights))


@pytest.fixture
def folder(pack: Pack, tmp_path: Path) -> Path:
    write_pack(pack, tmp_path / "kidney")
    return tmp_path / "kidney"


def change_json(path: Path, change: Change) -> None:
    """Write a JSON file anew; half a surrogate pair stays escaped."""
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def accept(folder: Path) -> None:
    """A manifest that knows of the files as they are: its maker wrote them so."""
    change_json(folder / "manifest.json", lambda content: content | {"files": hash_files(folder)})


def refused(folder: Path) -> str:
    with pytest.raises(VocabgraftError) as error:
        read_pack(folder)
    said = str(error.value)
    assert len(said) < 1000 and said.encode()
    return said


# Where a value stands: in a token, in the manifest, or in what the manifest says of the base.
PLACES = {
    "token": ("text", "kind", "description", "single_word", "normalized", "lstrip", "rstrip"),
    "manifest": ("format", "name", "files", "figures", "licence"),
    "base": ("model", "weights_sha256", "tokenizer_sha256", "width", "tokens", "dtype"),
}
TEXTS = ("text", "description", "licence", "model", "dtype")
FLAGS = ("single_word", "normalized", "lstrip", "rstrip")


def is_allowed(key: str, value: Any) -> bool:
    """Whether one of the wrong values is none for this key."""
    if isinstance(value, str):
        return value != "\ud800" and key in TEXTS and (key != "text" or bool(value.strip()))
    if isinstance(value, bool):
        return key in FLAGS
    allowed = [("format", 1), ("tokens", 1), ("licence", None), ("figures", {}), ("figures", {"a": {}})]
    return (key, value) in allowed


def put(folder: Path, place: str, key: str, value: Any) -> None:
    """Write a pack whose maker gave it this value."""
    if place == "token":
        change_json(folder / "tokens.json", lambda found: [found[0] | {key: value}, *found[1:]])
    accept(folder)
    if place == "manifest":
        change_json(folder / "manifest.json", lambda found: found | {key: value})
    elif place == "base":
        change_json(folder / "manifest.json", lambda found: found | {"base": found["base"] | {key: value}})


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("place", PLACES)
def test_no_field_takes_a_value_of_another_type(place: str, value: Any, pack: Pack, tmp_path: Path) -> None:
    for key in PLACES[place]:
        write_pack(pack, tmp_path / key)
        put(tmp_path / key, place, key, value)
        if is_allowed(key, value):
            read_pack(tmp_path / key)
        else:
            assert str(tmp_path / key) in refused(tmp_path / key)


NO_TEXTS = [value for value in WRONG if not isinstance(value, str) or value == "\ud800"]


@pytest.mark.parametrize("value", NO_TEXTS, ids=repr)
def test_every_context_is_a_text(value: Any, folder: Path) -> None:
    change_json(folder / "contexts.json", lambda content: [*content, value])
    accept(folder)
    assert "contexts.json" in refused(folder)


@pytest.mark.parametrize("name", ["manifest.json", "tokens.json", "contexts.json", "adapter/adapter_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff[]", "nan", '"\\ud800"', "5"])
def test_json_of_any_kind_is_read_or_refused(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    if name != "manifest.json":
        accept(folder)
    said = refused(folder)
    assert str(folder) in said


@pytest.mark.parametrize(
    "kind",
    [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
@pytest.mark.parametrize("name", ["rows.safetensors", "adapter/adapter_model.safetensors"])
def test_weights_are_floats(kind: torch.dtype, name: str, pack: Pack, folder: Path) -> None:
    weights = torch.ones(pack.rows.shape).to(kind)
    save_file({"rows": weights}, folder / name, {"format": "pt"})
    accept(folder)
    said = refused(folder)
    assert name in said and "float32" in said


@pytest.mark.parametrize("number", [3e38, -3e38, 1e30, float("nan"), float("inf")])
def test_weights_are_numbers_that_can_be_computed_with(number: float, pack: Pack, tmp_path: Path) -> None:
    rows = pack.rows.clone()
    rows[1, 2] = number
    write_pack(replace(pack, rows=rows), tmp_path / "broken")
    said = refused(tmp_path / "broken")
    assert "rows.safetensors" in said and (f"{LARGEST_NUMBER:g}" in said or "NaN" in said)


def test_a_pack_has_tokens_and_each_once(pack: Pack, tmp_path: Path) -> None:
    write_pack(replace(pack, tokens=(), rows=pack.rows[:0]), tmp_path / "empty")
    assert "rows.safetensors" in refused(tmp_path / "empty")
    write_pack(replace(pack, tokens=(pack.tokens[0],) * len(pack.tokens)), tmp_path / "twice")
    assert "tokens.json" in refused(tmp_path / "twice")


def test_the_packs_of_the_project_are_still_read(pack: Pack, folder: Path) -> None:
    assert read_pack(folder).tokens == pack.tokens


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "[]", "\x00"])
def test_json_and_manifests_of_models_and_artifacts_end_in_one_message(text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text, encoding="utf-8")
    for read in (read_json_object, lambda file: read_manifest(file.parent)):
        with pytest.raises(VocabgraftError, match=r"manifest\.json"):
            read(path)


@pytest.mark.parametrize(
    "content", [{}, {"digest": 1, "files": {}}, {"digest": "x", "files": []}, {"digest": "x", "files": {"a": 1}}]
)
def test_a_manifest_has_a_digest_and_hashes(content: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", content)
    with pytest.raises(VocabgraftError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1, 2]}}',
        b'{"__metadata__": 5}',
    ],
)
def test_a_header_of_safetensors_ends_in_one_message(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(VocabgraftError, match=r"a\.safetensors"):
        read_header(path)


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "\r=1"])
def test_a_cell_is_no_formula(cell: str) -> None:
    assert spreadsheet_cell(cell).startswith("'")
    assert spreadsheet_cell(cell).endswith(cell[-1])


@pytest.mark.parametrize("cell", ["", "a=b", "-1", "+2.5", "-3e-05", "'=1", "kidney", "(=1)"])
def test_other_cells_stay(cell: str) -> None:
    assert spreadsheet_cell(cell) == cell
