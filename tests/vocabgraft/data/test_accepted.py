"""Reading accepted data back."""

from pathlib import Path

import pandas as pd
import pytest

from tests.vocabgraft.conftest import WriteDataset
from vocabgraft.data.accepted import read_contexts, read_datasets, read_new_tokens, read_retention, training_texts
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.tokens.new_token import NewToken

TRIPLES = ("head", "relation", "tail")
PAIRS = ("anchor", "positive")


def test_a_triple_is_the_pair_of_head_with_relation_and_tail(write_dataset: WriteDataset) -> None:
    dataset = write_dataset("relations", "triples", TRIPLES, train=[("dog", "IsA", "animal")])
    assert dataset.pairs("train") == [("dog <|IsA|>", "animal")]
    assert dataset.groups("train") == ["dog"]


def test_an_empty_split_has_no_rows_and_its_columns(write_dataset: WriteDataset) -> None:
    dataset = write_dataset("terms", "pairs", PAIRS, train=[("a", "b")])
    assert (dataset.rows("train"), dataset.rows("test")) == (1, 0)
    assert dataset.pairs("test") == []
    assert dataset.groups("test") == []


def test_a_row_without_a_group_is_a_group_of_its_own(write_dataset: WriteDataset) -> None:
    # One group of all rows without one would make every document an answer to every query.
    rows = [("a", "b", "g"), ("c", "d", None), ("e", "f", ""), ("h", "i", "g")]
    dataset = write_dataset("terms", "pairs", (*PAIRS, "group"), test=rows)
    assert dataset.groups("test") == ["g", "c", "e", "g"]


def test_without_a_column_of_groups_the_anchor_is_the_group(write_dataset: WriteDataset) -> None:
    assert write_dataset("terms", "pairs", PAIRS, test=[("a", "b")]).groups("test") == ["a"]


def test_datasets_come_in_the_order_of_their_index(write_dataset: WriteDataset, tmp_path: Path) -> None:
    with new_folder(tmp_path / "datasets") as work:
        write_json(work / "index.json", [{"name": name, "format": "pairs"} for name in ("b", "a")])
    assert [dataset.name for dataset in read_datasets(tmp_path / "datasets")] == ["b", "a"]


def test_a_split_of_a_half_written_folder_is_refused(write_dataset: WriteDataset) -> None:
    dataset = write_dataset("terms", "pairs", PAIRS, train=[("a", "b")])
    (dataset.folder / "manifest.json").unlink()
    with pytest.raises(VocabgraftError, match="incomplete"):
        dataset.rows("train")


def test_training_texts_are_distinct_in_order_and_of_the_train_split_alone(write_dataset: WriteDataset) -> None:
    datasets = [
        write_dataset("relations", "triples", TRIPLES, train=[("dog", "IsA", "cat")], test=[("held", "IsA", "out")]),
        write_dataset("terms", "pairs", PAIRS, train=[("b", "a"), ("a", "c")], validation=[("held", "out")]),
    ]
    assert training_texts(datasets, ["c", "d"]) == ["dog <|IsA|> cat", "b", "a", "c", "d"]


def test_vocabulary_contexts_and_retention_come_back_as_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as work:
        pd.DataFrame({"token": ["z", "a"], "kind": ["word", "special"], "description": ["", "x"]}).to_parquet(
            work / "vocabulary.parquet"
        )
        pd.DataFrame({"text": ["one", "two"]}).to_parquet(work / "contexts.parquet")
        pd.DataFrame({"sentence1": ["a"], "sentence2": ["b"], "score": [0.5]}).to_parquet(work / "retention.parquet")
    made = tmp_path / "made"
    assert read_new_tokens(made / "vocabulary.parquet") == [NewToken("z", "word", ""), NewToken("a", "special", "x")]
    assert read_contexts(made / "contexts.parquet") == ["one", "two"]
    assert read_retention(made / "retention.parquet") == (["a"], ["b"], [0.5])
