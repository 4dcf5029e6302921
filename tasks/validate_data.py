"""Stage validate_data: raw files in, typed splits and the accepted vocabulary out."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.support.expectations import (
    Rejection,
    Table,
    contexts_table,
    examples_table,
    judge,
    retention_table,
    vocabulary_table,
)
from tasks.support.models import resolve_base
from tasks.support.preflight import check_settings
from tasks.support.stage import run_stage
from vocabgraft.config.datasets import COLUMNS, LABELS, NUMBERS, OPTIONAL_COLUMNS, DatasetParams
from vocabgraft.config.stages import (
    BaseParams,
    EvaluateModelParams,
    ExtendTokenizerParams,
    ResizeBaseParams,
    ValidateDataParams,
)
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.data.beir import read_beir, write_benchmarks
from vocabgraft.data.mteb import require_mteb
from vocabgraft.data.splits import SPLITS
from vocabgraft.data.validation import (
    annotate_vocabulary,
    count_uses,
    inside_others,
    new_tokens,
    read_contexts,
    read_examples,
    read_retention,
    read_vocabulary,
    texts_of,
)
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import tokenizer_file
from vocabgraft.models.remote_code import check_code, describe_code
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.tokens.tokenizer import load_raw_tokenizer, tokens_added_before

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

REJECTED_ROWS = "rejected.csv"
SHOWN_ROWS = 10
# Above this share of the base's own vocabulary, new rows need far more text than a vocabulary usually comes with.
LARGE_VOCABULARY = 0.03


# A word in this share of general sentences is common: in the shipped ones 36 words are, `the` to `woman`.
COMMON_SHARE = 0.02
LEAST_COMMON_USES = 5
SHOWN_WORDS = 5


def validate_data(
    raw: Path,
    out: Path,
    site: Path,
    params: ValidateDataParams,
    base: BaseParams,
    extend_tokenizer: ExtendTokenizerParams,
    evaluate_model: EvaluateModelParams,
    resize_base: ResizeBaseParams,
    train_adapter: TrainAdapterParams,
) -> None:
    """Judge the raw files with Great Expectations; write what is accepted and why the rest is not."""
    # What the evaluation will ask for is refused here, before anything is trained.
    require_mteb(evaluate_model.mteb_tasks)
    benchmarks = [read_beir(raw / entry.folder, entry.name) for entry in evaluate_model.benchmarks]
    folder, identity = resolve_base(base)
    check_code(folder, base.trust_remote_code)
    check_settings(train_adapter, resize_base, params.datasets, folder)
    if identity.code is not None:
        logger.info("remote code: %s", describe_code(identity.code))
    tokenizer = load_raw_tokenizer(tokenizer_file(folder))
    examples = {dataset.name: read_examples(raw / "", dataset) for dataset in params.datasets}
    contexts = read_contexts([raw / name for name in params.contexts])
    training = [
        text
        for dataset in params.datasets
        for text in texts_of(_only(examples[dataset.name], "train"), dataset.format, dataset.template)
    ]
    vocabulary = annotate_vocabulary(
        read_vocabulary(raw / params.vocabulary), tokenizer, [*training, *contexts["text"]]
    )
    # A relation's token that the base has from an earlier run need not be listed again.
    known_tokens = [*vocabulary["token"], *tokens_added_before(tokenizer)]
    tables = [
        vocabulary_table(vocabulary, params, extend_tokenizer.max_token_characters),
        contexts_table(contexts, params),
        retention_table(read_retention(raw / params.retention), params),
        *(examples_table(dataset, examples[dataset.name], params, known_tokens) for dataset in params.datasets),
    ]
    rejections = judge(tables, site)
    if params.on_invalid == "quarantine":
        rejections += _orphans(tables, rejections)
    _refuse_or_quarantine(rejections, tables, params, site)
    accepted = {table.name: _accepted(table, rejections) for table in tables}
    warnings = _warnings(_new(accepted["vocabulary"]), accepted["retention"], tokenizer)
    for warning in warnings:
        logger.warning("warning: %s", warning)
    with new_folder(out) as work:
        write_json(work / "base.json", identity.as_json())
        _write_accepted(work, accepted, params)
        _rejected_rows(rejections, tables).to_csv(work / REJECTED_ROWS, index=False)
        write_benchmarks(work / "benchmarks", benchmarks)
        write_json(work / "report.json", _report(accepted, rejections, warnings, params))


def _orphans(tables: list[Table], rejections: list[Rejection]) -> list[Rejection]:
    """The triples whose relation loses its token to the quarantine."""
    vocabulary = tables[0]
    lost = set(_new(vocabulary.frame)["token"].dropna()) - set(_accepted(vocabulary, rejections)["token"])
    return [
        Rejection(table.name, position, "relation", str(relation), f"has the token {token}, which is quarantined")
        for table in tables
        if "relation" in table.frame.columns
        for position, (relation, token) in enumerate(zip(table.frame["relation"], table.frame["token"], strict=True))
        if token in lost
    ]


def _refuse_or_quarantine(
    rejections: list[Rejection], tables: list[Table], params: ValidateDataParams, site: Path
) -> None:
    fatal = [rejection for rejection in rejections if rejection.position is None]
    if not rejections:
        return
    rows = _rejected_rows(rejections, tables)
    # Beside the Data Docs too, since a refusal leaves no output and its message shows the first rows alone.
    rows.to_csv(site / REJECTED_ROWS, index=False)
    if params.on_invalid == "fail" or fatal:
        shown = "\n".join(_line(row) for row in rows.head(SHOWN_ROWS).to_dict("records"))
        # A quarantine takes out rows, which mends nothing that is wrong with a whole file.
        remedy = "Mend them" if fatal else "Mend them, or set validate_data.on_invalid to quarantine"
        raise VocabgraftError(f"{_count(len(rows))}:\n{shown}\n{remedy}; all are in {site}/index.html")
    rejected = {(rejection.table, rejection.position) for rejection in rejections}
    share = len(rejected) / sum(len(table.frame) for table in tables)
    if share > params.max_rejected_fraction:
        raise VocabgraftError(
            f"{len(rejected)} rows ({share:.1%}) would be quarantined; allowed: {params.max_rejected_fraction:.1%} "
            f"(validate_data.max_rejected_fraction). The first: {_line(rows.iloc[0].to_dict())}"
        )
    logger.warning("warning: %d rows quarantined, %.1f %% of all", len(rejected), 100 * share)


def _count(problems: int) -> str:
    counted = f"{problems} problem{'s' if problems > 1 else ''} in the raw data"
    return counted if problems <= SHOWN_ROWS else f"{counted}, the first {SHOWN_ROWS}"


def _line(row: dict[Any, Any]) -> str:
    where = f"  {row['file']}" + (f" row {row['row']}" if row["row"] else "")
    return (
        f"{where}, {row['column']} {row['value']!r}: {row['reason']}" if row["column"] else f"{where}: {row['reason']}"
    )


def _rejected_rows(rejections: list[Rejection], tables: list[Table]) -> pd.DataFrame:
    frames = {table.name: table.frame for table in tables}
    rows = []
    for rejection in rejections:
        frame, place = frames[rejection.table], rejection.position
        file = frame["file"].iloc[0 if place is None else place] if len(frame) else rejection.table
        row = "" if place is None else int(frame["row"].iloc[place])
        rows.append((file, row, rejection.column, rejection.value, rejection.reason))
    return pd.DataFrame(rows, columns=["file", "row", "column", "value", "reason"])


def _accepted(table: Table, rejections: list[Rejection]) -> pd.DataFrame:
    refused = {rejection.position for rejection in rejections if rejection.table == table.name}
    return table.frame.drop(index=[position for position in refused if position is not None])


def _only(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    return frame[frame["split"] == split]


def _new(vocabulary: pd.DataFrame) -> pd.DataFrame:
    return vocabulary[vocabulary["kept"] == 0]


def _write_accepted(work: Path, accepted: dict[str, pd.DataFrame], params: ValidateDataParams) -> None:
    vocabulary = accepted["vocabulary"].fillna({"description": ""})[["token", "kind", "description", "uses"]]
    _write_parquet(vocabulary, work / "vocabulary.parquet")
    _write_parquet(accepted["contexts"][["text"]], work / "contexts.parquet")
    retention = accepted["retention"].assign(score=accepted["retention"]["number"])
    _write_parquet(retention[["sentence1", "sentence2", "score"]], work / "retention.parquet")
    index = []
    for dataset in params.datasets:
        frame = _with_numbers(accepted[dataset.name], dataset)
        kept = set(COLUMNS[dataset.format]) | set(OPTIONAL_COLUMNS[dataset.format])
        columns = [column for column in frame.columns if column in kept]
        (work / "datasets" / dataset.name).mkdir(parents=True)
        for split in SPLITS:
            _write_parquet(_only(frame, split)[columns], work / "datasets" / dataset.name / f"{split}.parquet")
        if _only(frame, "train").empty:
            raise VocabgraftError(f"dataset {dataset.name} has no training row left; add rows or lower held_out")
        _require_classes(_only(frame, "train"), dataset)
        template = {"template": dataset.template} if dataset.format == "triples" else {}
        index.append({"name": dataset.name, "format": dataset.format} | template)
    write_json(work / "datasets" / "index.json", index)


def _with_numbers(frame: pd.DataFrame, dataset: DatasetParams) -> pd.DataFrame:
    for column in COLUMNS[dataset.format]:
        if column in (*NUMBERS, *LABELS):
            frame = frame.assign(**{column: frame["number"]})
    return frame


def _require_classes(train: pd.DataFrame, dataset: DatasetParams) -> None:
    if dataset.format == "labelled_texts" and (train["label"].value_counts() > 1).sum() < 2:
        raise VocabgraftError(
            f"dataset {dataset.name} has fewer than two labels with two training texts each, so there is no triplet to "
            "learn from; add rows or lower held_out"
        )


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    # Types are stated, since those of an empty split cannot be told from its rows.
    types = {"uses": pa.int64(), "embedding": pa.list_(pa.float32())}
    types |= dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(LABELS, pa.int64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in frame.columns])
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), path)


def _warnings(vocabulary: pd.DataFrame, retention: pd.DataFrame, base: "Tokenizer") -> list[str]:
    found = [
        _too_many(vocabulary, base.get_vocab_size()),
        _inside_another(vocabulary),
        _common(vocabulary, [*retention["sentence1"], *retention["sentence2"]], base),
    ]
    return [warning for warning in found if warning]


def _too_many(vocabulary: pd.DataFrame, base_size: int) -> str | None:
    share = len(vocabulary) / base_size
    if share <= LARGE_VOCABULARY:
        return None
    return f"{len(vocabulary)} new tokens are {share:.1%} of the base's vocabulary; expect to need much more text"


def _inside_another(vocabulary: pd.DataFrame) -> str | None:
    names = dict(zip(vocabulary["normal"], vocabulary["token"], strict=True))
    inside = inside_others(list(names))
    if not inside:
        return None
    shown = _shown([f"{names[part]} in {names[whole]}" for part, whole in inside.items()])
    return (
        f"{len(inside)} new tokens stand inside another ({shown}); each is matched for itself, and where both begin at "
        "one place only the longer is tried"
    )


def _common(vocabulary: pd.DataFrame, sentences: list[str], base: "Tokenizer") -> str | None:
    """Words that are common in general text, for which the retention sentences stand.

    The frequent words of its language are one token in any base, and those are refused. What is left to find is a word
    that the user's own general text is full of: whatever it is, each of those vectors changes.
    """
    words = vocabulary[vocabulary["kind"] == "word"]
    distinct = list(dict.fromkeys(sentences))
    uses = count_uses(base, new_tokens(words), distinct)
    least = max(LEAST_COMMON_USES, COMMON_SHARE * len(distinct))
    common = [f"{word} in {count}" for word, count in zip(words["token"], uses, strict=True) if count >= least]
    if not common:
        return None
    return (
        f"{len(common)} new words are common in general text ({_shown(common)} of {len(distinct)} sentences of the "
        "retention pairs); each changes the vectors of all those texts, so take out what the base reads well"
    )


def _shown(entries: list[str]) -> str:
    return ", ".join(entries[:SHOWN_WORDS]) + (", ..." if len(entries) > SHOWN_WORDS else "")


def _report(
    accepted: dict[str, pd.DataFrame], rejections: list[Rejection], warnings: list[str], params: ValidateDataParams
) -> dict[str, Any]:
    new = _new(accepted["vocabulary"])
    kinds = new["kind"].value_counts()
    splits = {
        dataset.name: {split: len(_only(accepted[dataset.name], split)) for split in SPLITS}
        for dataset in params.datasets
    }
    return {
        "new_tokens": {kind: int(kinds[kind]) for kind in sorted(kinds.index)},
        "kept_tokens": len(accepted["vocabulary"]) - len(new),
        "contexts": len(accepted["contexts"]),
        "retention": len(accepted["retention"]),
        "datasets": splits,
        "rejected": len({(rejection.table, rejection.position) for rejection in rejections}),
        "warnings": warnings,
    }


if __name__ == "__main__":
    raise SystemExit(run_stage(validate_data))
