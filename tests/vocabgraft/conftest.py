"""Grafts of the tiny base: extended, resized, with an adapter, merged; made once and shared, never changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from vocabgraft.config.datasets import LABELS, NUMBERS, VECTORS
from vocabgraft.config.losses import Format
from vocabgraft.config.params import load_params
from vocabgraft.config.training import Method, PeftParams, TrainAdapterParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

NEW_TOKENS = (
    NewToken("nephrolith", "word", "stone in the kidney"),
    NewToken("Thrombopenia", "word", ""),
    NewToken("->", "symbol", "is made of"),
    NewToken("<|IsA|>", "special", "is a kind of"),
)
RESIZED = "data/resize_base"
ADAPTERS: tuple[Method, ...] = ("tokens", "gated", "lora", "lora_and_tokens", "peft", "peft_and_tokens")
METHODS: tuple[Method, ...] = (*ADAPTERS, "full")
WITH_ROWS: tuple[Method, ...] = ("tokens", "gated", "lora_and_tokens", "peft_and_tokens")
# What the methods of PEFT make where a test does not say it.
PEFT = {
    "peft": PeftParams(config="LoHaConfig", arguments={"r": 2, "target_modules": ["query", "dense"]}),
    "peft_and_tokens": PeftParams(
        config="LoraConfig", arguments={"r": 2, "use_dora": True, "target_modules": ["query", "dense"]}
    ),
}


@dataclass(frozen=True)
class Graft:
    """The folders of a chain over the tiny base, up to an adapter with random weights and its merge.

    The adapters name their base relative to `root`, so they load only from there.
    """

    base: Path
    tokenizer: Path
    tokens: tuple[ExtendedToken, ...]
    root: Path
    resized: Path
    adapters: dict[Method, Path]
    merged: dict[Method, Path]

    @property
    def new_ids(self) -> list[int]:
        """The ids of the new tokens."""
        return [token.id for token in self.tokens]


@pytest.fixture(scope="session")
def base_tokenizer(tiny_base: Path) -> "Tokenizer":
    """The tiny base's own tokenizer; never changed."""
    from vocabgraft.tokens.tokenizer import load_raw_tokenizer

    return load_raw_tokenizer(tiny_base / "tokenizer.json")


@pytest.fixture(scope="session")
def extended(tiny_base: Path, base_tokenizer: "Tokenizer") -> "tuple[PreTrainedTokenizerFast, list[ExtendedToken]]":
    """The tiny base's tokenizer with NEW_TOKENS, and those; never changed."""
    from vocabgraft.tokens.tokenizer import extend_tokenizer, load_tokenizer

    tokenizer = load_tokenizer(tiny_base)
    return tokenizer, extend_tokenizer(tokenizer, base_tokenizer, NEW_TOKENS, 64)


@pytest.fixture(scope="session")
def graft(
    tiny_base: Path,
    extended: "tuple[PreTrainedTokenizerFast, list[ExtendedToken]]",
    tmp_path_factory: pytest.TempPathFactory,
) -> Graft:
    """A chain whose adapters hold random weights, as if trained."""
    from vocabgraft.config.stages import PromptParams
    from vocabgraft.models.resize import write_resized
    from vocabgraft.storage.artifacts import new_folder
    from vocabgraft.tokens.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("graft")
    tokenizer, tokens = extended
    tokenizer.save_pretrained(root / "tokenizer")
    rows = mean_rows(tiny_base, tokens)
    with new_folder(root / RESIZED) as work:
        write_resized(tiny_base, load_tokenizer(root / "tokenizer"), rows, PromptParams(), None, work)
    adapters = {method: save_random_adapter(root, method, tokens) for method in METHODS}
    merged = {method: save_merged(root, method, adapters[method], tokens) for method in METHODS}
    return Graft(tiny_base, root / "tokenizer", tuple(tokens), root, root / RESIZED, adapters, merged)


