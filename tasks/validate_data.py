"""Stage validate_data: raw files in, typed splits and the accepted vocabulary out."""

import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.support.models import resolve_base
from tasks.support.preflight import check_settings
from tasks.support.stage import ToldFirstError, run_stage
from vocabgraft.config.datasets import COLUMNS, LABELS, NUMBERS, OPTIONAL_COLUMNS, DatasetParams
from vocabgraft.config.stages import (
    BaseParams,
    EvaluateModelParams,
    ExtendTokenizerParams,
    ResizeBaseParams,
    ValidateDataParams,
)
from vocabgraft.config.training import RetainParams, TrainAdapterParams
from vocabgraft.data.beir import Benchmark, read_beir, write_benchmarks
from vocabgraft.data.descriptions import is_described
from vocabgraft.data.judgement import JudgedTable, Judgement, Refusal, judge, read_raw, shorten, told_first
from vocabgraft.data.mteb import require_mteb
from vocabgraft.data.raw_files import read_lines
from vocabgraft.data.splits import LARGEST_SHARE, NEVER_CUT, SPLITS, LargeGroup, group_rows, split_of
from vocabgraft.data.uses import count_uses, inside_others
from vocabgraft.data.validation import new_tokens
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.remote_code import check_code, describe_code
from vocabgraft.models.base import check_weights
from vocabgraft.printable import spreadsheet_cell, warn
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.tokens.tokenizer import load_base_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

REJECTED_ROWS = "rejected.csv"
JOINED_ROWS = "moved_by_shared_texts.csv"
SHOWN_ROWS = 10
# Above this share of the base's vocabulary, new rows need far more text than most vocabularies come with.
LARGE_VOCABULARY = 0.03
# A word in this share of general sentences is common: in the shipped ones 36 words are, from `the` to `woman`.
COMMON_SHARE = 0.02
# Share of the retention pairs that is evaluated if train_adapter.retain trains on the others.
SHARE_EVALUATED = 0.5
LEAST_COMMON_USES = 5
SHOWN_WORDS = 5
# With fewer texts a row's fidelity falls (the table in resize_base's report shows it for each run).
RARE_USES = 8


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
    """Validate the raw files; write accepted rows, rejected rows with reasons, and Great Expectations' Data Docs."""
    # Checked here, before anything is trained, because the evaluation needs it.
    require_mteb(evaluate_model.mteb_tasks)
    data = read_raw(raw, params)
    benchmarks, unusable = _read_benchmarks(raw, evaluate_model)
    folder, identity = resolve_base(base)
    check_code(folder, base.trust_remote_code)
    check_weights(folder, base.trust_remote_code)
    check_settings(train_adapter, resize_base, params.datasets, folder)
    if identity.code is not None:
        logger.info("remote code: %s", describe_code(identity.code))
    tokenizer = load_base_tokenizer(folder, base.trust_remote_code)
    longest, held_out = extend_tokenizer.max_token_characters, resize_base.distillation.held_out
    judgement = judge(data, raw, tokenizer, params, longest, held_out)
    _refuse_or_quarantine([*judgement.refusals, *unusable], judgement, params, site)
    accepted = {name: table.accepted for name, table in judgement.tables.items()}
    for name, rows in judgement.repeated.items():
        logger.info("%s: %d rows repeat another and are dropped", name, rows)
    for benchmark in benchmarks:
        for reason, count in benchmark.left_out.items():
            logger.info("benchmark %s: %d left out: %s", benchmark.name, count, reason)
    doubts = [
        *_doubts(_new(accepted["vocabulary"]), accepted["retention"], tokenizer),
        *_large_groups(judgement),
        *_words_without_pairs(accepted, params),
    ]
    for warning in doubts:
        logger.warning("warning: %s", warning)
    general, evaluated = _general_texts(accepted["retention"], raw, train_adapter.retain)
    accepted["retention"] = evaluated
    _write_data_docs(judgement, site)
    with new_folder(out) as work:
        write_json(work / "base.json", identity.as_json())
        _write_accepted(work, accepted, params)
        _write_parquet(pd.DataFrame({"text": general}), work / "general_texts.parquet")
        _rejected_rows(judgement.refusals).to_csv(work / REJECTED_ROWS, index=False)
        _moved_rows(accepted, params).to_csv(work / JOINED_ROWS, index=False)
        write_benchmarks(work / "benchmarks", benchmarks)
        write_json(work / "report.json", _report(accepted, judgement, doubts, params, benchmarks))


