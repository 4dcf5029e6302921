"""The searches that a person should look at: against planted embeddings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.data.beir import Benchmark
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.retrieval import RetrievalSet
from vocabgraft.evaluation.searches import SHOWN, benchmark_set, changed_searches
from vocabgraft.tokens.tokenizer import added_tokens

DOCUMENTS = [f"the {word}" for word in ("dog", "cat", "house", "wood", "stone", "kidney", "blood", "heart", "water")]


def retrieval(queries: Sequence[str], answers: Sequence[int], ignored: Sequence[int] = ()) -> RetrievalSet:
    """Queries that each have one right document; the ignored are right for every query."""
    relevant = [[answer] for answer in answers]
    return RetrievalSet("terms", list(queries), DOCUMENTS, relevant, [list(ignored) for _ in queries], list(queries))


@pytest.fixture
def subjects(graft: Graft) -> dict[str, Subject]:
    """Base and merged model."""
    models = {"base": load(graft.base), "merged": load(graft.merged["tokens"])}
    new_words = NewWords(models["merged"].tokenizer, graft.tokens)
    described = [token.new_token for token in added_tokens(graft.tokens)]
    return {
        name: Subject(name, model, new_words, 8, described if name == "base" else ()) for name, model in models.items()
    }


def plant(monkeypatch: pytest.MonkeyPatch, ranks: dict[str, dict[str, int]], answer: int) -> None:
    """Let each model rank the documents so that the answer of a query has the given rank."""
    axes = dict(zip(DOCUMENTS, np.eye(len(DOCUMENTS), dtype=np.float32), strict=True))

    def encode(self: Subject, texts: Sequence[str], role: Any = None) -> Any:
        return np.stack([axes[text] if text in axes else query(ranks[text][self.name]) for text in texts])

    def query(rank: int) -> Any:
        others = [place for place in range(len(DOCUMENTS)) if place != answer]
        order = [*others[: rank - 1], answer, *others[rank - 1 :]]
        scores = np.zeros(len(DOCUMENTS), dtype=np.float32)
        scores[order] = np.linspace(0.9, 0.1, len(DOCUMENTS))
        return scores

    monkeypatch.setattr(Subject, "encode", encode)
    monkeypatch.setattr(Subject, "similarities", lambda self, left, right: left @ right.T)


def test_the_largest_changes_come_first_and_are_factors_and_not_differences(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {
        "from 9 to 5": {"base": 9, "merged": 5},
        "from 3 to 1": {"base": 3, "merged": 1},
        "from 1 to 2": {"base": 1, "merged": 2},
        "from 2 to 8": {"base": 2, "merged": 8},
        "as it was": {"base": 4, "merged": 4},
    }
    plant(monkeypatch, ranks, answer=6)
    found = changed_searches(retrieval(list(ranks), [6] * 5), subjects["base"], subjects["merged"], 17)
    assert [entry["query"] for entry in found["gains"]] == ["from 3 to 1", "from 9 to 5"]
    assert [entry["query"] for entry in found["losses"]] == ["from 2 to 8", "from 1 to 2"]
    assert (found["improved"], found["worsened"], found["queries"]) == (2, 2, 5)
    loss = found["losses"][0]
    assert loss["rank"] == {"base": 2.0, "merged": 8.0}
    assert loss["nearest"]["base"][1] == ["the blood", 0.8, "right"]
    assert [len(rows) for rows in loss["nearest"].values()] == [5, 5]
    assert not [row for row in loss["nearest"]["merged"] if row[2]], "the right document is not among the five"


def test_a_true_answer_that_was_not_asked_for_is_not_called_wrong(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {"q": {"base": 2, "merged": 2}}, answer=6)
    found = changed_searches(retrieval(["q"], [6], ignored=[0]), subjects["base"], subjects["merged"], 17)
    # It does not stand in the way of the right one, which therefore has the first rank.
    assert found["sample"][0]["rank"]["base"] == 1.0
    assert [row[2] for row in found["sample"][0]["nearest"]["base"]] == ["also right", "right", "", "", ""]


def test_the_sample_is_of_all_queries_seeded_and_another_for_each_dataset(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {f"q{place}": {"base": 1, "merged": 1} for place in range(40)}
    plant(monkeypatch, ranks, answer=6)
    asked = retrieval(list(ranks), [6] * 40)
    other = RetrievalSet("other", asked.queries, asked.documents, asked.relevant, asked.ignored, asked.groups)
    drawn = [
        [entry["query"] for entry in changed_searches(of, subjects["base"], subjects["merged"], seed)["sample"]]
        for of, seed in ((asked, 17), (asked, 17), (asked, 18), (other, 17))
    ]
    assert len(drawn[0]) == SHOWN
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] and drawn[0] != drawn[3]


def test_each_model_shows_its_own_tokens_and_new_ones_are_marked(subjects: dict[str, Subject]) -> None:
    asked = retrieval(["the nephrolith <|IsA|>"], [4])
    (entry,) = changed_searches(asked, subjects["base"], subjects["merged"], 17)["sample"]
    assert entry["tokens"]["merged"] == [["the", False], ["nephrolith", True], ["<|IsA|>", True]]
    base = [token for token, _ in entry["tokens"]["base"]]
    assert base[-4:] == ["is", "a", "kind", "of"], "the base reads a relation as its description"
    assert not any(new for _, new in entry["tokens"]["base"])


def test_nothing_is_embedded_twice(subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = retrieval(["a dog", "a nephrolith"], [0, 4])
    for subject in subjects.values():
        subject.encode(asked.queries, "query")
        subject.encode(asked.documents, "document")

    def refuse(*args: Any) -> Any:
        raise AssertionError("embedded again")

    monkeypatch.setattr("vocabgraft.evaluation.evaluated_model.encode_apart", refuse)
    assert changed_searches(asked, subjects["base"], subjects["merged"], 17)["queries"] == 2


def test_every_graded_document_of_a_benchmark_is_right(subjects: dict[str, Subject]) -> None:
    benchmark = Benchmark("cases", ["a dog"], DOCUMENTS, [{1: 1, 0: 3}])
    found = changed_searches(benchmark_set(benchmark), subjects["base"], subjects["merged"], 17)
    assert found["dataset"] == "cases"
    assert set(found["sample"][0]["answers"]) == {"the dog", "the cat"}
