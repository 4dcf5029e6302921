"""Reads and writes a pack as a folder; every file is checked."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.safetensors_header import read_header
from vocabgraft.packs.pack import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONTEXTS,
    FORMAT,
    FORMAT_WITHOUT_GATE,
    PICKLES,
    READ,
    ROWS,
    TOKENS,
    Pack,
    PackAdapter,
    PackBase,
    PackToken,
    check_name,
)
from vocabgraft.storage.artifacts import MANIFEST, file_sha256, new_folder, write_json, write_manifest
from vocabgraft.storage.bounds import special_kind
from vocabgraft.tokens.new_token import KINDS

Made = TypeVar("Made", PackBase, PackToken)
KINDS_OF_VALUES: Mapping[Any, str] = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object"}
SHA256 = re.compile(r"[0-9a-f]{64}")
# The largest number of a float16; embeddings of words are below 10.
LARGEST_NUMBER = 65504.0
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_ENTRIES = 1 << 31
# Characters of a value shown in a message.
LONGEST_VALUE = 60


def write_pack(pack: Pack, folder: Path) -> None:
    """Write a pack whole or not at all; an existing pack in `folder` is replaced.

    Raises:
        VocabgraftError: when `folder` exists and is not a pack.
    """
    if folder.exists() and not is_pack(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise VocabgraftError(f"{folder} exists and is not a vocabulary pack; name another folder")
    with new_folder(folder, _about(pack)) as work:
        _write_files(pack, work)


def write_pack_inside(pack: Pack, folder: Path) -> None:
    """Write a pack to a new folder inside an artifact that is being written."""
    folder.mkdir()
    _write_files(pack, folder)
    write_manifest(folder, _about(pack))


def is_pack(folder: Path) -> bool:
    """Whether a folder has a file of a pack, complete or not."""
    return (folder / MANIFEST).is_file() and (folder / TOKENS).is_file()


def read_pack(folder: Path) -> Pack:
    """Read a pack and check every file of it against its manifest; nothing is unpickled.

    Raises:
        VocabgraftError: for a folder that is not a pack, a damaged or incomplete pack, a newer format, a pickle.
    """
    if not folder.is_dir():
        raise VocabgraftError(
            f"{folder} is not a folder; name a vocabulary pack, a folder with {MANIFEST} and {TOKENS}"
        )
    _refuse_pickles(folder)
    manifest = _read(folder, MANIFEST)
    files = _checked_files(folder, manifest)
    tokens = tuple(_token(folder, entry) for entry in _list(_read(folder, TOKENS), folder / TOKENS))
    if len({token.text for token in tokens}) < len(tokens):
        raise _damaged(folder / TOKENS, "a token occurs twice")
    base = _base(folder, manifest.get("base"))
    rows = _read_tensors(folder / ROWS).get("rows")
    if rows is None or not tokens or rows.shape != (len(tokens), base.width):
        seen = "none" if rows is None else list(rows.shape)
        wanted = [len(tokens) or "1 or more", base.width]
        raise _damaged(folder / ROWS, f"its rows have shape {seen}, not {wanted}")
    contexts = _list(_read(folder, CONTEXTS), folder / CONTEXTS)
    adapter = _read_adapter(folder) if ADAPTER_CONFIG in files else None
    licence = manifest.get("licence")
    return Pack(
        name=_name(folder, manifest),
        base=base,
        tokens=tokens,
        rows=rows,
        adapter=adapter,
        gate=_gate(folder, manifest, tokens),
        contexts=tuple(_typed(text, str, "a context", folder / CONTEXTS) for text in contexts),
        figures=_typed(manifest.get("figures", {}), dict, "figures", folder / MANIFEST),
        licence=licence if licence is None else _typed(licence, str, "licence", folder / MANIFEST),
    )


def _write_files(pack: Pack, work: Path) -> None:
    from safetensors.torch import save_file

    write_json(work / TOKENS, [asdict(token) for token in pack.tokens])
    save_file({"rows": pack.rows.detach().cpu().contiguous()}, work / ROWS, {"format": "pt"})
    write_json(work / CONTEXTS, list(pack.contexts))
    if pack.adapter is not None:
        (work / ADAPTER_CONFIG).parent.mkdir()
        write_json(work / ADAPTER_CONFIG, dict(pack.adapter.config))
        weights = {name: value.detach().cpu().contiguous() for name, value in pack.adapter.weights.items()}
        save_file(weights, work / ADAPTER_WEIGHTS, {"format": "pt"})


def _about(pack: Pack) -> dict[str, Any]:
    return {
        "format": FORMAT_WITHOUT_GATE if pack.gate is None else FORMAT,
        "name": check_name(pack.name),
        "base": asdict(pack.base),
        "figures": dict(pack.figures),
        "licence": pack.licence,
        **({} if pack.gate is None else {"gate": list(pack.gate)}),
    }


def _refuse_pickles(folder: Path) -> None:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in PICKLES)
    if found:
        raise VocabgraftError(
            f"{folder} holds {found[0]}, a pickle, which can run code when it is read; a pack is only safetensors and "
            "JSON: get the pack again from its source, or delete that file"
        )


def _checked_files(folder: Path, manifest: Any) -> Mapping[str, str]:
    files = _listed_files(folder, manifest)
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if path.suffix == ".safetensors":
            _require_safetensors(path)
        if (seen := file_sha256(path)) != digest:
            raise _damaged(path, f"its SHA-256 is {seen[:12]}..., but the manifest has {str(digest)[:12]}...")
    return files


def _listed_files(folder: Path, manifest: Any) -> Mapping[str, str]:
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int or manifest["format"] < 1:
        raise VocabgraftError(f"{folder} is not a vocabulary pack: its {MANIFEST} has no format; name another folder")
    if manifest["format"] > FORMAT:
        raise VocabgraftError(
            f"{folder} is a pack of format {manifest['format']}, newer than {FORMAT}, which this version of vocabgraft "
            "reads; update vocabgraft"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {TOKENS, ROWS, CONTEXTS} <= files.keys():
        raise _damaged(folder / MANIFEST, "it does not list the pack's files")
    if unknown := sorted(set(files) - set(READ)):
        raise _damaged(folder / MANIFEST, f"it lists {_shown(unknown[0])}, which is not part of a pack")
    if (ADAPTER_CONFIG in files) != (ADAPTER_WEIGHTS in files):
        raise _damaged(folder / MANIFEST, f"it lists one of {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} without the other")
    return files


def _require_safetensors(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(2)
    # Protocol 2 and later begin with 0x80, and torch's own files are ZIP archives.
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise VocabgraftError(
            f"{path} is a pickle with a safetensors name; it can run code when it is read, so it was not read: get the "
            "pack again from its source"
        )
    read_header(path)


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    if kind := special_kind(path):
        raise _damaged(path, f"it is {kind}")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        # JSON can escape half of a surrogate pair, which is not a character.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError as error:
        if name == MANIFEST:
            raise VocabgraftError(
                f"{folder} has no {MANIFEST}, so it is not a vocabulary pack or was not written completely; "
                "name a pack, such as the folder pack of a merged model"
            ) from error
        raise _damaged(path, "it is missing") from error
    except RecursionError as error:
        raise _damaged(path, "its values are nested too deeply") from error
    except UnicodeEncodeError as error:
        raise _damaged(path, "it holds half of a surrogate pair, which is not a character") from error
    # For example not UTF-8, not JSON, or a number with thousands of digits.
    except (ValueError, IsADirectoryError) as error:
        raise _damaged(path, str(error)) from error


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise _damaged(path, f"it holds a {type(value).__name__}, not a list")
    return value


def _name(folder: Path, manifest: Mapping[str, Any]) -> str:
    name = _typed(manifest.get("name", folder.name), str, "name", folder / MANIFEST)
    try:
        return check_name(name)
    except VocabgraftError as error:
        raise _damaged(folder / MANIFEST, str(error)) from error


def _token(folder: Path, entry: Any) -> PackToken:
    token = _made(PackToken, entry, folder / TOKENS)
    if not token.text.strip() or token.kind not in KINDS:
        raise _damaged(folder / TOKENS, f"{_shown(entry)} is not a token; kinds: {', '.join(KINDS)}")
    return token


def _base(folder: Path, entry: Any) -> PackBase:
    path = folder / MANIFEST
    if not isinstance(entry, dict):
        raise _damaged(path, f"its base is {_shown(entry)}")
    base = _made(PackBase, entry, path)
    for name in ("weights_sha256", "tokenizer_sha256"):
        if not SHA256.fullmatch(getattr(base, name)):
            raise _damaged(path, f"{name} is {_shown(getattr(base, name))}, not a SHA-256 in hex")
    for name, number in (("width", base.width), ("tokens", base.tokens)):
        if not 0 < number < MOST_ENTRIES:
            raise _damaged(path, f"{name} is {_shown(number)}; allowed: 1 to {MOST_ENTRIES - 1:,}")
    return base


def _made(kind: type[Made], entry: Any, path: Path) -> Made:
    """An object of this type from a JSON object with exactly its fields, each with the right type."""
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise _damaged(path, f"{_shown(entry)} is not an object with {', '.join(names)}")
    return kind(**{name: _typed(entry[name], types[name], name, path) for name in names})


def _typed(value: Any, wanted: Any, name: str, path: Path) -> Any:
    # The kind of a token is a Literal of strings. In Python, True is an int.
    kind = wanted if wanted in KINDS_OF_VALUES else str
    if type(value) is not kind:
        raise _damaged(path, f"{name} is {_shown(value)}, not {KINDS_OF_VALUES[kind]}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _gate(folder: Path, manifest: Mapping[str, Any], tokens: Sequence[PackToken]) -> tuple[str, ...] | None:
    if (gate := manifest.get("gate")) is None:
        return None
    known = {token.text for token in tokens}
    if not isinstance(gate, list) or not all(isinstance(text, str) and text in known for text in gate):
        raise _damaged(folder / MANIFEST, "its gate names a token that it does not have")
    return tuple(gate)


def _read_adapter(folder: Path) -> PackAdapter:
    config = _read(folder, ADAPTER_CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise _damaged(folder / ADAPTER_CONFIG, "it is not a configuration of PEFT")
    return PackAdapter(config, _read_tensors(folder / ADAPTER_WEIGHTS))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, which must hold floats of a supported type."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    # A type that this release of safetensors or torch does not know raises a KeyError or an AttributeError.
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    for name, tensor in found.items():
        if tensor.dtype not in FLOATS:
            allowed = ", ".join(map(_name_of, FLOATS))
            raise _damaged(path, f"{_shown(name)} holds {_name_of(tensor.dtype)}; allowed: {allowed}")
        if not bool(torch.isfinite(tensor).all()):
            raise _damaged(path, f"{_shown(name)} has NaN or infinite numbers")
        if tensor.numel() and (largest := float(tensor.abs().max())) > LARGEST_NUMBER:
            raise _damaged(path, f"{_shown(name)} holds {largest:.3g}; allowed: up to {LARGEST_NUMBER:g}")
    return found


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _damaged(path: Path, how: str) -> VocabgraftError:
    return VocabgraftError(f"{path} is damaged: {how}; get the pack again from its source")
