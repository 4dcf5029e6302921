"""Splits: an item stays where it is, whatever else is in the file."""

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.data.splits import SPLITS, split_of

SHARES = st.floats(0, 0.49)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(text=TEXTS, validation=SHARES, test=SHARES, more=SHARES)
def test_another_validation_share_moves_no_item_into_or_out_of_test(
    text: str, validation: float, test: float, more: float
) -> None:
    assert (split_of(text, validation, test) == "test") == (split_of(text, more, test) == "test")


@given(text=TEXTS, test=SHARES, more=SHARES)
def test_a_larger_test_share_keeps_every_test_item(text: str, test: float, more: float) -> None:
    if split_of(text, 0.0, test) == "test":
        assert split_of(text, 0.0, max(test, more)) == "test"


@given(text=TEXTS)
def test_no_share_keeps_everything_for_training(text: str) -> None:
    assert split_of(text, 0.0, 0.0) == "train"


@pytest.mark.parametrize("other", ["Kidney stone", "kidney  stone", " kidney stone\n", "KIDNEY\tSTONE"])
def test_casing_and_spaces_do_not_part_a_group(other: str) -> None:
    # A split of three shares, so that two independent draws would part at least one pair of the five.
    for number in range(20):
        assert split_of(f"{other} {number}", 0.33, 0.33) == split_of(f"kidney stone {number}", 0.33, 0.33)


def test_letters_that_change_when_folded_do_not_part_a_group() -> None:
    for number in range(20):
        assert split_of(f"STRASSE {number}", 0.33, 0.33) == split_of(f"stra\u00dfe {number}", 0.33, 0.33)


def test_shares_are_met() -> None:
    drawn = pd.Series([split_of(f"item {number}", 0.1, 0.2) for number in range(5000)]).value_counts(normalize=True)
    assert drawn["test"] == pytest.approx(0.2, abs=0.02)
    assert drawn["validation"] == pytest.approx(0.1, abs=0.02)
    assert set(drawn.index) == set(SPLITS)


def test_the_split_of_an_item_is_the_same_in_every_version() -> None:
    # Written down: another hash would silently move items that a released model was trained on into the test split.
    fixed = [split_of(f"item {number}", 0.2, 0.3) for number in range(8)]
    assert fixed == ["train", "train", "validation", "train", "validation", "train", "train", "train"]


@given(rows=st.lists(TEXTS, min_size=1, max_size=6), added=st.lists(TEXTS, max_size=6), data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_an_item_never_moves_when_rows_are_added(rows: list[str], added: list[str], data: st.DataObject) -> None:
    from vocabgraft.data.validation import _splits

    dataset = DatasetParams.model_validate(
        {
            "name": "terms",
            "format": "pairs",
            "files": {"train": "terms.csv"},
            "held_out": {"validation": 0.3, "test": 0.3},
        }
    )
    before = _splits(pd.DataFrame({"anchor": rows}, dtype=object), dataset)
    mixed = data.draw(st.permutations([*enumerate(rows), *((None, text) for text in added)]))
    after = _splits(pd.DataFrame({"anchor": [text for _, text in mixed]}, dtype=object), dataset)
    places = {place: split for (place, _), split in zip(mixed, after, strict=True) if place is not None}
    assert [places[place] for place in range(len(rows))] == before
