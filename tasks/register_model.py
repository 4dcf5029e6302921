"""Stage register_model: the merged model in the MLflow registry, once for each content."""

import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import _git
from tasks._registry import (
    CHALLENGER,
    CHAMPION,
    DIGEST_TAG,
    PREVIOUS_CHAMPION,
    Registered,
    RunRecord,
    connect,
    find_by_alias,
    find_by_digest,
    log_and_register,
    set_alias,
    tag_version,
)
from tasks._stage import run_stage
from vocabgraft.artifacts import MANIFEST, digest_of, new_folder, read_json, require_artifact, write_json
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder import PACK_FOLDER
from vocabgraft.params import GateParams, RegisterModelParams, load_params

logger = logging.getLogger(__name__)

# MLflow's names allow none of these; an @ is replaced, and a mapping by patterns (of modules or parameters) kept whole.
UNNAMEABLE = re.compile(r"[^\w\-. /:@]")
RECORD = Path("reports/registration.json")
# Of evaluate_model, outside of what is tracked.
SPEED = Path("reports/speed.json")
BENEFIT_TAG, ITEMS_TAG = "benefit", "test_items_digest"


@dataclass(frozen=True)
class Gate:
    """One condition of promotion: the figure seen and what it must be."""

    name: str
    figure: float | None
    limit: str
    holds: bool


def register_model(
    merged: Path,
    adapter: Path,
    checks: Path,
    evaluation: Path,
    base_identity: Path,
    datasets: Path,
    out: Path,
    params: RegisterModelParams,
) -> None:
    """Register the model unless its content is registered already, then decide on its aliases."""
    digest = model_digest(merged)
    if os.environ.get("DVC_EXP_NAME"):
        logger.info("inside an experiment (%s): nothing is registered", os.environ["DVC_EXP_NAME"])
    else:
        figures = read_json(require_artifact(evaluation / "metrics.json"))
        tags = {DIGEST_TAG: digest, ITEMS_TAG: _items_digest(datasets), **_lineage(base_identity)}
        _register(params, merged, adapter, checks, evaluation, figures, tags)
    with new_folder(out) as work:
        write_json(work / "registration.json", {"name": params.name, DIGEST_TAG: digest})


def _items_digest(datasets: Path) -> str:
    """A digest of the examples alone: queries and documents come from all of their splits."""
    files = read_json(datasets.parent / MANIFEST)["files"]
    return digest_of({name: digest for name, digest in files.items() if name.startswith(f"{datasets.name}/")})


def model_digest(merged: Path) -> str:
    """The content digest of the merged model, as its manifest has it."""
    return str(read_json(require_artifact(merged / MANIFEST))["digest"])


def gates_of(
    figures: dict[str, Any], passed: bool, champion: Registered | None, items: str, params: GateParams
) -> list[Gate]:
    """Every gate with its figure: consistency, gain over base and champion, retention.

    The champion's recorded figure counts only where it was measured on the same items.
    """
    base, merged = (_figure(figures[model], params.benefit) for model in ("base", "merged"))
    gates = [
        Gate("consistency", None, "every check passes", passed),
        _gain_gate("gain over the base", merged - base, params.min_gain, strict=True),
        _retention_gate(figures, params.max_retention_drop),
    ]
    if champion is not None:
        comparable = champion.tags.get(ITEMS_TAG) == items and BENEFIT_TAG in champion.tags
        gain = merged - float(champion.tags[BENEFIT_TAG]) if comparable else None
        gates.append(
            _gain_gate(f"gain over the champion, version {champion.version}", gain, params.min_gain, strict=False)
        )
    return gates


def own_module_gates(merged: Path, params: GateParams) -> list[Gate]:
    """A gate where the model needs own module classes: a service that lacks them cannot load it."""
    from vocabgraft.base_model import own_module_types

    if not (names := own_module_types(merged)):
        return []
    limit = f"no own classes; it needs {', '.join(names)}; register_model.gates.allow_own_modules waives this"
    return [Gate("own modules", float(len(names)), limit, params.allow_own_modules)]


