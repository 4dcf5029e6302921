"""Drift, neighbours and stored vectors: against other ways to count them, and with planted drift."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import WORDS
from tests.vocabgraft.conftest import Graft, load
from vocabgraft.evaluation import retention
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.retention import (
    LEAST_CORPUS,
    cosines_of,
    measure_drift,
    nearest,
    reference_corpus,
    still_valid,
)

CORPUS = [f"the {word}" for word in WORDS[:24]] + [f"the nephrolith of {word}" for word in WORDS[:6]]


@pytest.fixture
def new_words(graft: Graft) -> NewWords:
    """Which texts hold a new token of the graft."""
    return NewWords(load(graft.merged["tokens"]).tokenizer, graft.tokens)


def subject(graft: Graft, name: str, new_words: NewWords) -> Subject:
    """The base, or a merged model by its method."""
    return Subject(name, load(graft.base if name == "base" else graft.merged[name]), new_words, 4)  # type: ignore[index]


def test_training_rows_leaves_texts_without_a_new_word_where_they_were(graft: Graft, new_words: NewWords) -> None:
    found = measure_drift(subject(graft, "base", new_words), subject(graft, "tokens", new_words), CORPUS, new_words)
    kept, moved = found["drift"]["no_new_word"], found["drift"]["new_word"]
    assert (kept["texts"], kept["mean"], kept["p99"], kept["valid_share"]) == (24, 0.0, 0.0, 100.0)
    assert moved["texts"] == 6 and moved["mean"] > 1e-4 and moved["p99"] >= moved["mean"]
    assert moved["valid_share"] == 0.0
    assert found["valid_share"] == 80.0
    assert found["problems"] == []


def test_an_adapter_moves_every_vector_and_the_worst_are_shown_first(graft: Graft, new_words: NewWords) -> None:
    base, merged = subject(graft, "base", new_words), subject(graft, "lora", new_words)
    found = measure_drift(base, merged, CORPUS, new_words)
    assert found["valid_share"] == 0.0
    worst = found["drift"]["no_new_word"]["worst"]
    cosines = dict(zip(CORPUS, cosines_of(base.encode(CORPUS), merged.encode(CORPUS)).tolist(), strict=True))
    expected = sorted(cosines[text] for text in CORPUS[:24])[:10]
    assert [entry["cosine"] for entry in worst] == [round(cosine, 6) for cosine in expected]
    assert all(round(cosines[entry["text"]], 6) == entry["cosine"] for entry in worst)
    assert found["neighbours_kept"] < 100


def test_one_planted_text_that_drifted_is_the_worst(graft: Graft, new_words: NewWords) -> None:
    base, merged = subject(graft, "base", new_words), subject(graft, "base", new_words)
    merged.encode(CORPUS)
    merged._rows[None]["the kidney"] = -merged._rows[None]["the kidney"]
    found = measure_drift(base, merged, CORPUS, new_words)["drift"]["no_new_word"]
    # A text that stayed where it was is none of the worst.
    assert found["worst"] == [{"text": "the kidney", "cosine": -1.0}]
    assert found["mean"] == round(2 / 24, 6)
    assert found["valid_share"] == round(100 * 23 / 24, 4)


@pytest.mark.parametrize("texts", [[], CORPUS[:9], CORPUS[: LEAST_CORPUS - 1]])
def test_a_small_corpus_is_said_and_has_no_neighbours(graft: Graft, new_words: NewWords, texts: list[str]) -> None:
    base, merged = (subject(graft, name, new_words) for name in ("base", "tokens"))
    found = measure_drift(base, merged, texts, new_words)
    assert found["neighbours_kept"] is None
    assert (
        f"the reference corpus has {len(texts)} texts, too few for 10 neighbors (at least 20)" in found["problems"][0]
    )
    assert any("no text with a new word" in problem for problem in found["problems"])
    assert found["drift"]["new_word"]["mean"] is None


def test_a_model_of_another_width_keeps_no_vector_and_that_is_said(graft: Graft, new_words: NewWords) -> None:
    base, merged = (subject(graft, name, new_words) for name in ("base", "tokens"))
    merged.encode(CORPUS)
    merged._rows = {None: {text: row[:16] for text, row in merged._rows[None].items()}}
    found = measure_drift(base, merged, CORPUS, new_words)
    assert found["valid_share"] == 0.0
    assert found["drift"]["no_new_word"]["mean"] is None
    assert found["neighbours_kept"] is not None
    assert "have width 16 and the base's 32, so no stored vector is valid" in found["problems"][0]


def brute_force(scores: list[float], own: int, count: int) -> set[int]:
    """The nearest columns: by falling score, of equals the first."""
    others = [place for place in range(len(scores)) if place != own]
    return set(sorted(others, key=lambda place: (-scores[place], place))[:count])


@given(data=st.data())
def test_the_nearest_are_those_of_a_sort(data: st.DataObject) -> None:
    size = data.draw(st.integers(3, 9))
    count = data.draw(st.integers(1, size - 1))
    start = data.draw(st.integers(0, size - 1))
    rows = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=size, max_size=size), max_size=size - start))
    scores = np.array(rows, dtype=np.float32).reshape(len(rows), size)
    found = nearest(scores, start, count)
    for row, chosen in enumerate(found):
        assert set(np.flatnonzero(chosen).tolist()) == brute_force(rows[row], start + row, count)


def test_neighbours_are_the_same_in_blocks(graft: Graft, new_words: NewWords, monkeypatch: pytest.MonkeyPatch) -> None:
    base, merged = (subject(graft, name, new_words) for name in ("base", "lora"))
    whole = measure_drift(base, merged, CORPUS, new_words)
    monkeypatch.setattr(retention, "NUMBERS_AT_ONCE", 7 * len(CORPUS))
    assert measure_drift(base, merged, CORPUS, new_words) == whole


def test_a_vector_is_valid_within_rounding_alone() -> None:
    before = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], dtype=np.float32)
    after = before + np.array([[0, 0], [0, 5e-7], [0, 2e-6]], dtype=np.float32)
    assert still_valid(before, after).tolist() == [True, True, False]
    assert still_valid(before, after[:, :1]).tolist() == [False] * 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=3), max_size=12), st.integers(1, 6), st.text(max_size=3))
def test_a_text_more_takes_the_place_of_at_most_one(texts: list[str], limit: int, more: str) -> None:
    before, after = reference_corpus(texts, limit), reference_corpus([*texts, more], limit)
    assert len(before) == min(limit, len(set(texts))) == len(set(before))
    assert len(set(before) - set(after)) <= 1
    assert set(after) - set(before) <= {more}


def test_equal_vectors_have_the_cosine_one_exactly() -> None:
    rows: Any = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    assert (cosines_of(rows, rows) == 1).all()
    assert cosines_of(rows, -rows).max() < -0.999999
