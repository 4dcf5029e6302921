"""Decides which raw rows are accepted, by `rules`. Refused rows do not count anywhere.

So each row is first judged by itself, then compared with the remaining rows. A row that repeats another is dropped and
counted, which is not an error. A row that contradicts another is an error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.stages import ValidateDataParams
from vocabgraft.data.descriptions import description_pairs, other_rows, split_pairs
from vocabgraft.data.raw_formats import Fault, RawTable
from vocabgraft.data.rules import (
    CountRule,
    Rule,
    collision_rules,
    comparison_rules,
    context_rules,
    contradiction_rule,
    description_rules,
    example_rules,
    retention_counts,
    retention_rules,
    uses_rule,
    vocabulary_counts,
    vocabulary_rules,
)
from vocabgraft.data.splits import LargeGroup
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
from vocabgraft.tokens.tokenizer import tokens_added_before

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The parts of a reason that differ between errors of the same kind.
PARTICULARS = re.compile(r"\d+|0x[0-9a-f]{2}|'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Refusal:
    """A refused row, or a refused file if `row` is None.

    Attributes:
        file: file name relative to the raw folder.
        row: row number in the file.
        column: column name in the file; empty if no single column is wrong.
        value: the value seen.
        reason: what is wrong and what to do.
        kind: identical for all refusals with the same kind of reason.
        table, position: table and index of the row, if it could be read.
        follows: whether it is refused only because another row is.
    """

    file: str
    row: int | None
    column: str
    value: str
    reason: str
    kind: str
    table: str
    position: int | None = None
    follows: bool = False


@dataclass
class JudgedTable:
    """A table while it is judged. Its frame's index is 0, 1, 2, ..."""

    name: str
    frame: pd.DataFrame
    is_whole: bool = True
    rules: list[Rule] = field(default_factory=list)
    counts: list[CountRule] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    repeated: dict[int, str] = field(default_factory=dict)

    @property
    def accepted(self) -> pd.DataFrame:
        """The rows that have been neither refused nor dropped so far."""
        gone = {refusal.position for refusal in self.refusals} | self.repeated.keys()
        return self.frame.drop(index=[position for position in gone if position is not None])

    def note(self, rows: pd.DataFrame, column: str, values: Sequence[Any]) -> None:
        """Set the values of a column in these rows; rows without a value have None."""
        known = {at: None if pd.isna(value) else value for at, value in zip(rows.index, values, strict=True)}
        before = self.frame[column] if column in self.frame.columns else [None] * len(self.frame)
        after = [known.get(position, old) for position, old in zip(self.frame.index, before, strict=True)]
        self.frame = self.frame.assign(**{column: pd.Series(after, index=self.frame.index, dtype=object)})

    def judge(self, rules: Iterable[Rule]) -> None:
        """Refuse the remaining rows that fail a rule; every failed rule is reported."""
        rows, rules = self.accepted, list(rules)
        self.rules += [rule for rule in rules if rule not in self.rules]
        found = [(rule, rule.failures(rows)) for rule in rules]
        for rule, failures in found:
            for position, row in zip(failures.index, failures.to_dict("records"), strict=True):
                self.refuse(
                    position, row, rule.shown, rule.reason.replace("{value}", str(row[rule.column])), rule.reason
                )

    def refuse(
        self, position: int, row: Mapping[Any, Any], column: str, reason: str, kind: str, follows: bool = False
    ) -> None:
        """Refuse a row."""
        file, number, value = str(row["file"]), int(row["row"]), shorten(row[column])
        self.refusals.append(Refusal(file, number, column, value, reason, kind, self.name, position, follows))

    def compare(self, compared: pd.DataFrame, rules: Iterable[Rule]) -> None:
        """Apply a comparison of the remaining rows: drop those that repeat another, then judge the others."""
        self.drop_repeated(compared)
        for column in ("contradicts", "leaks_from"):
            if column in compared.columns:
                self.note(compared, column, list(compared[column]))
        self.judge(rules)

    def drop_repeated(self, compared: pd.DataFrame) -> None:
        """Drop the rows whose `duplicate_of` names an equal row."""
        repeated = compared["duplicate_of"].dropna()
        self.repeated |= {int(position): str(place) for position, place in repeated.items()}

    def count(self, rules: Iterable[CountRule]) -> None:
        """Refuse the table if too few or too many rows are left."""
        self.counts += rules
        rows = self.accepted
        file = str(self.frame["file"].iloc[0]) if len(self.frame) else self.name
        failures = [(rule, rule.failure(rows)) for rule in self.counts]
        self.refusals += [
            Refusal(file, None, "", "", reason, rule.reason, self.name) for rule, reason in failures if reason
        ]


