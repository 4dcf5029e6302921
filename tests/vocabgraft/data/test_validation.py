"""What validation reports for each raw row: split, repetitions, contradictions, leaks, uses."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_lines
from vocabgraft.config.datasets import COLUMNS, DatasetParams
from vocabgraft.data.uses import count_uses, inside_others
from vocabgraft.data.validation import (
    annotate_vocabulary,
    assign_splits,
    colliding_tokens,
    compare_contexts,
    compare_examples,
    compare_retention,
    compare_tokens,
    new_tokens,
    read_contexts,
    read_examples,
    read_retention,
    read_vocabulary,
    texts_of,
)
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def dataset(dataset_format: str, held_out: dict[str, float] | None = None, **files: str) -> DatasetParams:
    """A dataset called `terms`."""
    return DatasetParams.model_validate(
        {"name": "terms", "format": dataset_format, "files": files, "held_out": held_out or {}}
    )


def examples(folder: Path, given: DatasetParams) -> pd.DataFrame:
    """The rows of a dataset, compared, and split where no row has a gap."""
    read = read_examples(folder, given)
    assert read.faults == ()
    compared = compare_examples(read.rows, given.format)
    complete = compared[list(COLUMNS[given.format])].notna().all(axis=None)
    return assign_splits(compared, given)[0] if complete else compared


def pairs(folder: Path, lines: list[str], header: str = "anchor,positive", **held_out: float) -> pd.DataFrame:
    """Pairs of one file."""
    write_lines(folder / "terms.csv", [header, *lines])
    return examples(folder, dataset("pairs", held_out, train="terms.csv"))


def triples(folder: Path, lines: list[str]) -> pd.DataFrame:
    """Triples of one file."""
    write_lines(folder / "relations.csv", ["head,relation,tail", *lines])
    return examples(folder, dataset("triples", train="relations.csv"))


def told(frame: pd.DataFrame, column: str) -> list[Any]:
    """A column with None for every gap."""
    return [None if pd.isna(value) else value for value in frame[column]]


def test_a_row_without_an_anchor_is_left_for_the_suite_to_refuse(tmp_path: Path) -> None:
    frame = pairs(tmp_path, [",stone", "kidney,"], validation=0.3, test=0.3)
    assert told(frame, "anchor") == [None, "kidney"]
    assert list(frame["row"]) == [2, 3]


def test_all_rows_of_a_group_share_a_split(tmp_path: Path) -> None:
    lines = [f"a{number},b{number},group {number % 20}" for number in range(80)]
    frame = pairs(tmp_path, lines, "anchor,positive,group", validation=0.3, test=0.3)
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert (frame.groupby("group")["split"].nunique() == 1).all()


def test_rows_without_a_group_are_spread_by_their_anchor(tmp_path: Path) -> None:
    frame = pairs(tmp_path, [f"a{number},b{number}," for number in range(60)], "anchor,positive,group", test=0.4)
    assert set(frame["split"]) == {"train", "test"}
    assert list(frame["split"]) == list(pairs(tmp_path, [f"a{n},b{n}" for n in range(60)], test=0.4)["split"])


def test_rows_that_share_a_text_in_any_column_share_a_split(tmp_path: Path) -> None:
    lines = [f"a{n},b{n // 3}" for n in range(120)] + [f"c{n},a{3 * n}" for n in range(20)]
    frame = pairs(tmp_path, lines, validation=0.3, test=0.3)
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert told(frame, "leaks_from") == [None] * len(frame)
    for texts in (frame["positive"], pd.concat([frame["anchor"], frame["positive"]])):
        assert (frame["split"].loc[texts.index].groupby(texts.to_numpy()).nunique() == 1).all()


def test_pairs_of_two_groups_that_share_a_text_are_split_together(tmp_path: Path) -> None:
    lines = [f"a{n},b{n // 2},group {n}" for n in range(80)]
    frame = pairs(tmp_path, lines, "anchor,positive,group", test=0.5)
    assert (frame.groupby("positive")["split"].nunique() == 1).all()
    assert set(frame["joined"]) <= set(frame["group"])


def test_without_shares_nothing_is_joined(tmp_path: Path) -> None:
    frame = pairs(tmp_path, [f"a{n},b" for n in range(40)])
    assert set(frame["split"]) == {"train"}
    assert told(frame, "joined") == [None] * 40


def test_negatives_join_no_rows(tmp_path: Path) -> None:
    lines = [f"a{n},b{n},b{(n + 1) % 60}" for n in range(60)]
    write_lines(tmp_path / "t.csv", ["anchor,positive,negative", *lines])
    frame = examples(tmp_path, dataset("triplets", {"test": 0.4}, train="t.csv"))
    assert frame["joined"].nunique() == 60


def test_triples_are_split_by_their_head(tmp_path: Path) -> None:
    write_lines(tmp_path / "r.csv", ["head,relation,tail", *(f"h{number % 15},IsA,t{number}" for number in range(60))])
    frame = examples(tmp_path, dataset("triples", {"test": 0.4}, train="r.csv"))
    assert set(frame["split"]) == {"train", "test"}
    assert (frame.groupby("head")["split"].nunique() == 1).all()


def test_a_file_of_its_own_is_its_split_whatever_the_shares(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_lines(tmp_path / f"{name}.csv", ["anchor,positive", *(f"{name}{n},{name} x{n}" for n in range(9))])
    frame = examples(tmp_path, dataset("pairs", {"validation": 0.5}, train="train.csv", test="test.csv"))
    assert set(frame[frame["file"] == "test.csv"]["split"]) == {"test"}
    assert "test" not in set(frame[frame["file"] == "train.csv"]["split"])


def test_a_repeated_row_names_the_first_in_any_casing_and_order(tmp_path: Path) -> None:
    frame = pairs(tmp_path, ["kidney,stone", "Stone,  KIDNEY", "stone,liver"])
    assert told(frame, "duplicate_of") == [None, "terms.csv row 2", None]


def test_a_repeated_triple_is_directed(tmp_path: Path) -> None:
    frame = triples(tmp_path, ["dog,IsA,animal", "Dog,isa,animal", "animal,IsA,dog"])
    assert told(frame, "duplicate_of") == [None, "relations.csv row 2", None]


def test_a_pair_of_one_text_is_reported(tmp_path: Path) -> None:
    assert list(pairs(tmp_path, ["Kidney stone,kidney  stone", "a,b", ",b"])["same_text"]) == [True, False, False]


def test_relations_that_exclude_each_other_are_reported_in_either_direction(tmp_path: Path) -> None:
    lines = ["hot,Synonym,warm", "warm,Antonym,hot", "hot,MadeOf,warm", "hot,Antonym,cold", "cold,DistinctFrom,hot"]
    frame = triples(tmp_path, lines)
    assert told(frame, "contradicts") == [None, "relations.csv row 2", None, None, None]


def test_a_training_row_that_shares_a_text_with_a_held_out_row_is_reported(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.csv", ["anchor,positive", "kidney,stone", "liver,pain", "fish,water"])
    write_lines(tmp_path / "valid.csv", ["anchor,positive", "bird,Liver", "cat,wood"])
    write_lines(tmp_path / "test.csv", ["anchor,positive", "STONE,rock", "wood,house"])
    files = {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}
    frame = examples(tmp_path, dataset("pairs", None, **files))
    assert told(frame, "leaks_from") == [
        "test.csv row 2 (test)",
        "valid.csv row 2 (validation)",
        None,
        None,
        "test.csv row 3 (test)",
        None,
        None,
    ]


def test_a_triple_leaks_only_as_a_whole(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.csv", ["head,relation,tail", "dog,IsA,animal", "dog,MadeOf,animal"])
    write_lines(tmp_path / "test.csv", ["head,relation,tail", "Dog,IsA,animal"])
    frame = examples(tmp_path, dataset("triples", None, train="train.csv", test="test.csv"))
    assert told(frame, "leaks_from") == ["test.csv row 2 (test)", None, None]


def test_relations_are_shown_with_their_token(tmp_path: Path) -> None:
    assert told(triples(tmp_path, ["dog,IsA,animal", "dog,,animal"]), "token") == ["<|IsA|>", None]


def test_texts_leave_out_rows_with_a_gap(tmp_path: Path) -> None:
    assert texts_of(triples(tmp_path, ["dog,IsA,animal", "dog,,animal"]), "triples") == ["dog <|IsA|> animal"]
    assert texts_of(pairs(tmp_path, ["a,b", "c,"]), "pairs") == ["a", "b"]


def test_contexts_of_several_files_know_each_other(tmp_path: Path) -> None:
    for number, lines in enumerate((["a dog", "x"], ["A  dog"])):
        write_lines(tmp_path / f"{number}.txt", lines)
    rows = read_contexts(tmp_path, ["*.txt"]).rows
    assert told(compare_contexts(rows), "duplicate_of") == [None, None, "0.txt row 1"]
    assert list(read_contexts(tmp_path, []).rows.columns) == list(rows.columns)


def test_retention_tells_repetitions_from_contradictions(tmp_path: Path) -> None:
    lines = ["a,b,0.5", "B,a,0.50", "b,A,0.7", "c,d,much", "c,e,"]
    write_lines(tmp_path / "r.csv", ["sentence1,sentence2,score", *lines])
    frame = compare_retention(read_retention(tmp_path, "r.csv").rows)
    assert told(frame, "number") == [0.5, 0.5, 0.7, None, None]
    assert told(frame, "score")[3:] == ["much", None]
    assert told(frame, "duplicate_of") == [None, "r.csv row 2", None, None, None]
    assert told(frame, "contradicts") == [None, None, "r.csv row 2", None, None]


def vocabulary(folder: Path, base: "Tokenizer", lines: list[str]) -> pd.DataFrame:
    """A raw vocabulary with what is known of its tokens."""
    write_lines(folder / "vocabulary.csv", ["token,kind,description", *lines])
    return annotate_vocabulary(read_vocabulary(folder, "vocabulary.csv").rows, base)


def test_what_the_base_makes_of_a_token_is_reported(tmp_path: Path, base_tokenizer: "Tokenizer") -> None:
    lines = [
        "kidney,word,",
        "kidneys,word,",
        "\u4e2d,symbol,middle",
        ",word,",
        "<|IsA|>,special,\u4e2d",
        "\u0301,symbol,x",
    ]
    frame = vocabulary(tmp_path, base_tokenizer, lines)
    assert list(frame["one_token"]) == [1, 0, 0, 0, 0, 0]
    assert list(frame["needs_description"]) == [0, 0, 1, 1, 1, 1]
    assert list(frame["readable_description"]) == [0, 0, 6, 0, 0, 1]
    assert told(frame, "normal") == ["kidney", "kidneys", "\u4e2d", None, "<|isa|>", ""]
    assert list(frame["kept"]) == [0] * 6
    assert told(frame, "kept_as") == told(frame, "rewritten_as") == [None] * 6


def test_tokens_of_an_earlier_run_are_kept_and_keep_how_they_match(
    tmp_path: Path, base_tokenizer: "Tokenizer", extended: Any
) -> None:
    grown = extended[0].backend_tokenizer
    before = grown.to_str()
    lines = ["nephrolith,word,", "Thrombopenia,symbol,x", "<|IsA|>,special,is", "Nephrolith,word,", "hepatoma,word,"]
    texts = ["a nephrolith", "nephroliths", "xthrombopenia", "a hepatoma <|IsA|> b"]
    frame = vocabulary(tmp_path, grown, lines)
    assert list(frame["kept"]) == [1, 1, 1, 0, 0]
    assert told(frame, "kept_as") == [None, "word", None, None, None]
    assert list(frame["one_token"]) == [0, 0, 0, 1, 0]
    assert list(frame["needs_description"]) == [0] * 5
    assert colliding_tokens(frame) == [None, None, None, "nephrolith", None]
    assert count_uses(grown, new_tokens(frame), texts) == [1, 0, 1, 0, 1]
    assert grown.to_str() == before


def test_what_is_nothing_to_the_base_is_not_looked_for(base_tokenizer: "Tokenizer") -> None:
    tokens = [NewToken("\u0301", "symbol", "accent"), NewToken("nephrolith", "word", "")]
    assert count_uses(base_tokenizer, tokens, ["a nephrolith", "n\u0301"]) == [0, 1]


def test_of_rows_with_one_text_the_first_says_how_it_matches(base_tokenizer: "Tokenizer") -> None:
    tokens = [NewToken("nephro", "word", ""), NewToken("nephro", "symbol", "")]
    assert count_uses(base_tokenizer, tokens, ["nephrolith", "a nephro"]) == [1, 1]


def test_words_inside_others_are_reported_with_the_first_of_those() -> None:
    words = ["nephro", "nephrolith", "cholith", "lith", "other", "nephro-lith"]
    assert inside_others(words) == {"nephro": "nephrolith", "lith": "nephrolith"}
    assert inside_others([]) == {}


def test_tokens_that_the_base_normalises_to_one_collide(tmp_path: Path, base_tokenizer: "Tokenizer") -> None:
    frame = vocabulary(tmp_path, base_tokenizer, ["F\u00f6hn,word,", "fohn,word,", "fohns,word,"])
    assert colliding_tokens(frame) == [None, "F\u00f6hn", None]


def test_a_row_of_the_vocabulary_repeats_another_where_it_says_the_same(tmp_path: Path) -> None:
    lines = ["x,word,a", "x,word,b", "x,symbol,a", "x,word,a", "y,word,", "y,word,"]
    write_lines(tmp_path / "v.csv", ["token,kind,description", *lines])
    found = compare_tokens(read_vocabulary(tmp_path, "v.csv").rows)
    assert told(found, "duplicate_of") == [None, None, None, "v.csv row 2", None, "v.csv row 6"]


def test_uses_are_distinct_texts_that_hold_the_whole_word(tmp_path: Path, base_tokenizer: "Tokenizer") -> None:
    texts = ["a Nephrolith", "a Nephrolith", "nephrolith nephrolith!", "nephroliths", "x->y", "dog <|isa|> cat"]
    lines = ["nephrolith,word,", "->,symbol,", "<|IsA|>,special,is a", "rare,word,", "thing,noun,"]
    tokens = new_tokens(vocabulary(tmp_path, base_tokenizer, lines))
    assert count_uses(base_tokenizer, tokens, texts) == [2, 1, 0, 0, 0]


def test_counting_uses_leaves_the_base_alone(base_tokenizer: "Tokenizer") -> None:
    before = base_tokenizer.to_str()
    assert count_uses(base_tokenizer, [NewToken("nephrolith", "word", "")], ["a nephrolith"]) == [1]
    assert base_tokenizer.to_str() == before


def test_a_missing_description_is_the_empty_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "v.csv", ["token,kind,description", "x,word,"])
    assert new_tokens(read_vocabulary(tmp_path, "v.csv").rows) == [NewToken("x", "word", "")]


@pytest.mark.parametrize("first", [900_000_000_000_207_008, 1])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_keep_their_split_beside_a_row_without_a_group(ending: str, first: int, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"anchor": f"word {number}", "positive": f"meaning {number}", "group": first + number // 3}
        for number in range(48)
    ]
    frames = []
    for name, given in (("before", rows), ("after", [*rows, {"anchor": "a", "positive": "b", "group": None}])):
        path = tmp_path / f"{name}.{ending}"
        if ending == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(given), path)
        dataset = DatasetParams.model_validate(
            {"name": "terms", "format": "pairs", "files": {"train": path.name}}
            | {"held_out": {"validation": 0.2, "test": 0.2}}
        )
        frames.append(assign_splits(read_examples(tmp_path, dataset).rows, dataset)[0])
    before, after = frames
    assert list(before["group"]) == list(after["group"])[:48] == [str(row["group"]) for row in rows]
    assert set(before["split"]) == {"train", "validation", "test"}
    assert list(before["split"]) == list(after["split"])[:48]
