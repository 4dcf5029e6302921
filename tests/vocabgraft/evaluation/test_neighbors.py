"""Neighbours of rows and their map: against a sort and against planted directions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, load, rows_of
from vocabgraft.evaluation import neighbors
from vocabgraft.evaluation.neighbors import describe_tokens, nearest_rows, principal_axes


def test_a_new_token_that_lies_on_an_old_row_has_it_as_its_nearest(graft: Graft) -> None:
    model = load(graft.merged["tokens"])
    rows, token = rows_of(model), graft.tokens[0]
    rows[token.id] = 3 * rows[model.tokenizer.convert_tokens_to_ids("kidney")]
    found = describe_tokens(model, graft.tokens, 17)
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
    found = describe_tokens(model, graft.tokens, 17)
    named = {name for entry in found["tokens"] for name, _ in entry["nearest_old"]}
    assert not named & {"[CLS]", "[PAD]", *(token.text for token in graft.tokens)}
    assert all(cosine == 1.0 for entry in found["tokens"] for _, cosine in entry["nearest_new"])


def test_the_map_holds_every_new_token_and_a_seeded_sample_of_old_rows(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "OLD_ROWS_ON_MAP", 20)
    model = load(graft.merged["tokens"])
    first, again, other = (describe_tokens(model, graft.tokens, seed)["map"] for seed in (17, 17, 18))
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