@dataclass(frozen=True)
class RawData:
    """All raw tables."""

    vocabulary: RawTable
    contexts: RawTable
    retention: RawTable
    examples: Mapping[str, RawTable]

    @property
    def tables(self) -> dict[str, RawTable]:
        """The tables by name."""
        named = {"vocabulary": self.vocabulary, "contexts": self.contexts, "retention": self.retention}
        return {**named, **self.examples}


@dataclass(frozen=True)
class Judgement:
    """The judged tables by name, all refusals, and the groups of rows that were cut."""

    tables: Mapping[str, JudgedTable]
    refusals: tuple[Refusal, ...]
    large_groups: Mapping[str, tuple[LargeGroup, ...]]

    @property
    def repeated(self) -> dict[str, int]:
        """The number of repeated rows by table; tables without any are left out."""
        return {name: len(table.repeated) for name, table in self.tables.items() if table.repeated}


def read_raw(folder: Path, params: ValidateDataParams) -> RawData:
    """Read all raw files; the errors of a file are in its table."""
    return RawData(
        read_vocabulary(folder, params.vocabulary),
        read_contexts(folder, params.contexts),
        read_retention(folder, params.retention),
        {dataset.name: read_examples(folder, dataset) for dataset in params.datasets},
    )


def judge(
    raw: RawData,
    folder: Path,
    base: "Tokenizer",
    params: ValidateDataParams,
    max_token_characters: int,
    held_out_contexts: float = 0.0,
) -> Judgement:
    """Judge the rows of all tables.

    Args:
        raw: result of `read_raw`.
        folder: folder of the files; messages show paths relative to it.
        base: the base's tokenizer, not extended.
        params: parameters of the stage.
        max_token_characters: largest length of a new token.
        held_out_contexts: share of the contexts that distillation holds out; no pairs are made from them.
    """
    tables = {name: JudgedTable(name, table.rows, table.is_whole) for name, table in raw.tables.items()}
    vocabulary, contexts, retention = (tables[name] for name in ("vocabulary", "contexts", "retention"))
    examples = [(dataset, tables[dataset.name]) for dataset in params.datasets if dataset.source is None]
    made = [(dataset, tables[dataset.name]) for dataset in params.datasets if dataset.source is not None]
    _judge_vocabulary(vocabulary, base, max_token_characters, description_rules(params) if made else [])
    contexts.judge(context_rules(params))
    retention.judge(retention_rules(params))
    for dataset, table in examples:
        known = [*vocabulary.frame["token"], *tokens_added_before(base)] if vocabulary.is_whole else None
        table.judge(example_rules(dataset, table.frame, params, known))
    contexts.compare(compare_contexts(contexts.accepted), [])
    retention.compare(compare_retention(retention.accepted), [contradiction_rule("score")])
    _refuse_orphans(vocabulary, examples)
    for dataset, table in examples:
        table.compare(compare_examples(table.accepted, dataset.format), comparison_rules(dataset))
    large_groups = {dataset.name: _split(table, dataset) for dataset, table in examples}
    if all(table.is_whole for table in (vocabulary, contexts, *(table for _, table in examples))):
        _judge_uses(vocabulary, examples, contexts, base, params)
        accepted = [(dataset, table.accepted) for dataset, table in examples]
        for dataset, table in made:
            pairs = description_pairs(
                vocabulary.accepted, contexts.accepted, base, held_out_contexts, other_rows(accepted, held_out=True)
            )
            table.frame, large = split_pairs(pairs, dataset, other_rows(accepted, held_out=False))
            large_groups[dataset.name] = large
            _require_pairs(table, dataset, vocabulary)
    vocabulary.count(vocabulary_counts(params))
    if retention.is_whole:
        retention.count(retention_counts())
    read = [_of_fault(fault, folder, name) for name, table in raw.tables.items() for fault in table.faults]
    refusals = (*read, *(refusal for table in tables.values() for refusal in table.refusals))
    return Judgement(tables, refusals, large_groups)


def _require_pairs(table: JudgedTable, dataset: DatasetParams, vocabulary: JudgedTable) -> None:
    if len(table.frame):
        return
    file = str(vocabulary.frame["file"].iloc[0]) if len(vocabulary.frame) else vocabulary.name
    reason = (
        f"dataset {dataset.name} (from: descriptions) has no pair, because no word or symbol of {file} has a "
        "description that no other dataset holds out; fill the column description, or take this dataset out"
    )
    table.refusals.append(Refusal(file, None, "", "", reason, reason, table.name))


