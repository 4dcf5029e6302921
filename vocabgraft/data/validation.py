"""Annotates raw rows for the rules: repetitions, contradictions, leaks between splits, and the split."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vocabgraft.config.datasets import (
    COLUMNS,
    DEFAULT_TEMPLATE,
    JOINING,
    MORE_NEGATIVES,
    OPTIONAL_COLUMNS,
    VECTORS,
    DatasetParams,
    text_columns,
)
from vocabgraft.config.losses import Format
from vocabgraft.data.raw_files import RETENTION_COLUMNS, VOCABULARY_COLUMNS, find_files, scan_lines, scan_table
from vocabgraft.data.raw_formats import RawTable
from vocabgraft.data.splits import SPLITS, LargeGroup, split_rows
from vocabgraft.data.texts import GENERAL_PAIRS, fold, side_of
from vocabgraft.tokens.new_token import NewToken, relation_token
from vocabgraft.tokens.tokenizer import (
    hidden_by,
    is_one_token,
    matched_otherwise,
    normalised,
    own_pieces,
    pieces_of,
    readable,
    rewritten,
    tokens_added_before,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_vocabulary(folder: Path, name: str) -> RawTable:
    """The raw vocabulary, with the columns token, kind, description, row and file."""
    return _joined_tables([_named(scan_table(folder / name, VOCABULARY_COLUMNS), name)])


def read_contexts(folder: Path, names: Sequence[str]) -> RawTable:
    """The raw context sentences of all named or matched files, with the columns text, row and file."""
    tables = [_named(scan_lines(folder / name), name) for name in find_files(folder, names)]
    return _joined_tables(tables) if tables else RawTable(pd.DataFrame({"text": [], "row": [], "file": []}))


def read_retention(folder: Path, name: str | None) -> RawTable:
    """The raw retention pairs, with the score as text and as number; without a name, the general pairs."""
    path = GENERAL_PAIRS if name is None else folder / name
    table = _named(scan_table(path, RETENTION_COLUMNS), name or path.name)
    return RawTable(table.rows.assign(number=_numbers(table.rows["score"])), table.faults)


def read_examples(folder: Path, dataset: DatasetParams) -> RawTable:
    """The raw rows of a dataset, with file, row, the split that the file is for, and annotations of single rows."""
    columns, optional = COLUMNS[dataset.format], OPTIONAL_COLUMNS[dataset.format]
    vectors = [name for name in columns if name in VECTORS]
    tables = []
    for split in SPLITS:
        for name in find_files(folder, dataset.files_of(split)):
            table = _named(scan_table(folder / name, columns, optional, vectors), name)
            tables.append(RawTable(table.rows.assign(given_for=split), table.faults))
    if not tables:
        # Made later from the accepted words.
        return RawTable(pd.DataFrame({name: [] for name in (*columns, "row", "file", "given_for")}, dtype=object))
    joined = _joined_tables(tables)
    annotate = ANNOTATIONS.get(dataset.format)
    return joined if annotate is None else RawTable(annotate(joined.rows), joined.faults)


def _named(table: RawTable, name: str) -> RawTable:
    return RawTable(table.rows.assign(file=name), table.faults)


def _joined_tables(tables: Sequence[RawTable]) -> RawTable:
    rows = pd.concat([table.rows for table in tables], ignore_index=True)
    # If only some files have an optional column, pandas fills it with NaN, which is truthy.
    texts = {name: rows[name].where(rows[name].notna(), None) for name in rows.columns if rows[name].dtype == object}
    return RawTable(rows.assign(**texts), tuple(fault for table in tables for fault in table.faults))


def annotate_vocabulary(frame: pd.DataFrame, base: "Tokenizer") -> pd.DataFrame:
    """Add the base's view of each token.

    Columns:
        kept: 1 if the base has the token from an earlier run, otherwise 0; kept_as: its kind there, if it differs.
        one_token: 1 if it is a token of the base's own vocabulary.
        needs_description: 1 for a new token whose row is initialized from its description.
        readable_description: number of known subword tokens in the description.
        normal: the text after the base's normalization; rewritten_as: the changed text of a special token.
        hides: a token of the base that would be lost in texts that contain only part of the new word.
    """
    before = tokens_added_before(base)
    tokens = new_tokens(frame)
    normal = [normalised(base, token.text).strip() if token.text.strip() else None for token in tokens]
    added = list(base.get_added_tokens_decoder().values())
    judged = [token.text not in before and bool(text) for token, text in zip(tokens, normal, strict=True)]
    return frame.assign(
        kept=[int(token.text in before) for token in tokens],
        kept_as=_objects([matched_otherwise(before, token) for token in tokens]),
        one_token=[int(token.text not in before and is_one_token(base, token)) for token in tokens],
        needs_description=[int(token.text not in before and _starts_from_description(base, token)) for token in tokens],
        readable_description=[len(readable(base, pieces_of(base, token.description))) for token in tokens],
        normal=_objects(normal),
        rewritten_as=_objects([rewritten(base, t.text) if t.kind == "special" else None for t in tokens]),
        hides=_objects([hidden_by(base, added, t) if new else None for t, new in zip(tokens, judged, strict=True)]),
    )


def _starts_from_description(base: "Tokenizer", token: NewToken) -> bool:
    return token.kind == "special" or not readable(base, own_pieces(base, token))


def _objects(values: Sequence[str | None]) -> pd.Series:
    # As objects, because a column with only None would be numeric.
    return pd.Series(values, dtype=object)


def compare_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `duplicate_of` to the vocabulary: the place of an earlier, identical row."""
    key = _joined([frame[name].fillna("") for name in ("token", "kind", "description")])
    return frame.assign(duplicate_of=_first_seen(frame, key))


