"""Splits: an item stays where it is, whatever else is in the file."""

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vocabgraft.data.splits import SPLITS, group_rows, split_of

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
def test_an_item_never_moves_when_rows_of_other_texts_are_added(
    rows: list[str], added: list[str], data: st.DataObject
) -> None:
    before = group_rows([None] * len(rows), [(text, f"of {text}") for text in rows]).names
    mixed = data.draw(st.permutations([*enumerate(rows), *((None, text) for text in added)]))
    after = group_rows([None] * len(mixed), [(text, f"of {text}") for _, text in mixed]).names
    places = {place: name for (place, _), name in zip(mixed, after, strict=True) if place is not None}
    assert [split_of(places[place], 0.3, 0.3) for place in range(len(rows))] == [
        split_of(name, 0.3, 0.3) for name in before
    ]


WORDS = st.sampled_from("a b c d e f g h i j k l".split())


@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=10), data=st.data())
def test_rows_that_share_a_text_have_one_group_in_any_order(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    names = group_rows([None] * len(rows), rows).names
    for one, left in zip(rows, names, strict=True):
        for other, right in zip(rows, names, strict=True):
            assert not set(one) & set(other) or left == right
    order = data.draw(st.permutations(range(len(rows))))
    again = group_rows([None] * len(rows), [rows[place] for place in order]).names
    assert again == [names[place] for place in order]


def test_a_positive_added_to_an_anchor_moves_no_row() -> None:
    rows = [(f"anchor {n}", f"positive {n}") for n in range(50)]
    before = group_rows([None] * 50, rows).names
    more = [(f"anchor {n}", f"other positive {n}") for n in range(50)]
    assert group_rows([None] * 100, rows + more).names == before * 2


def test_a_row_that_joins_two_groups_moves_one_of_them_at_most() -> None:
    rows = [(f"anchor {n}", f"positive {n}") for n in range(40)]
    before = group_rows([None] * 40, rows).names
    after = group_rows([None] * 41, [*rows, ("anchor 3", "positive 7")]).names
    assert after[:3] + after[4:7] + after[8:40] == before[:3] + before[4:7] + before[8:]
    assert after[3] == after[7] == after[40]
    assert after[3] in (before[3], before[7])


def test_large_groups_are_no_more_often_in_the_test_split_than_small_ones() -> None:
    rows = [(f"anchor {n}", f"positive {n // 5}") for n in range(5000)]
    names = group_rows([None] * len(rows), rows).names
    drawn = pd.Series([split_of(name, 0.1, 0.2) for name in names]).value_counts(normalize=True)
    assert drawn["test"] == pytest.approx(0.2, abs=0.03)


def test_a_large_group_is_cut_at_the_texts_that_most_rows_share() -> None:
    rows = [(f"anchor {n}", f"positive {n // 2}") for n in range(300)]
    # One text is shared by 100 rows, another by 5: the first alone is given up.
    hubs = [*((f"anchor {n}", "Disease") for n in range(100)), *((f"anchor {n}", "pain") for n in range(250, 255))]
    found = group_rows([None] * 405, [*rows, *hubs])
    (large,) = found.large
    assert (large.hubs, large.rows, large.largest) == (("disease",), 200, 4)
    names = found.names
    # Rows with one anchor, or with a text that was not given up, stay together.
    assert names[:100] == names[300:400]
    assert names[0] == names[1]
    assert len(set(names[400:])) == 1


def test_small_files_are_not_cut() -> None:
    found = group_rows([None] * 12, [(f"a{n}", "hub" if n < 10 else f"b{n}") for n in range(12)])
    assert found.large == ()
    assert len(set(found.names)) == 3


def test_rows_with_one_own_key_are_never_parted() -> None:
    rows = [("anchor", f"b{n}") for n in range(30)] + [(f"a{n}", f"c{n}") for n in range(30)]
    found = group_rows([None] * 60, rows)
    assert [(group.hubs, group.largest, group.largest_key) for group in found.large] == [((), 30, "anchor")]
    assert len(set(found.names[:30])) == 1
    grouped = group_rows(["g"] * 30 + [None] * 30, [(f"x{n}", f"y{n}") for n in range(30)] + rows[30:])
    assert [(group.hubs, group.largest_key) for group in grouped.large] == [((), "g")]


def test_a_group_and_a_text_that_read_the_same_are_two_things() -> None:
    assert group_rows(["kidney", None], [("a", "b"), ("kidney", "c")]).names == ["kidney", "kidney"]
    joined = group_rows(["kidney", "liver", None], [("a", "b"), ("x", "c"), ("kidney", "c")]).names
    assert joined[1] == joined[2]
    assert joined[0] == "kidney"
