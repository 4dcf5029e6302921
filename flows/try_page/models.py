"""Which models the page compares, and one of them loaded: how it reads, embeds and compares texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.engine.dag import read_dag
from vocabgraft.config.params import Params
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, Role, encode
from vocabgraft.storage.artifacts import MANIFEST, content_digest
from vocabgraft.tokens.new_token import NewToken, read_with_descriptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MERGING_STAGE, EXTENDING_STAGE = "merge_adapter", "extend_tokenizer"
BATCH_SIZE = 64
# A query of one person at a time, which the page answers at once.
LONGEST_WORD, SHORTEST_WORD = 40, 3


@dataclass(frozen=True)
class Candidate:
    """A model to compare, found and not loaded.

    Attributes:
        title: Base, Champion, Challenger or This run.
        name: what it is, such as `clinical version 3`.
        folder: a plain sentence-transformers folder.
    """

    title: str
    name: str
    folder: Path

    @cached_property
    def digest(self) -> str:
        """Of its files."""
        return content_digest(self.folder)


def find_candidates(params: Params, root: Path) -> tuple[list[Candidate], list[str]]:
    """The base, then champion and challenger; without a registered version the merged model of the last run.

    Returns:
        The models, and why others are missing.

    Raises:
        VocabgraftError: when the base is not there.
    """
    from tasks.support.models import resolve_base

    base = Candidate("Base", params.base.model, resolve_base(params.base)[0])
    found, missing = _registered(params.register_model.name)
    merged = output_of(MERGING_STAGE, root)
    if not found and merged is not None and (merged / MANIFEST).is_file():
        found = [Candidate("This run", f"output of {MERGING_STAGE}", merged)]
    return [base, *found], missing


def _registered(name: str) -> tuple[list[Candidate], list[str]]:
    from tasks.registry.lookup import CHALLENGER, CHAMPION, RETRIES_AT_START, connect, download_model, find_by_alias

    try:
        client = connect(RETRIES_AT_START)
        versions = {alias: find_by_alias(client, name, alias) for alias in (CHAMPION, CHALLENGER)}
        chosen = {found.version: (alias, found) for alias, found in reversed(versions.items()) if found}
        candidates = [
            Candidate(alias.capitalize(), f"{name} version {number}", download_model(f"models:/{name}/{number}"))
            for number, (alias, _) in sorted(chosen.items(), key=lambda entry: entry[1][0] != CHAMPION)
        ]
    except VocabgraftError as error:
        return [], [str(error)]
    missing = [f"{name} has no {alias}" for alias, found in versions.items() if found is None]
    if len(chosen) == 1 and not missing:
        missing = [f"champion and challenger are both version {next(iter(chosen))}"]
    return candidates, missing


def output_of(stage: str, root: Path) -> Path | None:
    """The folder that a stage of dvc.yaml writes; None where there is no such stage."""
    outs = [entry.outs[0] for entry in read_dag(root) if entry.name == stage and entry.outs]
    return root / outs[0] if outs else None


class TryModel:
    """A loaded model."""

    def __init__(
        self,
        candidate: Candidate,
        model: "SentenceTransformer",
        base_vocabulary: frozenset[str],
        described: Sequence[NewToken] = (),
    ) -> None:
        """Keep what is needed for any query.

        Args:
            candidate: what it is.
            model: in evaluation mode.
            base_vocabulary: tokens of the base; any other token is new.
            described: special tokens that the model does not have, which it reads as their descriptions.
        """
        self.candidate, self.model, self.base_vocabulary = candidate, model, base_vocabulary
        own = model.tokenizer.get_vocab()
        self.described = [token for token in described if token.text not in own]

    def read(self, texts: Sequence[str]) -> list[str]:
        """The texts as the model is given them."""
        return [read_with_descriptions(text, self.described) for text in texts]

    def tokens(self, text: str) -> list[tuple[str, bool]]:
        """The tokens of a text, and whether each is new."""
        (read,) = self.read([text])
        ids = self.model.tokenizer(read, add_special_tokens=False, verbose=False)["input_ids"]
        named = self.model.tokenizer.convert_ids_to_tokens(ids)
        return [(token, token not in self.base_vocabulary) for token in named]

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Embeddings:
        """Embeddings (texts, width), of length 1 where the model's similarity is the cosine."""
        found = encode(self.model, self.read(texts), BATCH_SIZE, role)
        return _unit(found) if self.model.similarity_fn_name == "cosine" else found

    def scores(self, query: Embeddings, documents: Embeddings) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The model's own similarity of one query (1, width) to documents (documents, width): (documents,)."""
        if self.model.similarity_fn_name in ("cosine", "dot"):
            import torch

            # By torch, which keeps to one thread for a query; NumPy would wait for its own.
            products: np.ndarray[Any, np.dtype[np.float32]] = torch.mv(
                torch.from_numpy(documents), torch.from_numpy(query[0])
            ).numpy()
            return products
        found: np.ndarray[Any, np.dtype[np.float32]] = self.model.similarity(query, documents).cpu().numpy()[0]
        return found

    def cosine(self, first: str, second: str) -> float:
        """The cosine of two texts."""
        left, right = _unit(encode(self.model, self.read([first, second]), BATCH_SIZE))
        return float(left @ right)

    def nearest_words(self, word: str, count: int) -> list[tuple[str, float]]:
        """The words whose input embeddings are nearest to a word's; of several tokens, to their mean."""
        weight = self._weight
        ids = self.model.tokenizer(self.read([word]), add_special_tokens=False, verbose=False)["input_ids"][0]
        if not ids:
            return []
        row = weight[ids].mean(axis=0)
        places, names = self._words
        cosines = (weight[places] @ row) / (np.linalg.norm(weight[places], axis=1) * np.linalg.norm(row) + 1e-12)
        order = np.argsort(-cosines, kind="stable")[: count + 1].tolist()
        near = [(names[place], float(cosines[place])) for place in order if places[place] not in ids]
        return near[:count]

    @cached_property
    def _weight(self) -> Embeddings:
        found: Any = self.model[0].auto_model.get_input_embeddings().weight.detach().float().cpu().numpy()
        rows: Embeddings = found
        return rows

    @cached_property
    def _words(self) -> tuple[list[int], list[str]]:
        """Ids and names of the tokens that are words."""
        tokenizer = self.model.tokenizer
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        new = {token for token, _ in vocabulary if token not in self.base_vocabulary}
        words = [
            (place, text)
            for token, place in vocabulary
            if place < len(self._weight)
            and (text := tokenizer.decode([place]).strip())
            and (token in new or (text.isalpha() and SHORTEST_WORD <= len(text) <= LONGEST_WORD))
        ]
        return [place for place, _ in words], [text for _, text in words]


def load_candidate(candidate: Candidate, params: Params, base: TryModel | None, root: Path) -> TryModel:
    """Load a model; `base` is the base, loaded before, or None for the base itself."""
    from vocabgraft.models.base import load_model, prompts_of
    from vocabgraft.tokens.tokenizer import read_tokens

    model = load_model(candidate.folder, own_modules=base is not None, trust_remote_code=params.base.trust_remote_code)
    described: list[NewToken] = []
    if base is None:
        model.prompts = prompts_of(model.prompts, params.base.prompts)
        extension = output_of(EXTENDING_STAGE, root)
        if extension is not None and (extension / "tokens.json").is_file():
            described = [token.new_token for token in read_tokens(extension / "tokens.json")]
    vocabulary = base.base_vocabulary if base else frozenset(model.tokenizer.get_vocab())
    return TryModel(candidate, model, vocabulary, described)


def _unit(rows: Embeddings) -> Embeddings:
    units: Embeddings = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return units
