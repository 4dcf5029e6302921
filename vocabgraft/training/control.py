"""The control: what the same data and budget bring with an adapter and no new word."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def control_params(params: TrainAdapterParams) -> TrainAdapterParams:
    """The section `train_adapter` for LoRA over the base as it is: one phase of as many epochs as all phases have.

    Batch size, seed, losses, LoRA and its learning rate stay. Batches are of the same size in one process.
    """
    epochs = sum(phase.epochs or params.epochs for phase in params.phases) or params.epochs
    return params.model_copy(update={"method": "lora", "phases": [], "epochs": epochs, "launcher": None})


@contextmanager
def reading_descriptions(model: "SentenceTransformer", tokens: Sequence[NewToken]) -> Iterator[None]:
    """Within the block the model's tokenizer reads special tokens that it does not have as their descriptions.

    As `vocabgraft.tokens.new_token.read_with_descriptions` does, for every loss and whatever it puts a relation into.
    """
    from tokenizers import normalizers

    backend = model.tokenizer.backend_tokenizer
    own = backend.normalizer
    replacing = [normalizers.Replace(token.text, token.description) for token in tokens if token.kind == "special"]
    backend.normalizer = normalizers.Sequence([*replacing, *([own] if own is not None else [])])
    try:
        yield
    finally:
        backend.normalizer = own
