"""Stage check_consistency: every check with its figure and limit."""

import logging
from pathlib import Path

from tasks._base import find_base
from tasks._stage import run_stage
from vocabgraft.accepted_data import read_contexts, read_datasets, read_retention
from vocabgraft.artifacts import new_folder, read_json, require_artifact, write_json
from vocabgraft.consistency import check_all, gather_evidence
from vocabgraft.errors import VocabgraftError
from vocabgraft.params import CheckConsistencyParams
from vocabgraft.tokenizer import read_tokens

logger = logging.getLogger(__name__)


def check_consistency(
    base_identity: Path,
    tokens: Path,
    resized: Path,
    adapter: Path,
    merged: Path,
    data: Path,
    out: Path,
    params: CheckConsistencyParams,
) -> None:
    """Check what was made; write the figures whether or not they hold.

    Raises:
        VocabgraftError: naming the checks that failed.
    """
    first, second, _ = read_retention(data / "retention.parquet")
    held_out = [text for entry in read_datasets(data / "datasets") for text in entry.texts("test")]
    evidence = gather_evidence(
        base=find_base(base_identity),
        resized=require_artifact(resized),
        adapter=require_artifact(adapter),
        merged=require_artifact(merged),
        tokens=read_tokens(tokens),
        method=read_json(require_artifact(adapter / "report.json"))["method"],
        texts=[*first, *second, *held_out, *read_contexts(data / "contexts.parquet")],
        params=params,
    )
    checks = check_all(evidence)
    failed = [check for check in checks if check.verdict == "failed"]
    for check in checks:
        logger.info("%-20s %-15s %10.3g (%s)", check.name, check.verdict, check.figure, check.limit)
    with new_folder(out) as work:
        write_json(work / "checks.json", {"passed": not failed, "checks": [check.as_json() for check in checks]})
    if failed:
        lines = [f"  {check.name}: {check.figure:g}, allowed {check.limit}; {check.protects}" for check in failed]
        raise VocabgraftError(
            f"{len(failed)} of {len(checks)} checks failed, so the model is not registered:\n" + "\n".join(lines)
        )


if __name__ == "__main__":
    raise SystemExit(run_stage(check_consistency))
