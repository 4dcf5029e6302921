"""Stage check_consistency: runs every check, with its value and limit."""

import logging
import time
from itertools import chain
from pathlib import Path

from tasks.support.models import find_base
from tasks.support.stage import run_stage
from vocabgraft.checks.context import Evidence, Folders, gather_evidence
from vocabgraft.checks.result import count_verdicts, describe_counts, explain_failures
from vocabgraft.checks.runner import CHECKS, Check, CheckEntry, run_check
from vocabgraft.config.stages import BaseParams, CheckConsistencyParams, ValidateDataParams
from vocabgraft.data.accepted import read_contexts, read_datasets, read_retention, training_texts
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import new_folder, read_json, require_artifact, write_json
from vocabgraft.tokens.tokenizer import read_tokens
from vocabgraft.triples.relation_ranks import held_out_triples

logger = logging.getLogger(__name__)


def check_consistency(
    tokenizer: Path,
    tokens: Path,
    resized: Path,
    adapter: Path,
    merged: Path,
    data: Path,
    out: Path,
    params: CheckConsistencyParams,
    base: BaseParams,
    validate_data: ValidateDataParams,
) -> None:
    """Run every check on the models of this run; write `checks.json` whether or not the checks pass.

    Raises:
        VocabgraftError: if a check fails; lists each with its value, limit, tokens, setting and remedy.
    """
    first, second, _ = read_retention(data / "retention.parquet")
    datasets, settings = read_datasets(data / "datasets"), {entry.name: entry for entry in validate_data.datasets}
    contexts = read_contexts(data / "contexts.parquet")
    held_out = [text for entry in datasets for text in entry.texts("test")]
    folders = Folders(
        find_base(data / "base.json", base.trust_remote_code),
        *(require_artifact(path) for path in (tokenizer, resized, adapter, merged)),
    )
    evidence = gather_evidence(
        folders=folders,
        tokens=read_tokens(tokens),
        method=read_json(require_artifact(adapter / "report.json"))["method"],
        texts=[*first, *second, *held_out, *contexts],
        training_texts=training_texts(datasets, contexts),
        triples=[held_out_triples(entry, settings[entry.name]) for entry in datasets if entry.format == "triples"],
        params=params,
        trust_remote_code=base.trust_remote_code,
        training_rows=lambda: chain.from_iterable(entry.row_blocks("train") for entry in datasets),
    )
    # Started early, because its imports take as long as most of the checks.
    evidence.fresh.start()
    checks = [_logged(entry, evidence) for entry in CHECKS]
    counts = count_verdicts(check.verdict for check in checks)
    failed = [check for check in checks if check.verdict == "failed"]
    content = {"passed": not failed, "counts": counts, "checks": [check.as_json() for check in checks]}
    with new_folder(out) as work:
        write_json(work / "checks.json", content)
        write_json(work / "tokens.json", {check.name: check.by_token for check in checks if check.by_token})
    if failed:
        names = ", ".join(check.name for check in failed)
        raise VocabgraftError(
            f"{describe_counts(counts)}: {names}. The model is not registered.\n"
            + explain_failures([check.as_json() for check in failed])
        )
    logger.info("%s", describe_counts(counts))


def _logged(entry: CheckEntry, evidence: Evidence) -> Check:
    started = time.process_time()
    check = run_check(entry, evidence)
    logger.info("%-24s %-16s %s  %.1f s", check.name, check.verdict, _measured(check), time.process_time() - started)
    for warning in check.warnings:
        logger.warning("%-24s %s", check.name, warning)
    return check


def _measured(check: Check) -> str:
    """The value and its limit, or why there is no value."""
    if check.figure is None or check.verdict == "too few to judge":
        return f"{'':>10} {check.reason}"
    noise = "" if check.noise is None else f"; the base: {check.noise:.3g}"
    return f"{_figure(check):>10} ({check.limit}{noise})"


def _figure(check: Check) -> str:
    return f"{check.figure:.3g}"


if __name__ == "__main__":
    raise SystemExit(run_stage(check_consistency))
