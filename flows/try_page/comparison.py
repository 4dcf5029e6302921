"""What the models say to a query, to two texts and to a word; they are loaded once, in a thread of their own."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.try_page.documents import CACHE, Documents, embedded
from flows.try_page.models import Candidate, TryModel
from vocabgraft.evaluation.metrics import highest
from vocabgraft.models.encode import Embeddings

NEAREST, NEAREST_WORDS = 10, 12

Load = Callable[[Candidate, TryModel | None], TryModel]


@dataclass
class Comparison:
    """Models over documents.

    Attributes:
        candidates: the base first.
        documents: that a query searches.
        load: loads a candidate; the base, loaded before, comes with it.
        cache: of the documents' embeddings.
        ready: the models that answer by now, with the documents' embeddings.
        state: what is being done; empty when all is ready.
        problem: why a model is not there; empty where nothing went wrong.
    """

    candidates: Sequence[Candidate]
    documents: Documents
    load: Load
    cache: Path = CACHE
    ready: list[tuple[TryModel, Embeddings]] = field(default_factory=list)
    state: str = "starting"
    problem: str = ""
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self) -> None:
        """Load every model and embed the documents; what is ready answers while the next one is loaded."""
        try:
            for candidate in self.candidates:
                self._prepare(candidate)
        except Exception as error:  # noqa: BLE001  # the page stays, and says what is wrong
            self.problem = f"{candidate.title} ({candidate.name}) cannot be used: {error}"
        self.state = ""

    def _prepare(self, candidate: Candidate) -> None:
        self.state = f"loading {candidate.title.lower()}"
        model = self.load(candidate, self.ready[0][0] if self.ready else None)

        def tell(done: int) -> None:
            total = len(self.documents.texts)
            self.state = f"the {candidate.title.lower()} embeds the documents ({done:,} of {total:,})"

        tell(0)
        vectors = embedded(model, self.documents, self.cache, tell)
        # What is computed at a first call is not what a person should wait for.
        model.nearest_words("a", 1)
        self.ready.append((model, vectors))

    @contextmanager
    def _one_query(self) -> Iterator[None]:
        """One query at a time, by one thread.

        Two threads for one short text wait for each other: 571 ms a query against 248 ms, with three models over 20,000
        documents on 2 cores that ten other processes kept busy. It takes 58 ms of CPU.
        """
        import torch

        with self._turn:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(before)

    def search(self, query: str) -> dict[str, Any]:
        """The nearest documents by each model that is ready, and how long that took in milliseconds."""
        with self._one_query():
            started = time.perf_counter()
            found = [self._found(model, vectors, query) for model, vectors in list(self.ready)]
            milliseconds = 1000 * (time.perf_counter() - started)
        before = found[0]["scores"] if found else None
        for entry in found:
            entry["nearest"] = [self._document(place, entry, before) for place in highest(entry["scores"], NEAREST)]
            entry["is_first"] = entry["scores"] is before
        return {"models": found, "milliseconds": milliseconds}

    def _found(self, model: TryModel, vectors: Embeddings, query: str) -> dict[str, Any]:
        scores = model.scores(model.embed([query], "query"), vectors)
        return {"model": model.candidate, "tokens": model.tokens(query), "scores": scores}

    def _document(self, place: int, entry: dict[str, Any], before: Any) -> dict[str, Any]:
        """A document with its rank by the base."""
        rank = 1 + int((before > before[place]).sum())
        return {"text": self.documents.texts[place], "score": float(entry["scores"][place]), "base_rank": rank}

    def compare(self, first: str, second: str) -> list[dict[str, Any]]:
        """The cosine of two texts by each model, and how each reads them."""
        with self._one_query():
            return [
                {
                    "model": model.candidate,
                    "cosine": model.cosine(first, second),
                    "tokens": [model.tokens(first), model.tokens(second)],
                }
                for model, _ in list(self.ready)
            ]

    def words(self, word: str) -> list[dict[str, Any]]:
        """The nearest words by each model."""
        with self._one_query():
            return [
                {
                    "model": model.candidate,
                    "tokens": model.tokens(word),
                    "nearest": model.nearest_words(word, NEAREST_WORDS),
                }
                for model, _ in list(self.ready)
            ]