def mean_rows(base: Path, tokens: Sequence[ExtendedToken]) -> Any:
    """The mean of the rows of each token's pieces, of its description's where it is a special token."""
    import torch

    old = rows_of(load(base))
    pieces = [token.description_pieces if token.kind == "special" else token.pieces for token in tokens]
    return torch.stack([old[list(ids)].mean(dim=0) for ids in pieces])


def save_random_adapter(root: Path, method: Method, tokens: Sequence[ExtendedToken], seed: int = 1) -> Path:
    """Save an adapter with random weights over the resized base, or with `full` the base with noise on all of them."""
    import torch

    from vocabgraft.models.base import load_model
    from vocabgraft.models.saving import save_model
    from vocabgraft.storage.artifacts import new_folder
    from vocabgraft.token_embeddings.trainable import ROWS
    from vocabgraft.training.adapters import add_adapter, trainable_parameters

    model = load_model(root / RESIZED, device="cpu")
    add_adapter(model, method, [token.id for token in tokens], lora_params(), PEFT.get(method))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            drawn = torch.randn(parameter.shape, generator=generator)
            if method == "full":
                parameter.copy_(parameter + drawn / 100)
            else:
                # Rows of the size of the base's own; an adapter's factors of one at which they move every text.
                parameter.copy_(drawn * (0.02 if ROWS.search(name) else 0.5))
    folder = root / f"adapter-{method}-{seed}"
    with new_folder(folder) as work:
        save_model(model, work, adapter_base=RESIZED)
    return folder


def save_merged(root: Path, method: Method, adapter: Path, tokens: Sequence[ExtendedToken]) -> Path:
    """Merge an adapter into the resized base and save the result."""
    from vocabgraft.models.saving import save_model
    from vocabgraft.storage.artifacts import new_folder
    from vocabgraft.training.adapters import merged_model

    with new_folder(root / f"merged-{method}") as work:
        gate_ids = [token.id for token in tokens] if method == "gated" else []
        save_model(merged_model(root / RESIZED, adapter, gate_ids=gate_ids), work)
    return root / f"merged-{method}"


def load(folder: Path) -> "SentenceTransformer":
    """A model of a graft, loaded anew, so that it may be changed."""
    from vocabgraft.models.base import load_model

    return load_model(folder, device="cpu")


def rows_of(model: "SentenceTransformer") -> Any:
    """The input embeddings."""
    return model[0].auto_model.get_input_embeddings().weight.detach()


def train_params(**changes: Any) -> TrainAdapterParams:
    """The project's section `train_adapter`, made small, with changes."""
    section = load_params(ROOT / "params.yaml").train_adapter.model_dump()
    small = {"method": "tokens", "epochs": 1, "batch_size": 8, "phases": [], "lora": section["lora"] | {"r": 2}}
    if peft := PEFT.get(changes.get("method", "tokens")):
        small["peft"] = peft.model_dump()
    return TrainAdapterParams.model_validate(section | small | changes)


def lora_params() -> Any:
    """LoRA of rank 2."""
    return train_params().lora


WriteDataset = Callable[..., AcceptedDataset]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Write accepted splits as `validate_data` does: `write(name, format, train=[row, ...], test=[...])`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vocabgraft.storage.artifacts import write_json

    def write(
        name: str, dataset_format: Format, columns: Sequence[str], **splits: list[tuple[Any, ...]]
    ) -> AcceptedDataset:
        folder = tmp_path / "accepted" / name
        folder.mkdir(parents=True)
        for split in SPLITS:
            values = list(zip(*splits.get(split, []), strict=True)) or [()] * len(columns)
            types = dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(LABELS, pa.int64())
            types |= dict.fromkeys(VECTORS, pa.list_(pa.float32()))
            table = pa.table(
                {
                    column: pa.array(list(entries), types.get(column, pa.string()))
                    for column, entries in zip(columns, values, strict=True)
                }
            )
            pq.write_table(table, folder / f"{split}.parquet")
        write_json(folder / "manifest.json", {})
        return AcceptedDataset(name, dataset_format, folder)

    return write
