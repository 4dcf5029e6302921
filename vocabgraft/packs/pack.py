"""Vocabulary packs: the words that a base learnt, as a small folder apart from the base.

A pack holds tokens with the way they match, their rows, an adapter where one was trained, and a few texts for each
token. Its manifest says which base it is for, since rows mean nothing over another one.

    pack/
      manifest.json       format, name, base, figures, licence, and the content hash of every file
      tokens.json         text, kind, description and matching of each token, in the order of the rows
      rows.safetensors    `rows`, of shape (tokens, width)
      contexts.json       texts that use the tokens, from which their rows can be distilled for another base
      adapter/            adapter_config.json and adapter_model.safetensors of PEFT, where the pack has an adapter
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.safetensors_files import read_header
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME as CONFIG
from vocabgraft.storage.artifacts import MANIFEST, digest_of, file_sha256, new_folder, write_json, write_manifest
from vocabgraft.token_embeddings.distill import TEMPLATES, find_contexts
from vocabgraft.tokens.new_token import KINDS, Kind, NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken, added_token

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
TOKENS, ROWS, CONTEXTS = "tokens.json", "rows.safetensors", "contexts.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = f"adapter/{CONFIG}", "adapter/adapter_model.safetensors"
READ = (TOKENS, ROWS, CONTEXTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
PICKLES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"))
# A longer text costs more room than what it says of one of its words is worth.
LONGEST_CONTEXT = 400
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Rows of new tokens among an adapter's weights; a pack has them as rows.
TOKEN_ROWS = "trainable_tokens"


@dataclass(frozen=True)
class PackBase:
    """What a pack is for: a base by the content of its weights and of its tokenizer.

    Attributes:
        model: how the base was named, for people.
        weights_sha256: over names, types, shapes and values of the weights in memory.
        tokenizer_sha256: over the tokenizer's definition.
        width: of a row.
        tokens: of the base's tokenizer; the id of a pack's first token.
        dtype: of the base's rows, such as `float32`.
    """

    model: str
    weights_sha256: str
    tokenizer_sha256: str
    width: int
    tokens: int
    dtype: str


@dataclass(frozen=True)
class PackToken:
    """A token with the way it matches, as it was trained with."""

    text: str
    kind: Kind
    description: str
    single_word: bool
    normalized: bool
    lstrip: bool
    rstrip: bool

    @classmethod
    def of(cls, token: NewToken) -> "PackToken":
        """With the matching that `tokenizer.added_token` gives it."""
        added = added_token(token)
        matching = (added.single_word, added.normalized, added.lstrip, added.rstrip)
        return cls(token.text, token.kind, token.description, *matching)

    @property
    def new_token(self) -> NewToken:
        """The token as it was asked for."""
        return NewToken(self.text, self.kind, self.description)

    @property
    def matching(self) -> tuple[bool, bool, bool, bool]:
        """What decides where it is found."""
        return self.single_word, self.normalized, self.lstrip, self.rstrip

    @property
    def added(self) -> "AddedToken":
        """As the tokenizers library takes it."""
        from tokenizers import AddedToken

        single_word, normalized, lstrip, rstrip = self.matching
        return AddedToken(
            self.text, single_word=single_word, normalized=normalized, lstrip=lstrip, rstrip=rstrip, special=False
        )


@dataclass(frozen=True)
class PackAdapter:
    """A PEFT adapter over the base: its configuration, and its weights by the names that PEFT saves them under."""

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Pack:
    """A vocabulary apart from its base.

    Attributes:
        name: by which a bank knows it.
        base: what it is for.
        tokens: in the order of the rows.
        rows: shape (tokens, width).
        adapter: of the transformer; with one, texts without a new word move too.
        contexts: texts that use the tokens.
        figures: what was measured of it, for people.
        licence: under which it may be used, None where nobody said.
    """

    name: str
    base: PackBase
    tokens: tuple[PackToken, ...]
    rows: torch.Tensor
    adapter: PackAdapter | None = None
    contexts: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The tokens' texts, in the order of the rows."""
        return tuple(token.text for token in self.tokens)


