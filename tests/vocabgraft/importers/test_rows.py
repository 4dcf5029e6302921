"""Imported rows are split as validate_data splits them, so words are counted in the rows that are trained on."""

from pathlib import Path

import pandas as pd

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.data.validation import assign_splits
from vocabgraft.importers.rows import (
    HELD_OUT,
    ImportedRows,
    Pair,
    Triple,
    params_section,
    training_pairs,
    training_triples,
)
from vocabgraft.tokens.new_token import NewToken


def validated(rows: ImportedRows, name: str) -> list[str]:
    """The split of each row as validate_data has it, with the section that the importer gives."""
    dataset: DatasetParams = next(d for d in params_section(rows, Path("x")).datasets if d.name == name)
    assert dataset.held_out == HELD_OUT
    header, table = {
        "terms": (["anchor", "positive", "group"], [(pair.anchor, pair.positive, pair.group) for pair in rows.pairs]),
        "relations": (["head", "relation", "tail"], [(row.head, row.relation, row.tail) for row in rows.triples]),
    }[name]
    frame = pd.DataFrame(table, columns=header).assign(given_for="train")
    return list(assign_splits(frame, dataset)[0]["split"])


def test_pairs_that_share_a_text_are_trained_on_where_validate_data_trains_on_them() -> None:
    # Every fourth synonym is that of another concept too, so a hash of the id alone would say otherwise.
    pairs = tuple(
        Pair(f"name {number}", f"synonym {number - number % 4 * (copy == 3)} {copy}", f"id {number}")
        for number in range(80)
        for copy in range(4)
    )
    splits = validated(ImportedRows((NewToken("basalt", "word", ""),), pairs=pairs), "terms")
    trained = [pair for pair, split in zip(pairs, splits, strict=True) if split == "train"]
    assert training_pairs(pairs) == trained
    assert 0 < len(trained) < len(pairs)
    alone = [training_pairs([pair]) == [pair] for pair in pairs]
    assert alone != [split == "train" for split in splits]


def test_triples_are_trained_on_where_validate_data_trains_on_them() -> None:
    triples = tuple(Triple(f"Head {number % 50}", "IsA", f"tail {number}") for number in range(200))
    splits = validated(ImportedRows((NewToken("basalt", "word", ""),), triples=triples), "relations")
    assert training_triples(triples) == [row for row, split in zip(triples, splits, strict=True) if split == "train"]
    assert 0 < len(training_triples(triples)) < len(triples)
