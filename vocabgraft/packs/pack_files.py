"""Reads and writes a pack as a folder; every file is checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.safetensors_header import read_header
from vocabgraft.storage.artifacts import MANIFEST, file_sha256, new_folder, write_json, write_manifest
from vocabgraft.tokens.new_token import KINDS

if TYPE_CHECKING:
    pass
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


def write_pack(pack: Pack, folder: Path) -> None:
    """Write a pack whole or not at all; a pack that lies in `folder` is replaced.

    Raises:
        VocabgraftError: when `folder` is something else than a pack.
    """
    if folder.exists() and not is_pack(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise VocabgraftError(f"{folder} is there and is no vocabulary pack; name another folder")
    with new_folder(folder, _about(pack)) as work:
        _write_files(pack, work)


def write_pack_inside(pack: Pack, folder: Path) -> None:
    """Write a pack to a new folder inside an artifact that is being written."""
    folder.mkdir()
    _write_files(pack, folder)
    write_manifest(folder, _about(pack))


def is_pack(folder: Path) -> bool:
    """Whether there is something in a folder that says it is a pack, whole or not."""
    return (folder / MANIFEST).is_file() and (folder / TOKENS).is_file()


def read_pack(folder: Path) -> Pack:
    """Read a pack and check every file of it against its manifest; nothing is unpickled.

    Raises:
        VocabgraftError: for a folder that is no pack, a damaged or incomplete one, a newer format, a pickle.
    """
    if not folder.is_dir():
        raise VocabgraftError(f"{folder} is no folder; name a vocabulary pack, a folder with {MANIFEST} and {TOKENS}")
    _refuse_pickles(folder)
    manifest = _read(folder, MANIFEST)
    files = _checked_files(folder, manifest)
    tokens = tuple(_token(folder, entry) for entry in _list(_read(folder, TOKENS), folder / TOKENS))
    base = _base(folder, manifest.get("base"))
    rows = _read_tensors(folder / ROWS).get("rows")
    if rows is None or rows.shape != (len(tokens), base.width):
        seen = "none" if rows is None else list(rows.shape)
        raise _damaged(folder / ROWS, f"rows of shape {[len(tokens), base.width]} are expected, it holds {seen}")
    if not bool(torch.isfinite(rows).all()):
        raise _damaged(folder / ROWS, "some of its numbers are none")
    contexts = _list(_read(folder, CONTEXTS), folder / CONTEXTS)
    adapter = _read_adapter(folder) if ADAPTER_CONFIG in files else None
    return Pack(
        name=str(manifest.get("name") or folder.name),
        base=base,
        tokens=tokens,
        rows=rows,
        adapter=adapter,
        gate=_gate(folder, manifest, tokens),
        contexts=tuple(str(text) for text in contexts),
        figures=dict(manifest.get("figures") or {}),
        licence=manifest.get("licence"),
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
            f"{folder} holds {found[0]}, a pickle, which can run code when it is read; a pack is safetensors and JSON "
            "alone: get the pack again from who made it, or delete that file"
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
            raise _damaged(path, f"its SHA-256 is {seen[:12]}..., by the manifest it is {str(digest)[:12]}...")
    return files


def _listed_files(folder: Path, manifest: Any) -> Mapping[str, str]:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise VocabgraftError(f"{folder} is no vocabulary pack: {MANIFEST} in it names no format; name another folder")
    if manifest["format"] > FORMAT:
        raise VocabgraftError(
            f"{folder} is a pack of format {manifest['format']}, newer than {FORMAT}, which this version of vocabgraft "
            "reads; update vocabgraft"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {TOKENS, ROWS, CONTEXTS} <= files.keys():
        raise _damaged(folder / MANIFEST, "it does not list the pack's files")
    if unknown := sorted(set(files) - set(READ)):
        raise _damaged(folder / MANIFEST, f"it lists {unknown[0]}, which is no part of a pack")
    return files


def _require_safetensors(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(2)
    # Protocol 2 and later begin with 0x80, and torch's own files are ZIP archives.
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise VocabgraftError(
            f"{path} is a pickle under the name of safetensors; it can run code when it is read, so it is not: get the "
            "pack again from who made it"
        )
    read_header(path)


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if name == MANIFEST:
            raise VocabgraftError(
                f"{folder} has no {MANIFEST}, so it is no vocabulary pack or was not written to its end; "
                "name a pack, such as the folder pack of a merged model"
            ) from error
        raise _damaged(path, "it is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise _damaged(path, f"it holds a {type(value).__name__}, not a list")
    return value


def _token(folder: Path, entry: Any) -> PackToken:
    try:
        token = PackToken(**entry)
    except TypeError as error:
        raise _damaged(folder / TOKENS, str(error)) from error
    if not isinstance(token.text, str) or not token.text or token.kind not in KINDS:
        raise _damaged(folder / TOKENS, f"{entry} is no token; kinds: {', '.join(KINDS)}")
    return token


def _base(folder: Path, entry: Any) -> PackBase:
    try:
        return PackBase(**entry)
    except TypeError as error:
        raise _damaged(folder / MANIFEST, f"its base is {entry!r}") from error


def _gate(folder: Path, manifest: Mapping[str, Any], tokens: Sequence[PackToken]) -> tuple[str, ...] | None:
    if (gate := manifest.get("gate")) is None:
        return None
    known = {token.text for token in tokens}
    if not isinstance(gate, list) or not all(text in known for text in gate):
        raise _damaged(folder / MANIFEST, "its gate names a token that it does not have")
    return tuple(gate)


def _read_adapter(folder: Path) -> PackAdapter:
    config = _read(folder, ADAPTER_CONFIG)
    if not isinstance(config, dict) or "peft_type" not in config:
        raise _damaged(folder / ADAPTER_CONFIG, "it is no configuration of PEFT")
    return PackAdapter(config, _read_tensors(folder / ADAPTER_WEIGHTS))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, how: str) -> VocabgraftError:
    return VocabgraftError(f"{path} is damaged: {how}; get the pack again from where it came from")
