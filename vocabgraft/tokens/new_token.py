"""A new token before it has an id: text, kind, description."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Kind = Literal["word", "symbol", "special"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class NewToken:
    """A token to add: a whole `word`, a `symbol` that matches anywhere, or a `special` token such as `<|IsA|>`."""

    text: str
    kind: Kind
    description: str


def relation_token(relation: str) -> str:
    """The token of a relation of a triple."""
    return f"<|{relation}|>"


def read_with_descriptions(text: str, tokens: Iterable[NewToken]) -> str:
    """The text as the base should read it, with each special token replaced by its description.

    `dog <|IsA|> animal` becomes `dog is a kind of animal`, since no subword token of the base stands for a relation.
    """
    for token in tokens:
        if token.kind == "special" and token.text in text:
            text = text.replace(token.text, token.description)
    return text


@contextmanager
def reading_descriptions(model: "SentenceTransformer", tokens: Sequence[NewToken]) -> Iterator[None]:
    """Within the block the model's tokenizer reads special tokens that it does not have as their descriptions.

    It applies `read_with_descriptions` to every loss and every text that contains a relation.
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