def colliding_tokens(frame: pd.DataFrame) -> list[str | None]:
    """For each row of an annotated vocabulary, an earlier token that differs at most by casing for the base."""
    same = _first_seen(frame, frame["normal"].fillna(""), shown="token")
    # Special tokens that differ by casing are two for the tokenizer, but their author surely means one.
    kinds = zip(frame["token"].fillna(""), frame["kind"], strict=True)
    special = [text.casefold() if kind == "special" else f"row {at}\x1f" for at, (text, kind) in enumerate(kinds)]
    recased = _first_seen(frame, pd.Series(special, dtype=object), shown="token")
    return [first or second for first, second in zip(same, recased, strict=True)]


def new_tokens(frame: pd.DataFrame) -> list[NewToken]:
    """The vocabulary's rows as tokens; a missing description becomes the empty string."""
    described = frame.fillna({"description": "", "token": ""})
    return [
        NewToken(token, kind, description)
        for token, kind, description in zip(
            described["token"], described["kind"], described["description"], strict=True
        )
    ]


def texts_of(frame: pd.DataFrame, dataset_format: Format, template: str = DEFAULT_TEMPLATE) -> list[str]:
    """One text per triple (filled template and tail), every text of other rows; incomplete rows are left out."""
    complete = frame.dropna(subset=list(COLUMNS[dataset_format]))
    if dataset_format == "triples":
        return [
            f"{template.format(head=head, relation=relation_token(relation))} {tail}"
            for head, relation, tail in zip(complete["head"], complete["relation"], complete["tail"], strict=True)
        ]
    more = [name for name in MORE_NEGATIVES if name in complete.columns]
    return [text for name in (*text_columns(dataset_format), *more) for text in complete[name].dropna()]


def assign_splits(frame: pd.DataFrame, dataset: DatasetParams) -> tuple[pd.DataFrame, tuple[LargeGroup, ...]]:
    """Add `split`, and `joined`: the row's group, which decides the split; None if nothing is split.

    Rows of a file for one split keep that split. The others are split by group (`group_rows`), so that no text that can
    leak an answer is on both sides.

    Args:
        frame: accepted rows of `read_examples`.
        dataset: the dataset's settings.

    Returns:
        The rows, and the groups that were cut because they were too large.
    """
    share = dataset.held_out
    frame = frame.assign(split=frame["given_for"], joined=_objects([None] * len(frame)).set_axis(frame.index))
    drawn = frame[frame["given_for"] == "train"]
    if not (share.validation or share.test) or drawn.empty:
        return frame, ()
    texts = list(zip(*(drawn[name] for name in JOINING[dataset.format]), strict=True))
    explicit = drawn["group"] if "group" in drawn.columns else [None] * len(drawn)
    found, splits = split_rows(list(explicit), texts, share.validation, share.test)
    frame.loc[drawn.index, "joined"] = found.names
    frame.loc[drawn.index, "split"] = splits
    return frame, found.large