def _read_benchmarks(raw: Path, params: EvaluateModelParams) -> tuple[list[Benchmark], list[Refusal]]:
    """The benchmarks that can be used, and why the others cannot."""
    found, unusable = [], []
    for entry in params.benchmarks:
        try:
            found.append(read_beir(raw / entry.folder, entry.name))
        except VocabgraftError as error:
            unusable.append(Refusal(entry.folder, None, "", "", str(error), str(error), entry.name))
    return found, unusable


def _refuse_or_quarantine(
    refusals: list[Refusal], judgement: Judgement, params: ValidateDataParams, site: Path
) -> None:
    shutil.rmtree(site, ignore_errors=True)
    if not refusals:
        return
    site.mkdir(parents=True)
    rows = _rejected_rows(refusals)
    # Beside the Data Docs too, because a failure leaves no output and its message shows only the first rows.
    rows.to_csv(site / REJECTED_ROWS, index=False)
    fatal = [refusal for refusal in refusals if refusal.row is None]
    if params.on_invalid == "fail" or fatal:
        raise ToldFirstError(_explain(refusals, params, site), lambda: _show_refused(judgement, site))
    rejected = {(refusal.file, refusal.row) for refusal in refusals}
    made = {dataset.name for dataset in params.datasets if dataset.source}
    read = [table for name, table in judgement.tables.items() if name not in made]
    total = len(rejected) + sum(len(table.accepted) + len(table.repeated) for table in read)
    if (share := len(rejected) / total) > params.max_rejected_fraction:
        message = (
            f"{len(rejected)} rows ({share:.1%}) would be quarantined; allowed: {params.max_rejected_fraction:.1%} "
            f"(validate_data.max_rejected_fraction). The first: {_line(refusals[0])}"
        )
        raise ToldFirstError(message, lambda: _show_refused(judgement, site))
    logger.warning("warning: %d rows quarantined, %.1f %% of all", len(rejected), 100 * share)


def _explain(refusals: Sequence[Refusal], params: ValidateDataParams, site: Path) -> str:
    """All problems, with a few rows of each kind; problems that only follow from another one are left out."""
    told = [refusal for refusal in refusals if not refusal.follows]
    whole = [refusal for refusal in told if refusal.row is None]
    if len(told) == len(whole) == 1 and whole[0].file in whole[0].reason:
        return whole[0].reason
    lines = []
    for refusal, more in told_first(told, SHOWN_ROWS):
        lines += [f"  {_line(refusal)}", *([f"    and {more} more of this kind"] if more else [])]
    shown = "\n".join(lines)
    # A quarantine removes rows, which does not help if a whole file is wrong.
    is_row_fault = params.on_invalid == "fail" and not whole
    remedy = "Correct them, or set validate_data.on_invalid to quarantine" if is_row_fault else "Correct them"
    count = f"{len(told)} problem{'s' if len(told) > 1 else ''} in the raw data"
    return f"{count}:\n{shown}\n{remedy}; all are in {site / REJECTED_ROWS}"


def _line(refusal: Refusal) -> str:
    where = refusal.file if refusal.row is None else f"{refusal.file} row {refusal.row}"
    if refusal.column:
        return f"{where}, {refusal.column} {refusal.value!r}: {refusal.reason}"
    # The reason for a whole file may name the file already.
    return refusal.reason if refusal.row is None and refusal.file in refusal.reason else f"{where}: {refusal.reason}"


def _rejected_rows(refusals: Sequence[Refusal]) -> pd.DataFrame:
    names = ["file", "row", "column", "value", "reason"]
    # People open this file in a spreadsheet.
    cells = [[spreadsheet_cell(text) for text in (r.file, r.column, r.value, r.reason)] for r in refusals]
    rows = [(file, "" if r.row is None else r.row, *rest) for r, (file, *rest) in zip(refusals, cells, strict=True)]
    return pd.DataFrame(rows, columns=names)


def _show_refused(judgement: Judgement, site: Path) -> None:
    """Write Data Docs if a rule refused rows; a file that cannot be read is not in them."""
    if any(table.refusals for table in judgement.tables.values()):
        _write_data_docs(judgement, site)
        warn(f"Data Docs: {site}/index.html")


