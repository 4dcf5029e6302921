"""Each new token: neighbors against a sort, the map against planted directions, verdicts against planted ranks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, load, rows_of
from vocabgraft.evaluation import by_token
from vocabgraft.evaluation.by_token import (
    describe_tokens,
    description_similarities,
    judge_tokens,
    nearest_rows,
    principal_axes,
)
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.metrics import Measurement


def subjects_of(graft: Graft, merged: Any) -> dict[str, Subject]:
    """Base, resized and a merged model."""
    new_words = NewWords(merged.tokenizer, graft.tokens)
    models = {"base": load(graft.base), "resized": load(graft.resized), "merged": merged}
    return {name: Subject(name, model, new_words, 8) for name, model in models.items()}


def described(graft: Graft, merged: Any, seed: int = 17) -> dict[str, Any]:
    """What is known of the tokens where nothing was measured."""
    return describe_tokens(subjects_of(graft, merged), graft.tokens, [], seed)


def measured(queries: Sequence[str], base: Sequence[float], merged: Sequence[float]) -> Measurement:
    """Queries whose right document has these ranks."""
    ranks = {"base": base, "merged": merged}
    return Measurement(
        dataset="terms",
        metric="mrr",
        items=list(queries),
        groups=["one concept"] * len(queries),
        new_word=np.ones(len(queries), dtype=bool),
        values={name: 100 / np.array(values, dtype=np.float64) for name, values in ranks.items()},
        answers=list(queries),
    )


def test_a_new_token_that_lies_on_an_old_row_has_it_as_its_nearest(graft: Graft) -> None:
    model = load(graft.merged["tokens"])
    rows, token = rows_of(model), graft.tokens[0]
    rows[token.id] = 3 * rows[model.tokenizer.convert_tokens_to_ids("kidney")]
    found = described(graft, model)
    entry = next(entry for entry in found["tokens"] if entry["token"] == token.text)
    assert entry["nearest_old"][0] == ["kidney", 1.0]
    assert (entry["kind"], entry["id"], len(entry["nearest_old"])) == (token.kind, token.id, 5)
    # A token is none of its own neighbours, and there are three others.
    assert len(entry["nearest_new"]) == 3
    assert token.text not in [name for name, _ in entry["nearest_new"]]


def test_special_tokens_of_the_model_and_new_ones_are_no_old_neighbours(graft: Graft) -> None:
    model = load(graft.merged["tokens"])
    rows = rows_of(model)
    for token in graft.tokens:
        rows[token.id] = rows[model.tokenizer.cls_token_id]
    found = described(graft, model)
    named = {name for entry in found["tokens"] for name, _ in entry["nearest_old"]}
    assert not named & {"[CLS]", "[PAD]", *(token.text for token in graft.tokens)}
    assert all(cosine == 1.0 for entry in found["tokens"] for _, cosine in entry["nearest_new"])


def test_the_map_holds_every_new_token_and_a_seeded_sample_of_old_rows(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_token, "OLD_ROWS_ON_MAP", 20)
    model = load(graft.merged["tokens"])
    first, again, other = (described(graft, model, seed)["map"] for seed in (17, 17, 18))
    assert first == again != other
    assert len(first["old"]) == 20
    assert [name for _, _, name in first["new"]] == [token.text for token in graft.tokens]
    assert 0 < first["explained"][1] <= first["explained"][0] <= 1


def test_axes_are_those_of_planted_variance_and_never_mirrored() -> None:
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(300, 6)) * [1, 9, 1, 4, 1, 1]).astype(np.float32)
    centre, axes, explained = principal_axes(rows)
    assert np.abs(axes).argmax(axis=1).tolist() == [1, 3]
    assert axes[0, 1] > 0.9 and axes[1, 3] > 0.9
    assert explained == pytest.approx([81 / 101, 16 / 101], abs=0.05)
    assert np.abs(principal_axes(rows[::-1])[1] - axes).max() < 1e-4
    assert np.abs(centre - rows.mean(axis=0)).max() == 0


@given(data=st.data())
def test_nearest_rows_are_those_of_a_sort(data: st.DataObject) -> None:
    places = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=7)
    rows, others = (np.array(data.draw(places), dtype=np.float32) for _ in range(2))
    themselves = data.draw(st.booleans())
    others = rows if themselves else others
    lengths = np.maximum(np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(others, axis=1)[None], 1e-30)
    cosines = ((rows @ others.T) / lengths).astype(np.float64).round(4)
    for row, found in enumerate(nearest_rows(rows, others, 3, themselves)):
        allowed = [place for place in range(len(others)) if not (themselves and place == row)]
        expected = sorted(allowed, key=lambda place: (-cosines[row][place], place))[:3]
        assert [cosine for _, cosine in found] == pytest.approx([cosines[row][place] for place in expected], abs=2e-4)
        assert len({place for place, _ in found}) == len(expected)
        assert row not in [place for place, _ in found] or not themselves


def test_neighbors_before_training_are_those_of_the_resized_model(graft: Graft) -> None:
    merged = load(graft.merged["tokens"])
    rows_of(merged)[graft.tokens[0].id] = rows_of(merged)[merged.tokenizer.convert_tokens_to_ids("kidney")]
    entry = described(graft, merged)["tokens"][0]
    before = described(graft, load(graft.resized))["tokens"][0]
    assert entry["nearest_old"][0] == ["kidney", 1.0]
    assert entry["before"] == {name: before[name] for name in ("nearest_old", "nearest_new")}


def test_a_description_is_read_with_the_bases_tokens(graft: Graft) -> None:
    """A description that holds its own token would be similar to it whatever the row is."""
    merged = load(graft.merged["tokens"])
    tokens = [replace(graft.tokens[0], description="nephrolith"), replace(graft.tokens[1], description="")]
    found, none = description_similarities(subjects_of(graft, merged), tokens)
    assert none is None
    assert found is not None and found["after"] < 0.999
    assert merged.tokenizer.tokenize("nephrolith") == ["nephrolith"], "the tokenizer is put back"


def test_a_row_that_is_set_to_its_description_is_similar_to_it(graft: Graft) -> None:
    merged = load(graft.merged["tokens"])
    token = replace(graft.tokens[0], description="kidney")
    rows_of(merged)[token.id] = rows_of(merged)[merged.tokenizer.convert_tokens_to_ids("kidney")]
    (found,) = description_similarities(subjects_of(graft, merged), [token])
    assert found is not None and found["after"] == pytest.approx(1.0, abs=1e-3) and found["before"] < found["after"]


@pytest.mark.parametrize(
    ("base", "merged", "verdict"),
    [
        ([1] * 8, [4] * 8, "worse"),
        ([4] * 8, [1] * 8, "better"),
        ([1, 2, 1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 2, 1, 2, 1], "could be chance"),
        ([1] * 5, [9] * 5, "too few to judge"),
    ],
)
def test_a_token_is_judged_by_the_held_out_queries_that_hold_it(
    graft: Graft, base: list[int], merged: list[int], verdict: str
) -> None:
    queries = [f"the nephrolith of {word}" for word in "dog cat house wood stone blood heart water".split()]
    asked = measured(queries[: len(base)], base, merged)
    subject = subjects_of(graft, load(graft.merged["tokens"]))["merged"]
    first, second, *_ = judge_tokens(subject, graft.tokens, [asked], 17)
    assert (first["queries"], first["verdict"]) == (len(base), verdict)
    assert second == {"queries": 0, "verdict": "too few to judge", "worst": None}


def test_a_repeated_question_counts_once(graft: Graft) -> None:
    asked = measured(["the nephrolith"] * 20, [1] * 20, [9] * 20)
    subject = subjects_of(graft, load(graft.merged["tokens"]))["merged"]
    assert judge_tokens(subject, graft.tokens, [asked], 17)[0]["verdict"] == "too few to judge"


def test_the_worst_query_is_named_with_its_ranks(graft: Graft) -> None:
    asked = measured(["nephrolith", "a nephrolith", "the nephrolith"], [2, 1, 900], [1, 4, 990])
    subject = subjects_of(graft, load(graft.merged["tokens"]))["merged"]
    found = judge_tokens(subject, graft.tokens, [asked], 17)[0]
    assert found["worst"] == {"dataset": "terms", "query": "a nephrolith", "rank": {"base": 1.0, "merged": 4.0}}
    assert found["gain"] == pytest.approx(found["merged"] - found["base"], abs=1e-3)
    better = measured(["nephrolith"], [2], [1])
    assert judge_tokens(subject, graft.tokens, [better], 17)[0]["worst"] is None
