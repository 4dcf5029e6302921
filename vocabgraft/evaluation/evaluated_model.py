"""A model under evaluation, whose embeddings are cached; which texts contain a new word; and how fast it encodes."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, Role, encode_apart
from vocabgraft.tokens.new_token import NewToken, read_with_descriptions
from vocabgraft.tokens.tokenizer import ExtendedToken, holds_new_token

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
# Rounds of a comparison of speed.
ROUNDS = 3
Similarities = Callable[[Embeddings, Embeddings], "np.ndarray[Any, Any]"]


class NewWords:
    """Finds texts with a new word: texts for which the extended tokenizer emits at least one new id.

    Relation tokens are new tokens too, so a question with a new relation contains a new word.
    """

    def __init__(self, extended: Any, tokens: Sequence[ExtendedToken]) -> None:
        """Keep the extended tokenizer and the ids of the tokens whose rows train."""
        self.tokenizer, self.tokens = extended, tuple(tokens)

    def held(self, texts: Sequence[str]) -> BoolArray:
        """Whether each text contains a new word: (texts,)."""
        return holds_new_token(self.tokenizer, texts, [token.id for token in self.tokens])


class Subject:
    """A model under evaluation.

    Texts without a new token are embedded in separate batches. So two models that get the same texts in the same order
    embed them in equal batches, and can be compared bit for bit.
    """

    def __init__(
        self,
        name: str,
        model: "SentenceTransformer",
        new_words: NewWords,
        batch_size: int,
        described: Sequence[NewToken] = (),
        base: "Subject | None" = None,
    ) -> None:
        """Embed nothing yet.

        Args:
            name: a name such as `merged`.
            model: the model, in evaluation mode.
            new_words: finds texts with a new token.
            batch_size: batch size of the encoding.
            described: special tokens that the model lacks; it reads their descriptions instead.
            base: a model that differs from this one only in the rows of new tokens. Texts with the same token ids in
                both are embedded only once, by the base.
        """
        self.name, self.model, self.new_words, self.batch_size = name, model, new_words, batch_size
        self.described = tuple(described)
        self._base = base
        self._roles_differ = _roles_differ(model)
        self._rows: dict[Role | None, dict[str, Embeddings]] = {}

    @property
    def width(self) -> int:
        """The width of an embedding."""
        return int(self.model.get_embedding_dimension() or 0)

    def read(self, texts: Sequence[str]) -> list[str]:
        """The texts as the model gets them."""
        return [read_with_descriptions(text, self.described) for text in texts]

    def encode(self, texts: Sequence[str], role: Role | None = None) -> Embeddings:
        """Embeddings of shape (texts, width), each text embedded at its first call.

        Raises:
            VocabgraftError: for an embedding with a NaN or an infinity.
        """
        rows = self._rows.setdefault(role if self._roles_differ else None, {})
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        if missing:
            held = self.new_words.held(missing)
            if self._base is not None:
                shared = ~held & self._read_as_by(self._base, missing)
                alike = [missing[place] for place in np.flatnonzero(shared)]
                rows.update(zip(alike, self._base.encode(alike, role), strict=True))
                missing, held = [missing[place] for place in np.flatnonzero(~shared)], held[~shared]
            found = encode_apart(self.model, self.read(missing), held, self.batch_size, role)
            self._require_numbers(missing, found)
            rows.update(zip(missing, found, strict=True))
        return np.stack([rows[text] for text in texts]) if texts else np.zeros((0, self.width), dtype=np.float32)

    def similarities(self, left: Embeddings, right: Embeddings) -> "np.ndarray[Any, Any]":
        """The model's own similarity of each row of `left` to each of `right`: (left, right)."""
        found: np.ndarray[Any, Any] = self.model.similarity(left, right).cpu().numpy()
        return found

    def similarities_of_pairs(self, left: Embeddings, right: Embeddings) -> "np.ndarray[Any, Any]":
        """The model's own similarity of each row of `left` to that of `right`: (rows,)."""
        found: np.ndarray[Any, Any] = self.model.similarity_pairwise(left, right).cpu().numpy()
        return found

    def token_counts(self, texts: Sequence[str]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """The number of tokens of each text, without [CLS] and the like: (texts,)."""
        read = self.read(texts)
        ids = self.model.tokenizer(read, add_special_tokens=False, verbose=False)["input_ids"] if read else []
        return np.array([len(found) for found in ids], dtype=np.float64)

    def _read_as_by(self, other: "Subject", texts: Sequence[str]) -> BoolArray:
        """Whether each text has the same token ids in both: (texts,)."""
        ids = [subject.model.tokenizer(subject.read(texts), verbose=False)["input_ids"] for subject in (self, other)]
        return np.array([own == others for own, others in zip(*ids, strict=True)], dtype=bool)

    def _require_numbers(self, texts: Sequence[str], embeddings: Embeddings) -> None:
        broken = ~np.isfinite(embeddings).all(axis=1)
        if broken.any():
            raise VocabgraftError(
                f"the {self.name} model's embedding of {texts[int(broken.argmax())]!r} contains NaN or infinity "
                f"({broken.sum()} of {len(texts)} texts); the model's weights are damaged, so train it again with "
                "lower learning rates"
            )


def _roles_differ(model: "SentenceTransformer") -> bool:
    """Whether queries, documents and plain texts may be embedded differently, by a prompt or a Router."""
    from vocabgraft.models.extra_modules import has_heads

    return has_heads(model) or model.default_prompt_name is not None or any(model.prompts.values())


def compare_speed(
    base: Callable[[], object],
    merged: Callable[[], object],
    texts: int,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Texts per second of both models, and the median ratio merged / base over alternating rounds.

    Consecutive turns share the machine's other load, so the ratio is more reliable than either speed.

    Args:
        base: function that encodes the texts with the base.
        merged: function that encodes them with the merged model.
        texts: number of texts.
        rounds: number of rounds of each.
        clock: function that returns seconds.
    """
    seconds: list[Sequence[float]] = [[_seconds(encode, clock) for encode in (base, merged)] for _ in range(rounds)]
    return {
        "base_texts_per_second": round(texts / statistics.median(pair[0] for pair in seconds), 1),
        "merged_texts_per_second": round(texts / statistics.median(pair[1] for pair in seconds), 1),
        "ratio": round(statistics.median(before / after for before, after in seconds), 3),
    }


def _seconds(encode: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    encode()
    return max(clock() - started, 1e-9)
