"""What a new token is, before it has an id."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

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
    """The text as the base should read it: each special token replaced by its description.

    `dog <|IsA|> animal` becomes `dog is a kind of animal`, since the base has no piece that stands for a relation.
    """
    for token in tokens:
        if token.kind == "special" and token.text in text:
            text = text.replace(token.text, token.description)
    return text
