"""The key metric of each stage, for the console."""

from collections.abc import Callable, Mapping
from pathlib import Path

from flows.engine.dag import Stage
from flows.engine.stage_outcome import StageResult
from vocabgraft.checks.result import describe_counts
from vocabgraft.config.params import PARAMS_FILE, load_params
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json

RECORD = Path("reports/registration.json")


def key_figure(stage: Stage | None, result: StageResult, root: Path) -> str:
    """The key metric of a stage that succeeded, in a few words; empty if it has none."""
    find = FIGURES.get(result.name)
    if stage is None or not stage.outs or find is None or not result.outcome.succeeded:
        return ""
    try:
        return find(root / stage.outs[0], root)
    except (VocabgraftError, OSError, KeyError, TypeError):
        # In another project's DAG, a stage with this name may have other outputs.
        return ""


def _validated(out: Path, root: Path) -> str:
    report = read_json(out / "report.json")
    rows = sum(count for splits in report["datasets"].values() for count in splits.values())
    return f"{sum(report['new_tokens'].values()):,} new tokens, {rows:,} rows"


def _extended(out: Path, root: Path) -> str:
    report = read_json(out / "report.json")
    return f"{report['tokens_per_text_before']:.2f} to {report['tokens_per_text_after']:.2f} tokens per text"


def _resized(out: Path, root: Path) -> str:
    distilled = read_json(out / "report.json").get("distillation") or {}
    found = (distilled.get("after") or {}).get("all")
    return f"fidelity {found['mean']:.3f}" if found else ""


def _trained(out: Path, root: Path) -> str:
    loss = read_json(out / "report.json")["final_loss"]
    return "" if loss is None else f"loss {loss:.3f}"


def _checked(out: Path, root: Path) -> str:
    return describe_counts(read_json(out / "checks.json")["counts"])


def _evaluated(out: Path, root: Path) -> str:
    benefit = load_params(root / PARAMS_FILE).register_model.gates.benefit
    items = read_json(out / "comparison.json")["items"]
    for item in items:
        if f"{item['dataset']}.{item['subset']}.{item['metric']}" == benefit:
            return f"{benefit} {item['gain']:+.2f} ({item['low']:+.2f} to {item['high']:+.2f})"
    return ""


def _registered(out: Path, root: Path) -> str:
    record = read_json(root / RECORD)
    if record["content_digest"] != read_json(out / "registration.json")["content_digest"]:
        return ""
    return f"version {record['version']}, {'champion' if record['champion'] else 'challenger'}"


FIGURES: Mapping[str, Callable[[Path, Path], str]] = {
    "validate_data": _validated,
    "extend_tokenizer": _extended,
    "resize_base": _resized,
    "train_adapter": _trained,
    "check_consistency": _checked,
    "evaluate_model": _evaluated,
    "register_model": _registered,
}
