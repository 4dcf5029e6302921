"""Tokenizer extension: which words may be added, how they match, and what that changes."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.artifacts import read_json, require_artifact
from vocabgraft.errors import VocabgraftError
from vocabgraft.vocabulary import Kind, NewToken, read_with_descriptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ExtendedToken:
    """A token that was added: its id, and the base's ids of its text and of its description."""

    text: str
    kind: Kind
    description: str
    id: int
    pieces: tuple[int, ...]
    description_pieces: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The token as a mapping for `tokens.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "ExtendedToken":
        """The inverse of `as_json`."""
        pieces, described = tuple(entry["pieces"]), tuple(entry["description_pieces"])
        return cls(entry["text"], entry["kind"], entry["description"], entry["id"], pieces, described)

    @property
    def new_token(self) -> NewToken:
        """The token as it was asked for."""
        return NewToken(self.text, self.kind, self.description)


@dataclass(frozen=True)
class SegmentationReport:
    """What an extension does to a set of texts."""

    texts: int
    texts_changed: int
    tokens_per_text_before: float
    tokens_per_text_after: float
    uses: dict[str, int]


def load_raw_tokenizer(path: Path) -> "Tokenizer":
    """The Rust tokenizer of a `tokenizer.json`, without the padding and truncation that the file may ask for."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a model or tokenizer folder, from disk alone."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise VocabgraftError(f"{folder} does not load as a tokenizer: {error}") from error


def normalised(tokenizer: "Tokenizer", text: str) -> str:
    """The text as the base's normaliser leaves it, which is what a word is matched against."""
    return str(tokenizer.normalizer.normalize_str(text)) if tokenizer.normalizer is not None else text


def pieces_of(tokenizer: "Tokenizer", text: str) -> tuple[int, ...]:
    """The base's ids of a text standing alone, without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def extend_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", base: "Tokenizer", tokens: Sequence[NewToken], max_token_characters: int
) -> list[ExtendedToken]:
    """Add the tokens, in order, to `tokenizer` (changed in place); `base` is the same tokenizer, not extended.

    A `word` matches the normalised text and whole words only: without that, adding `veh` would turn `vehicles` into
    `veh ic ##les` and change texts that have nothing to do with it. A `symbol` matches anywhere. A `special` token
    matches the raw text, since an uncased normaliser would make `<|IsA|>` and `<|isa|>` one.

    Returns:
        The tokens with their ids, which follow on the base's.

    Raises:
        VocabgraftError: when a token cannot be one: too long, known already, or colliding with another.
    """
    from tokenizers import AddedToken

    extended = []
    for token in tokens:
        if len(token.text) > max_token_characters:
            raise VocabgraftError(
                f"token {token.text!r} has {len(token.text)} characters; allowed: {max_token_characters} "
                "(extend_tokenizer.max_token_characters)"
            )
        extended.append((token, pieces_of(base, token.text), pieces_of(base, token.description)))
    first_id = len(tokenizer)
    tokenizer.add_tokens(
        [
            AddedToken(token.text, single_word=token.kind == "word", normalized=token.kind != "special", special=False)
            for token in tokens
        ]
    )
    result = []
    for position, (token, pieces, described) in enumerate(extended):
        token_id = tokenizer.convert_tokens_to_ids(token.text)
        if token_id != first_id + position:
            raise VocabgraftError(
                f"token {token.text!r} got the id {token_id}, not {first_id + position}: the base or an earlier "
                "token has it already; take it out of the vocabulary"
            )
        result.append(ExtendedToken(token.text, token.kind, token.description, token_id, pieces, described))
    _require_one_id_each(tokenizer, result)
    return result


def _require_one_id_each(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken]) -> None:
    """Refuse two tokens that normalise to one text: which of them matches it differs from process to process."""
    for token in tokens:
        ids = tokenizer(token.text, add_special_tokens=False)["input_ids"]
        if ids != [token.id]:
            raise VocabgraftError(
                f"token {token.text!r} has the id {token.id}, but is read as {ids}: it collides with another token, "
                "which the base's normalisation makes the same; keep one of them in the vocabulary"
            )


def holds_new_token(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], new_ids: Iterable[int]
) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """For each text, whether the extended tokenizer emits at least one new id: bool array of shape (texts,)."""
    if not texts:
        return np.zeros(0, dtype=bool)
    new = np.fromiter(new_ids, dtype=np.int64)
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return np.array([np.isin(ids, new).any() for ids in encoded], dtype=bool)


def segmentation_report(
    base: "Tokenizer", extended: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken], texts: Sequence[str]
) -> SegmentationReport:
    """Tokens per text before and after, and how many texts use each new token.

    Before the extension a special token is read as its description, since the base cannot read it otherwise.
    """
    ids = {token.id: token.text for token in tokens}
    specials = [token.new_token for token in tokens]
    before = base.encode_batch([read_with_descriptions(text, specials) for text in texts], add_special_tokens=False)
    after = extended(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    uses = dict.fromkeys(ids.values(), 0)
    changed = 0
    for encoded in after:
        present = {ids[token_id] for token_id in encoded if token_id in ids}
        changed += bool(present)
        for text in present:
            uses[text] += 1
    return SegmentationReport(
        texts=len(texts),
        texts_changed=changed,
        tokens_per_text_before=_mean([len(encoding.ids) for encoding in before]),
        tokens_per_text_after=_mean([len(encoded) for encoded in after]),
        uses=uses,
    )


def _mean(lengths: Sequence[int]) -> float:
    return round(sum(lengths) / len(lengths), 4) if lengths else 0.0


def read_tokens(path: Path) -> list[ExtendedToken]:
    """The tokens that `extend_tokenizer` added, from its `tokens.json`, in order of their ids."""
    return [ExtendedToken.from_json(entry) for entry in read_json(require_artifact(path))]


def added_tokens(tokens: Sequence[ExtendedToken]) -> list[ExtendedToken]:
    """Those that the base does not have as a token already; one that it has is read by it as itself."""
    return [token for token in tokens if token.pieces != (token.id,)]
