"""The shipped example: enough held-out groups to show a gain, and texts that answer one question only."""

import re
from collections import Counter

import pandas as pd
import pytest

from tests.conftest import ROOT
from vocabgraft.config.params import load_params
from vocabgraft.data.raw_files import read_table
from vocabgraft.data.validation import GENERAL_PAIRS, assign_splits, read_examples

RAW = ROOT / "data" / "raw"


@pytest.fixture(scope="module")
def words() -> list[str]:
    """The new words, without the relations' tokens."""
    vocabulary = read_table(RAW / "vocabulary.csv", ("token", "kind", "description"))
    return vocabulary["token"][vocabulary["kind"] == "word"].tolist()


@pytest.fixture(scope="module")
def terms() -> pd.DataFrame:
    """The pairs with their splits."""
    datasets = load_params(ROOT / "params.yaml").validate_data.datasets
    given = next(dataset for dataset in datasets if dataset.name == "terms")
    return assign_splits(read_examples(RAW, given).rows, given)[0]


def held(text: str, words: list[str]) -> list[str]:
    """The words that a text holds."""
    return [word for word in words if re.search(rf"\b{word}\b", text.lower())]


def test_every_word_is_trained_and_enough_groups_are_held_out(terms: pd.DataFrame, words: list[str]) -> None:
    train, test = (terms[terms["split"] == split] for split in ("train", "test"))
    pairs = Counter(word for anchor in train["anchor"] for word in held(anchor, words))
    assert min(pairs[word] for word in words) >= 5
    # The interval of the gain resamples groups. Its width falls with the root of their number: 40 were too few.
    assert test["group"].nunique() >= 200


def test_every_query_holds_a_word_and_no_answer_does(terms: pd.DataFrame, words: list[str]) -> None:
    assert [anchor for anchor in terms["anchor"] if not held(anchor, words)] == []
    assert [positive for positive in terms["positive"] if held(positive, words)] == []


def test_no_text_stands_twice(terms: pd.DataFrame) -> None:
    texts = Counter(" ".join(text.casefold().split()) for text in [*terms["anchor"], *terms["positive"]])
    assert [text for text, count in texts.items() if count > 1] == []


def test_retention_pairs_are_many_and_their_scores_spread_evenly(words: list[str]) -> None:
    pairs = read_table(RAW / "retention.csv", ("sentence1", "sentence2", "score"))
    texts = zip(pairs["sentence1"], pairs["sentence2"], strict=True)
    general = pairs[[not held(f"{left} {right}", words) for left, right in texts]]
    assert len(general) >= 900
    assert general["sentence1"].nunique() == len(general)
    tenths = Counter(min(9, int(10 * float(score))) for score in general["score"])
    assert min(tenths[tenth] for tenth in range(10)) >= len(general) / 20


def test_the_general_pairs_of_the_package_are_those_of_the_example_without_its_words(words: list[str]) -> None:
    columns = ["sentence1", "sentence2", "score"]
    pairs = read_table(RAW / "retention.csv", columns)[columns]
    texts = zip(pairs["sentence1"], pairs["sentence2"], strict=True)
    general = pairs[[not held(f"{left} {right}", words) for left, right in texts]]
    assert read_table(GENERAL_PAIRS, columns)[columns].to_dict("records") == general.to_dict("records")