def _split(table: JudgedTable, dataset: DatasetParams) -> tuple[LargeGroup, ...]:
    """Split the remaining rows of a table: refused rows join no others."""
    rows, large = assign_splits(table.accepted, dataset)
    for column in ("split", "joined"):
        table.note(rows, column, list(rows[column]))
    return large


def _judge_vocabulary(
    vocabulary: JudgedTable, base: "Tokenizer", max_token_characters: int, more: Sequence[Rule]
) -> None:
    vocabulary.frame = annotate_vocabulary(vocabulary.frame, base)
    vocabulary.judge([*vocabulary_rules(max_token_characters), *more])
    vocabulary.drop_repeated(compare_tokens(vocabulary.accepted))
    rows = vocabulary.accepted
    vocabulary.note(rows, "collides_with", colliding_tokens(rows))
    vocabulary.judge(collision_rules())


def _judge_uses(
    vocabulary: JudgedTable,
    examples: Sequence[tuple[DatasetParams, JudgedTable]],
    contexts: JudgedTable,
    base: "Tokenizer",
    params: ValidateDataParams,
) -> None:
    """Refuse rare words in rounds: without a word, others may match more often, and its triples are refused too.

    A rare word inside another rare one waits for the next round, because the tokenizer tries only the longer of two
    words that begin at the same character.
    """
    rule = uses_rule(params)
    vocabulary.rules.append(rule)
    while True:
        rows = vocabulary.accepted
        texts = [*_training_texts(examples), *contexts.accepted["text"]]
        vocabulary.note(rows, "uses", count_uses(base, new_tokens(rows), texts))
        rare = rule.failures(vocabulary.accepted)
        waiting = inside_others(list(rare["normal"])).keys()
        refused = rare[~rare["normal"].isin(waiting)]
        if refused.empty:
            return
        for position, row in zip(refused.index, refused.to_dict("records"), strict=True):
            reason = rule.reason.replace("{value}", str(row["uses"]))
            vocabulary.refuse(position, row, rule.shown, reason, rule.reason)
        _refuse_orphans(vocabulary, examples)


def _training_texts(examples: Sequence[tuple[DatasetParams, JudgedTable]]) -> Iterable[str]:
    for dataset, table in examples:
        rows = table.accepted
        yield from texts_of(rows[rows["split"] == "train"], dataset.format, dataset.template)


def _refuse_orphans(vocabulary: JudgedTable, examples: Sequence[tuple[DatasetParams, JudgedTable]]) -> None:
    """Refuse the triples whose relation's token is refused."""
    new = vocabulary.frame[vocabulary.frame["kept"] == 0]
    lost = set(new["token"].dropna()) - set(vocabulary.accepted["token"])
    for dataset, table in examples:
        if dataset.format == "triples":
            rows = table.accepted
            orphans = rows[rows["token"].isin(lost)]
            for position, row in zip(orphans.index, orphans.to_dict("records"), strict=True):
                reason = f"has the token {row['token']}, which is refused"
                table.refuse(position, row, "relation", reason, reason, follows=True)


def _of_fault(fault: Fault, folder: Path, table: str) -> Refusal:
    inside = fault.path.relative_to(folder) if fault.path.is_relative_to(folder) else fault.path
    kind = PARTICULARS.sub("", fault.reason)
    return Refusal(inside.as_posix(), fault.row, fault.column, shorten(fault.value), fault.reason, kind, table)


def shorten(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = "" if value is None or (isinstance(value, float) and pd.isna(value)) else re.sub(r"\s", " ", str(value))
    return text if len(text) <= 80 else text[:77] + "..."


def told_first(refusals: Sequence[Refusal], most: int) -> list[tuple[Refusal, int]]:
    """The first refusals of every kind, in order, each with the number of further ones of its kind.

    Args:
        refusals: all refusals.
        most: number of refusals to return; with more kinds than that, one of each kind.
    """
    kinds: dict[tuple[str, str, str], list[Refusal]] = {}
    for refusal in refusals:
        kinds.setdefault((refusal.file, refusal.column, refusal.kind), []).append(refusal)
    each = max(1, most // len(kinds)) if kinds else 0
    return [
        (refusal, len(of_kind) - each if at == min(each, len(of_kind)) - 1 and len(of_kind) > each else 0)
        for of_kind in kinds.values()
        for at, refusal in enumerate(of_kind[:each])
    ]