def _write_data_docs(judgement: Judgement, site: Path) -> None:
    """Write Data Docs. Great Expectations is imported only here, because that takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tasks.support.expectations import write_data_docs

    tables: list[JudgedTable] = [table for table in judgement.tables.values() if len(table.frame)]
    if tables:
        write_data_docs(tables, site)


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
    (work / "datasets").mkdir()
    for dataset in params.datasets:
        frame = _with_numbers(accepted[dataset.name], dataset)
        kept = set(COLUMNS[dataset.format]) | set(OPTIONAL_COLUMNS[dataset.format])
        columns = [column for column in frame.columns if column in kept]
        (work / "datasets" / dataset.name).mkdir()
        for split in SPLITS:
            _write_parquet(_only(frame, split)[columns], work / "datasets" / dataset.name / f"{split}.parquet")
        if _only(frame, "train").empty:
            raise VocabgraftError(f"dataset {dataset.name} has no training row left; add rows or lower held_out")
        _require_classes(_only(frame, "train"), dataset)
        template = {"template": dataset.template} if dataset.format == "triples" else {}
        index.append({"name": dataset.name, "format": dataset.format} | template)
    write_json(work / "datasets" / "index.json", index)


def _general_texts(retention: pd.DataFrame, raw: Path, params: RetainParams | None) -> tuple[list[str], pd.DataFrame]:
    """The general texts whose embeddings training retains, and the retention pairs left for evaluation."""
    if params is None:
        return [], retention
    if params.texts is not None:
        known = {*retention["sentence1"], *retention["sentence2"]}
        lines = list(dict.fromkeys(read_lines(raw / params.texts)["text"]))
        general = [text for text in lines if text not in known]
        logger.info(
            "retain: %d general texts are trained on; %d are left out, because they are in the retention pairs",
            len(general),
            len(lines) - len(general),
        )
        return general, retention
    groups = group_rows([None] * len(retention), list(zip(retention["sentence1"], retention["sentence2"], strict=True)))
    trained = np.array([split_of(name, 0, SHARE_EVALUATED) == "train" for name in groups.names], dtype=bool)
    rows, left = retention[trained], retention[~trained]
    logger.info("retain: %d retention pairs are trained on, %d are evaluated", len(rows), len(left))
    return list(dict.fromkeys([*rows["sentence1"], *rows["sentence2"]])), left


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
    # Explicit types, because those of an empty split cannot be inferred from its rows.
    types = {"uses": pa.int64(), "embedding": pa.list_(pa.float32())}
    types |= dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(LABELS, pa.int64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in frame.columns])
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), path)


def _doubts(vocabulary: pd.DataFrame, retention: pd.DataFrame, base: "Tokenizer") -> list[str]:
    found = [
        _too_many(vocabulary, base.get_vocab_size()),
        _rare(vocabulary),
        _inside_another(vocabulary),
        _common(vocabulary, [*retention["sentence1"], *retention["sentence2"]], base),
    ]
    return [warning for warning in found if warning]


def _too_many(vocabulary: pd.DataFrame, base_size: int) -> str | None:
    share = len(vocabulary) / base_size
    if share <= LARGE_VOCABULARY:
        return None
    return f"{len(vocabulary)} new tokens are {share:.1%} of the base's vocabulary; they may need much more text"


def _rare(vocabulary: pd.DataFrame) -> str | None:
    rare = _rare_words(vocabulary)
    if not rare:
        return None
    shown = _shown([f"{word} in {count}" for word, count in rare.items()])
    return (
        f"{len(rare)} new tokens are in fewer than {RARE_USES} training texts ({shown}); their rows are also "
        "initialized from templates and descriptions and are less exact; report.json lists all"
    )


def _words_without_pairs(accepted: dict[str, pd.DataFrame], params: ValidateDataParams) -> list[str]:
    """Warnings about words without a pair in a dataset made from descriptions, with the reason."""
    tokens = [token for token in new_tokens(accepted["vocabulary"]) if token.kind != "special"]
    undescribed = [token.text for token in tokens if not is_described(token)]
    told = []
    for dataset in params.datasets:
        if dataset.source:
            paired = {*undescribed, *accepted[dataset.name]["word"]}
            reasons = {
                "have no description of their own": undescribed,
                "have a description that another dataset holds out": [t.text for t in tokens if t.text not in paired],
            }
            told += [
                f"dataset {dataset.name}: {len(words)} of {len(tokens)} words and symbols {reason} ({_shown(words)}), "
                "so they get no pair"
                for reason, words in reasons.items()
                if words
            ]
    return told


def _rare_words(vocabulary: pd.DataFrame) -> dict[str, int]:
    """The rare new tokens and their number of texts, the rarest first."""
    rows = vocabulary[vocabulary["uses"] < RARE_USES]
    found = ((str(token), int(uses)) for token, uses in zip(rows["token"], rows["uses"], strict=True))
    return dict(sorted(found, key=lambda entry: (entry[1], entry[0])))


def _inside_another(vocabulary: pd.DataFrame) -> str | None:
    names = dict(zip(vocabulary["normal"], vocabulary["token"], strict=True))
    inside = inside_others(list(names))
    if not inside:
        return None
    shown = _shown([f"{names[part]} in {names[whole]}" for part, whole in inside.items()])
    return (
        f"{len(inside)} new tokens are part of another ({shown}); each is matched separately, and if both begin at "
        "the same character only the longer one is tried"
    )


def _common(vocabulary: pd.DataFrame, sentences: list[str], base: "Tokenizer") -> str | None:
    """A warning about words that are common in general text; the retention sentences are the sample of it.

    Frequent words of the language are one token in any base and are refused. Other words can still be common in the
    user's general text: each of them changes the embedding of every text that contains it.
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
        "retention pairs); each changes the embeddings of all those texts, so remove words that the base reads well"
    )


