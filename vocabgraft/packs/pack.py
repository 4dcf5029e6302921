"""A vocabulary pack: tokens, rows, contexts, the base that fits, optionally an adapter.

A pack holds tokens with their matching rules, their rows, an adapter if one was trained, and a few texts for each
token. Its manifest names its base, since rows mean nothing over another one.

    pack/
      manifest.json       format, name, base, figures, licence, and the content hash of every file
      tokens.json         text, kind, description and matching of each token, in the order of the rows
      rows.safetensors    `rows`, of shape (tokens, width)
      contexts.json       texts with the tokens, from which their rows can be distilled for another base
      adapter/            PEFT's adapter_config.json and adapter_model.safetensors, if the pack has an adapter
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME as CONFIG
from vocabgraft.storage.artifacts import digest_of
from vocabgraft.token_embeddings.distill import TEMPLATES, find_contexts
from vocabgraft.tokens.new_token import Kind, NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken, added_token

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

# A pack with a gate has format 2: a reader of format 1 would apply its adapter to every text. All others have 1.
FORMAT, FORMAT_WITHOUT_GATE = 2, 1
TOKENS, ROWS, CONTEXTS = "tokens.json", "rows.safetensors", "contexts.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = f"adapter/{CONFIG}", "adapter/adapter_model.safetensors"
READ = (TOKENS, ROWS, CONTEXTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
PICKLES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"))
# A longer text takes more space than its information about one word is worth.
LONGEST_CONTEXT = 400
# It is also a folder name, and file systems allow 255 bytes.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Rows of new tokens among an adapter's weights; a pack stores them as rows.
TOKEN_ROWS = "trainable_tokens"


@dataclass(frozen=True)
class PackBase:
    """The base of a pack, identified by the content of its weights and of its tokenizer.

    Attributes:
        model: a name for the base, for people.
        weights_sha256: over names, types, shapes and values of the weights in memory.
        tokenizer_sha256: over the tokenizer's definition.
        width: of a row.
        tokens: size of the base's tokenizer; the id of a pack's first token.
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
    """A token with the matching rules that it was trained with."""

    text: str
    kind: Kind
    description: str
    single_word: bool
    normalized: bool
    lstrip: bool
    rstrip: bool

    @classmethod
    def of(cls, token: NewToken) -> "PackToken":
        """The token with the matching rules of `tokenizer.added_token`."""
        added = added_token(token)
        matching = (added.single_word, added.normalized, added.lstrip, added.rstrip)
        return cls(token.text, token.kind, token.description, *matching)

    @property
    def new_token(self) -> NewToken:
        """The token as it was requested."""
        return NewToken(self.text, self.kind, self.description)

    @property
    def matching(self) -> tuple[bool, bool, bool, bool]:
        """The properties that decide where the token is found."""
        return self.single_word, self.normalized, self.lstrip, self.rstrip

    @property
    def added(self) -> "AddedToken":
        """The token for the tokenizers library."""
        from tokenizers import AddedToken

        single_word, normalized, lstrip, rstrip = self.matching
        return AddedToken(
            self.text, single_word=single_word, normalized=normalized, lstrip=lstrip, rstrip=rstrip, special=False
        )


@dataclass(frozen=True)
class PackAdapter:
    """A PEFT adapter over the base: its configuration, and its weights by PEFT's names."""

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Pack:
    """A vocabulary stored separately from its base.

    Attributes:
        name: of the vocabulary in a bank.
        base: that it fits.
        tokens: in the order of the rows.
        rows: shape (tokens, width).
        adapter: of the transformer; it also changes texts without a new word, unless there is a gate.
        gate: texts of tokens; only a text with one of them uses the adapter. None if every text uses it.
        contexts: texts with the tokens.
        figures: metrics of the pack, for people.
        licence: of the pack; None if unknown.
    """

    name: str
    base: PackBase
    tokens: tuple[PackToken, ...]
    rows: torch.Tensor
    adapter: PackAdapter | None = None
    gate: tuple[str, ...] | None = None
    contexts: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The tokens' texts, in the order of the rows."""
        return tuple(token.text for token in self.tokens)


def identify(model: "SentenceTransformer", name: str) -> PackBase:
    """The identity of a loaded base; hashes its weights once, on all cores (0.8 s of one core for 90 MB).

    Args:
        model: without new tokens.
        name: a name for people.
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
    """Refuse a pack for another base.

    Raises:
        VocabgraftError: naming both bases, the difference, and how to transfer the pack.
    """
    if pack.base.weights_sha256 == base.weights_sha256 and pack.base.tokenizer_sha256 == base.tokenizer_sha256:
        return
    same_weights = pack.base.weights_sha256 == base.weights_sha256
    seen, wanted = (
        f"{which.model} (weights {which.weights_sha256[:12]}, tokenizer {which.tokenizer_sha256[:12]}, rows of "
        f"width {which.width} in {which.dtype})"
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
    """The first texts with each token, `per_token` of each and none longer than LONGEST_CONTEXT characters.

    Templates fill up missing ones. With 0 there are none.
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


def check_name(name: str) -> str:
    """Return a vocabulary's name, which is also a folder's name.

    Raises:
        VocabgraftError: when the name is not allowed.
    """
    if not NAME.fullmatch(name):
        raise VocabgraftError(
            f"{name[:60]!r} cannot name a vocabulary; allowed: up to 128 letters, digits, '.', '_' and '-', "
            "the first one a letter or a digit"
        )
    return name


def adapter_from(folder: Path) -> PackAdapter | None:
    """The adapter in a folder of `train_adapter`, without the rows of new tokens; None if only rows were trained."""
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


def _weights_sha256(model: "SentenceTransformer") -> str:
    tensors = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:
        values = list(pool.map(_values_sha256, (tensor for _, tensor in tensors)))
    described = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors]
    return digest_of([[*entry, value] for entry, value in zip(described, values, strict=True)])


def _values_sha256(tensor: torch.Tensor) -> str:
    # As bytes, since numpy has no bfloat16.
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(values.data).hexdigest()


def _tokenizer_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    defined = json.loads(tokenizer.backend_tokenizer.to_str())
    # Every call of a tokenizer sets these again.
    return hashlib.sha256(
        json.dumps(defined | {"padding": None, "truncation": None}, sort_keys=True).encode()
    ).hexdigest()