def _register(
    params: RegisterModelParams,
    merged: Path,
    adapter: Path,
    checks: Path,
    evaluation: Path,
    figures: dict[str, Any],
    tags: dict[str, str],
) -> None:
    client = connect()
    passed = bool(read_json(require_artifact(checks))["passed"])
    if not passed:
        raise VocabgraftError(f"{checks} says that a check failed, so the model is not registered")
    champion = find_by_alias(client, params.name, CHAMPION)
    registered = find_by_digest(client, params.name, tags[DIGEST_TAG])
    if registered is None:
        benefit = str(_benefit(figures, params))
        record = _record(figures, merged, adapter, checks, evaluation, {**tags, BENEFIT_TAG: benefit})
        registered = log_and_register(client, params.name, _load(merged), record)
        logger.info("registered %s version %d", params.name, registered.version)
    else:
        logger.info("%s version %d has this content already", params.name, registered.version)
    set_alias(client, params.name, CHALLENGER, registered.version)
    is_champion = champion is not None and champion.version == registered.version
    # Grown on the champion, the base of every figure is the champion itself, on the same items.
    is_base = champion is not None and tags["base"] == f"models:/{params.name}/{champion.version}"
    compared = None if is_champion or is_base else champion
    gates = gates_of(figures, passed, compared, tags[ITEMS_TAG], params.gates)
    gates += own_module_gates(merged, params.gates)
    promoted = all(gate.holds for gate in gates)
    if promoted and not is_champion:
        if champion is not None:
            set_alias(client, params.name, PREVIOUS_CHAMPION, champion.version)
        set_alias(client, params.name, CHAMPION, registered.version)
    decision = [asdict(gate) for gate in gates]
    tag_version(client, params.name, registered.version, {"gates": json.dumps(decision)})
    for gate in gates:
        logger.info("gate %-32s %-9s %s (%s)", gate.name, "holds" if gate.holds else "NOT MET", gate.figure, gate.limit)
    if not promoted:
        logger.info("not promoted: %s stays challenger", f"{params.name} version {registered.version}")
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        RECORD,
        {
            "name": params.name,
            "version": registered.version,
            "champion": promoted or is_champion,
            DIGEST_TAG: tags[DIGEST_TAG],
            "gates": decision,
        },
    )


def _load(merged: Path) -> Any:
    from vocabgraft.base_model import load_model

    return load_model(require_artifact(merged), device="cpu", own_modules=True)


def _record(
    figures: dict[str, Any], merged: Path, adapter: Path, checks: Path, evaluation: Path, tags: dict[str, str]
) -> RunRecord:
    scalars = {
        **_flat(figures),
        **_flat({"retention": read_json(evaluation / "retention.json")}),
        **_flat({"comparison": _by_figure(read_json(evaluation / "comparison.json")["items"])}),
        **_flat({"speed": _speed_of(tags[DIGEST_TAG])}),
    }
    return RunRecord(
        params=_flat(load_params().model_dump(mode="json")),
        metrics={key: float(value) for key, value in scalars.items() if isinstance(value, int | float)},
        curve=read_json(adapter / "curve.json"),
        artifacts=[_without_a_model(adapter), checks, evaluation, *_pack_of(merged)],
        tags=tags,
    )


def _without_a_model(adapter: Path) -> Path:
    """The adapter; its report alone where the folder is the whole model (`method: full`), which is logged itself."""
    return adapter if not (adapter / "model.safetensors").is_file() else adapter / "report.json"


def _pack_of(merged: Path) -> list[Path]:
    """The vocabulary's pack, where the run has one."""
    return [merged / PACK_FOLDER] if (merged / PACK_FOLDER).is_dir() else []


def _by_figure(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The gains with their intervals, by dataset, subset and metric."""
    kept = ("gain", "low", "high", "p_value")
    return {
        f"{item['dataset']}.{item['subset']}.{item['metric']}".replace("@", "_at_"): {name: item[name] for name in kept}
        for item in items
    }


def _speed_of(digest: str) -> dict[str, Any]:
    """What evaluate_model timed in its last run, where that was of this model."""
    speed = read_json(SPEED) if SPEED.is_file() else {}
    return speed if speed.get("merged_digest") == digest else {}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or any(UNNAMEABLE.search(str(key)) for key in value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}".lstrip(".").replace("@", "_at_"))
    return flat


def _figure(figures: dict[str, Any], path: str) -> float:
    dataset, subset, metric = path.split(".")
    try:
        return float(figures[dataset][subset][metric])
    except KeyError as error:
        raise VocabgraftError(
            f"register_model.gates.benefit is {path!r}, which evaluate_model did not measure; "
            f"it has {', '.join(sorted(_flat({dataset: figures[dataset]})))}"
        ) from error


def _benefit(figures: dict[str, Any], params: RegisterModelParams) -> float:
    return _figure(figures["merged"], params.gates.benefit)


def _retention_gate(figures: dict[str, Any], most: float) -> Gate:
    measured = [figures[model]["retention"].get("no_new_word", {}).get("spearman") for model in ("base", "merged")]
    if None in measured:
        return Gate("retention drop", None, "no correlation on retention pairs without a new word to measure it", False)
    drop = round((measured[0] - measured[1]) / 100, 6)
    return Gate("retention drop", drop, f"at most {most:g}", drop <= most)


def _gain_gate(name: str, gain: float | None, least: float, strict: bool) -> Gate:
    if gain is None:
        return Gate(name, None, "measured on other items, so not comparable", False)
    gain = round(gain, 4)
    holds = gain > least if strict else gain >= least
    return Gate(name, gain, f"{'more than' if strict else 'at least'} {least:g}", holds)


def _lineage(base_identity: Path) -> dict[str, str]:
    base = read_json(require_artifact(base_identity))
    return {
        "base": base["model"],
        "base_sha256": base["sha256"],
        "git_commit": _git.commit() or "none",
        "git_dirty": str(_git.has_changes()).lower(),
    }


if __name__ == "__main__":
    raise SystemExit(run_stage(register_model))