def _large_groups(judgement: Judgement) -> list[str]:
    return [
        _large_group(name, group, len(judgement.tables[name].accepted))
        for name, groups in judgement.large_groups.items()
        for group in groups
    ]


def _large_group(name: str, group: LargeGroup, rows: int) -> str:
    told = f"dataset {name}: {group.rows} of {rows} rows form one group, because they share texts"
    if group.hubs:
        told += f"; {len(group.hubs)} texts that most of them share no longer join rows ({_shown(list(group.hubs))})"
        if group.largest <= max(NEVER_CUT, LARGEST_SHARE * rows):
            return told
    return f"{told}; {group.largest} rows stay one group in one split (most have {shorten(group.largest_key)!r})"


def _moved_rows(accepted: dict[str, pd.DataFrame], params: ValidateDataParams) -> pd.DataFrame:
    """Rows whose split differs from that of their own group or first text, because they share a text with others."""
    moved = []
    for dataset in params.datasets:
        share, first = dataset.held_out, COLUMNS[dataset.format][0]
        for row in accepted[dataset.name].to_dict("records"):
            own = row.get("group") if isinstance(row.get("group"), str) else row[first]
            alone = split_of(own, share.validation, share.test)
            if isinstance(row["joined"], str) and alone != row["split"]:
                file, own, joined = map(spreadsheet_cell, (row["file"], own, row["joined"]))
                moved.append((dataset.name, file, row["row"], own, joined, alone, row["split"]))
    names = ["dataset", "file", "row", "own_group", "joined_group", "split_alone", "split"]
    return pd.DataFrame(moved, columns=names)


def _shown(entries: list[str]) -> str:
    return ", ".join(entries[:SHOWN_WORDS]) + (", ..." if len(entries) > SHOWN_WORDS else "")


def _report(
    accepted: dict[str, pd.DataFrame],
    judgement: Judgement,
    doubts: list[str],
    params: ValidateDataParams,
    benchmarks: Sequence[Benchmark],
) -> dict[str, Any]:
    new = _new(accepted["vocabulary"])
    kinds = new["kind"].value_counts()
    splits = {
        dataset.name: {split: len(_only(accepted[dataset.name], split)) for split in SPLITS}
        for dataset in params.datasets
    }
    return {
        "new_tokens": {kind: int(kinds[kind]) for kind in sorted(kinds.index)},
        "rare_tokens": _rare_words(new),
        "kept_tokens": len(accepted["vocabulary"]) - len(new),
        "contexts": len(accepted["contexts"]),
        "retention": len(accepted["retention"]),
        "datasets": splits,
        "moved_by_shared_texts": {
            name: int(count) for name, count in sorted(_moved_rows(accepted, params)["dataset"].value_counts().items())
        },
        "rejected": len({(refusal.file, refusal.row) for refusal in judgement.refusals}),
        "repeated": judgement.repeated,
        "benchmarks": {
            found.name: {
                "documents": len(found.documents),
                "queries": len(found.queries),
                "left_out": found.left_out,
            }
            for found in benchmarks
        },
        "warnings": doubts,
    }


if __name__ == "__main__":
    raise SystemExit(run_stage(validate_data))