def _annotate_triples(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(token=frame["relation"].map(relation_token, na_action="ignore"))


def _annotate_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    same = (_folded(frame["anchor"]) == _folded(frame["positive"])) & frame["anchor"].notna()
    return frame.assign(same_text=same)


def _annotate_triplets(frame: pd.DataFrame) -> pd.DataFrame:
    negatives = [_folded(frame[name]) for name in _negatives(frame)]
    right = [_folded(frame["anchor"]), _folded(frame["positive"])]
    return _annotate_pairs(frame).assign(same_negative=_any_negative_is_right(right, negatives))


def _annotate_margins(frame: pd.DataFrame) -> pd.DataFrame:
    right, negatives = [_folded(frame["positive"])], [_folded(frame["negative"])]
    return frame.assign(number=_numbers(frame["margin"]), same_negative=_any_negative_is_right(right, negatives))


def _annotate_teacher_embeddings(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = [vector is None or bool(np.isfinite(vector).all()) for vector in frame["embedding"]]
    return frame.assign(
        width=[None if vector is None else len(vector) for vector in frame["embedding"]],
        finite=[int(finite) for finite in numbers],
    )


# Annotations of single rows; the other formats need none.
ANNOTATIONS: dict[Format, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "triples": _annotate_triples,
    "pairs": _annotate_pairs,
    "triplets": _annotate_triplets,
    "scored_pairs": lambda frame: frame.assign(number=_numbers(frame["score"])),
    "labelled_pairs": lambda frame: frame.assign(number=_numbers(frame["label"])),
    "labelled_texts": lambda frame: frame.assign(number=_numbers(frame["label"])),
    "teacher_embeddings": _annotate_teacher_embeddings,
    "margins": _annotate_margins,
}


def compare_contexts(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `duplicate_of` to context sentences: the place of the first sentence with the same words."""
    return frame.assign(duplicate_of=_first_seen(frame, _folded(frame["text"])))


def compare_retention(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `duplicate_of` and `contradicts` to retention pairs."""
    return _compare_valued(frame, _unordered(frame["sentence1"], frame["sentence2"]))


def compare_examples(frame: pd.DataFrame, dataset_format: Format) -> pd.DataFrame:
    """Add `duplicate_of`, `contradicts` and `leaks_from`, each the place of another row.

    Args:
        frame: rows of `read_examples`, without refused ones.
        dataset_format: format of the dataset.
    """
    return COMPARISONS[dataset_format](frame)


def _compare_triples(frame: pd.DataFrame) -> pd.DataFrame:
    relation = _folded(frame["relation"])
    key = _folded(frame["head"]) + "\x1f" + relation + "\x1f" + _folded(frame["tail"])
    ends = _unordered(frame["head"], frame["tail"])
    side = relation.map(side_of)
    return frame.assign(
        duplicate_of=_first_seen(frame, key + "\x1f" + frame["given_for"]),
        contradicts=_other_value(frame, ends.where(side != "", key), side),
        leaks_from=_other_split(frame, [key]),
    )


def _compare_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    key = _unordered(frame["anchor"], frame["positive"])
    return frame.assign(
        duplicate_of=_first_seen(frame, key + "\x1f" + frame["given_for"]),
        leaks_from=_other_split(frame, [_folded(frame["anchor"]), _folded(frame["positive"])]),
    )


def _compare_triplets(frame: pd.DataFrame) -> pd.DataFrame:
    anchor, positive = _folded(frame["anchor"]), _folded(frame["positive"])
    negatives = [_folded(frame[name]) for name in _negatives(frame)]
    return frame.assign(
        duplicate_of=_first_seen(frame, _joined([anchor, positive, *negatives, frame["given_for"]])),
        leaks_from=_other_split(frame, [anchor, positive]),
    )


def _compare_scored_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    key = _unordered(frame["sentence1"], frame["sentence2"])
    return _compare_valued(frame, key).assign(leaks_from=_other_split(frame, [key]))


def _compare_labelled_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    # In order, because entailment and similar labels are not symmetric.
    key = _joined([_folded(frame["sentence1"]), _folded(frame["sentence2"])])
    return _compare_valued(frame, key).assign(leaks_from=_other_split(frame, [key]))


def _compare_labelled_texts(frame: pd.DataFrame) -> pd.DataFrame:
    key = _folded(frame["text"])
    return _compare_valued(frame, key).assign(leaks_from=_other_split(frame, [key]))


def _compare_margins(frame: pd.DataFrame) -> pd.DataFrame:
    query, positive, negative = (_folded(frame[name]) for name in ("query", "positive", "negative"))
    compared = _compare_valued(frame, _joined([query, positive, negative]))
    return compared.assign(leaks_from=_other_split(frame, [query]))


def _compare_texts(frame: pd.DataFrame) -> pd.DataFrame:
    key = _folded(frame["text"])
    return frame.assign(
        duplicate_of=_first_seen(frame, _joined([key, frame["given_for"]])), leaks_from=_other_split(frame, [key])
    )


def _compare_teacher_embeddings(frame: pd.DataFrame) -> pd.DataFrame:
    key, embeddings = _folded(frame["text"]), list(frame["embedding"])
    first: dict[str, int] = {}
    seen = [first.setdefault(text, position) for position, text in enumerate(key)]
    # Rounding differs between batches and hardware, so vectors of the same text may differ slightly.
    alike = [
        there == here or np.allclose(embeddings[there], embeddings[here], 1e-2, 1e-4) for here, there in enumerate(seen)
    ]
    contradicts = [None if same else _place(frame, at) for at, same in zip(seen, alike, strict=True)]
    compared = _compare_texts(frame).assign(contradicts=_objects(contradicts).set_axis(frame.index))
    return compared.assign(duplicate_of=compared["duplicate_of"].where(compared["contradicts"].isna(), None))


def _compare_valued(frame: pd.DataFrame, key: pd.Series) -> pd.DataFrame:
    # As text, because a NaN differs from itself, so its row would contradict itself.
    shown = frame["number"].map(str)
    parts = [key, shown, *([frame["given_for"]] if "given_for" in frame.columns else [])]
    return frame.assign(duplicate_of=_first_seen(frame, _joined(parts)), contradicts=_other_value(frame, key, shown))


COMPARISONS: dict[Format, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "triples": _compare_triples,
    "pairs": _compare_pairs,
    "triplets": _compare_triplets,
    "scored_pairs": _compare_scored_pairs,
    "labelled_pairs": _compare_labelled_pairs,
    "labelled_texts": _compare_labelled_texts,
    "texts": _compare_texts,
    "teacher_embeddings": _compare_teacher_embeddings,
    "margins": _compare_margins,
}


def _numbers(texts: pd.Series) -> pd.Series:
    return pd.to_numeric(texts, errors="coerce").astype("float64")


def _negatives(frame: pd.DataFrame) -> list[str]:
    return ["negative", *(name for name in MORE_NEGATIVES if name in frame.columns)]


def _any_negative_is_right(right: Sequence[pd.Series], negatives: Sequence[pd.Series]) -> list[bool]:
    return [
        any(text and text in answers for text in texts)
        for texts, answers in zip(zip(*negatives, strict=True), zip(*right, strict=True), strict=True)
    ]


def _joined(parts: Sequence[pd.Series]) -> pd.Series:
    return pd.Series(["\x1f".join(row) for row in zip(*parts, strict=True)], index=parts[0].index, dtype=object)


def _folded(texts: pd.Series) -> pd.Series:
    return texts.fillna("").map(fold)


def _unordered(left: pd.Series, right: pd.Series) -> pd.Series:
    pairs = zip(_folded(left), _folded(right), strict=True)
    return pd.Series(["\x1f".join(sorted(pair)) for pair in pairs], index=left.index, dtype=object)


def _first_seen(frame: pd.DataFrame, key: pd.Series, shown: str | None = None) -> list[str | None]:
    """For a row with the key of an earlier row, the first one's place (or its `shown` value); otherwise None."""
    first: dict[str, int] = {}
    found: list[str | None] = []
    for position, value in enumerate(key):
        seen = first.setdefault(value, position)
        found.append(None if seen == position else _place(frame, seen) if shown is None else frame[shown].iloc[seen])
    return found


def _other_value(frame: pd.DataFrame, key: pd.Series, value: pd.Series) -> list[str | None]:
    """For a row with the key of an earlier row but another value, the place of that row."""
    first: dict[str, int] = {}
    seen = [first.setdefault(text, position) for position, text in enumerate(key)]
    return [None if value.iloc[at] == value.iloc[here] else _place(frame, at) for here, at in enumerate(seen)]


def _other_split(frame: pd.DataFrame, keys: Sequence[pd.Series]) -> list[str | None]:
    """For a row that shares a text with a file of a later split (train, validation, test), the place of that row.

    Rows of one file never leak: `assign_splits` keeps rows that share a text on the same side.
    """
    ranks = [SPLITS.index(split) for split in frame["given_for"]]
    held_out: dict[str, int] = {}
    for key in keys:
        for position, text in enumerate(key):
            best = held_out.setdefault(text, position)
            if ranks[position] > ranks[best]:
                held_out[text] = position
    found: list[str | None] = [None] * len(frame)
    for key in keys:
        for position, text in enumerate(key):
            there = held_out[text]
            if found[position] is None and text and ranks[there] > ranks[position]:
                found[position] = f"{_place(frame, there)} ({frame['given_for'].iloc[there]})"
    return found


def _place(frame: pd.DataFrame, position: int) -> str:
    return f"{frame['file'].iloc[position]} row {frame['row'].iloc[position]}"