def identify(model: "SentenceTransformer", name: str) -> PackBase:
    """What a loaded base is; its weights are read and hashed once, by all cores (0.8 s of one core for 90 MB).

    Args:
        model: without new tokens.
        name: how a person names it.
    """
    embedding = model[0].auto_model.get_input_embeddings().weight
    dtype = str(embedding.dtype).removeprefix("torch.")
    return PackBase(
        name,
        _weights_sha256(model),
        _tokenizer_sha256(model.tokenizer),
        embedding.shape[1],
        len(model.tokenizer),
        dtype,
    )


def require_base(pack: Pack, base: PackBase) -> None:
    """Refuse a pack that is for another base.

    Raises:
        VocabgraftError: naming both, what differs, and how to carry the pack over.
    """
    if pack.base.weights_sha256 == base.weights_sha256 and pack.base.tokenizer_sha256 == base.tokenizer_sha256:
        return
    same_weights = pack.base.weights_sha256 == base.weights_sha256
    seen, wanted = (
        f"{which.model} (weights {which.weights_sha256[:12]}, tokenizer {which.tokenizer_sha256[:12]}, rows of "
        f"{which.width} numbers in {which.dtype})"
        for which in (base, pack.base)
    )
    raise VocabgraftError(
        f"the pack {pack.name!r} is for the base {wanted}; this is {seen}, another "
        f"{'tokenizer' if same_weights else 'model'}; load that base, or make a pack for this one: "
        "vocabgraft pack transfer --help"
    )


def choose_contexts(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    per_token: int,
    unknown_id: int | None,
) -> tuple[str, ...]:
    """The first texts that use each token, `per_token` of each and none longer than LONGEST_CONTEXT characters.

    Plain templates fill up what is missing. With 0 there are none.
    """
    uses = dict.fromkeys((token.id for token in tokens), 0)
    chosen: list[str] = []
    for context in find_contexts(
        [text for text in texts if len(text) <= LONGEST_CONTEXT], tokenizer, tokens, unknown_id
    ):
        if any(uses[token] < per_token for token in context.tokens):
            chosen.append(context.text)
            for token in context.tokens:
                uses[token] += 1
    made = [
        template.format(token.text) for token in tokens for template in TEMPLATES[: max(0, per_token - uses[token.id])]
    ]
    return tuple(dict.fromkeys([*chosen, *made]))


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
        contexts=tuple(str(text) for text in contexts),
        figures=dict(manifest.get("figures") or {}),
        licence=manifest.get("licence"),
    )


def check_name(name: str) -> str:
    """A vocabulary's name, which is a folder's name too.

    Raises:
        VocabgraftError: when it is none.
    """
    if not NAME.fullmatch(name):
        raise VocabgraftError(
            f"{name!r} is no name for a vocabulary; allowed: letters, digits, '.', '_' and '-', "
            "the first one a letter or a digit"
        )
    return name


def adapter_from(folder: Path) -> PackAdapter | None:
    """The adapter of a folder that `train_adapter` saved, without the rows of new tokens; None where only rows were."""
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if TOKEN_ROWS not in name}
    if not weights:
        return None
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return PackAdapter(config | {"base_model_name_or_path": None, "trainable_token_indices": None}, weights)


def renamed(pack: Pack, name: str) -> Pack:
    """The pack under another name."""
    return replace(pack, name=check_name(name))


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
        "format": FORMAT,
        "name": check_name(pack.name),
        "base": asdict(pack.base),
        "figures": dict(pack.figures),
        "licence": pack.licence,
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


def _weights_sha256(model: "SentenceTransformer") -> str:
    tensors = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:
        values = list(pool.map(_values_sha256, (tensor for _, tensor in tensors)))
    described = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors]
    return digest_of([[*entry, value] for entry, value in zip(described, values, strict=True)])


def _values_sha256(tensor: torch.Tensor) -> str:
    # The bytes, since numpy has no bfloat16.
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(values.data).hexdigest()


def _tokenizer_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    defined = json.loads(tokenizer.backend_tokenizer.to_str())
    # Every call of a tokenizer sets these anew.
    return hashlib.sha256(
        json.dumps(defined | {"padding": None, "truncation": None}, sort_keys=True).encode()
    ).hexdigest()
