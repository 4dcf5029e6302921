"""When a model becomes champion: every gate with its figure and its limit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.registry.champion import Benefit, Rival
from vocabgraft.config.stages import GateParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import own_module_types
from vocabgraft.storage.artifacts import read_json


@dataclass(frozen=True)
class Gate:
    """One condition of promotion: the figure seen and what it must be."""

    name: str
    figure: float | None
    limit: str
    holds: bool


def gates_of(
    figures: dict[str, Any], passed: bool, speed: dict[str, Any], rival: Rival | None, params: GateParams
) -> list[Gate]:
    """Every gate with its figure: consistency, gain over the base, retention, cost, gain over the champion.

    Args:
        figures: metrics.json of `evaluate_model`.
        passed: whether every check of consistency did.
        speed: what `evaluate_model` timed of this model; empty where it timed another.
        rival: the champion on the same items; None where there is none to compare with.
        params: the limits.
    """
    base, merged = (figure_at(figures[model], params.benefit) for model in ("base", "merged"))
    gain = round(merged - base, 4)
    gates = [
        Gate("consistency", None, "every check passes", passed),
        Gate("gain over the base", gain, f"more than {params.min_gain:g}", gain > params.min_gain),
        _retention_gate(figures, params.max_retention_drop),
        _cost_gate(figures, speed, params.max_cost_ratio),
    ]
    return gates if rival is None else [*gates, rival_gate(rival)]


def own_module_gates(merged: Path, params: GateParams) -> list[Gate]:
    """A gate where the model needs own module classes: a service that lacks them cannot load it."""
    if not (names := own_module_types(merged)):
        return []
    limit = f"no own classes; it needs {', '.join(names)}; register_model.gates.allow_own_modules waives this"
    return [Gate("own modules", float(len(names)), limit, params.allow_own_modules)]


def figure_at(figures: dict[str, Any], path: str) -> float:
    """The figure DATASET.SUBSET.METRIC of one model.

    Raises:
        VocabgraftError: when it was not measured; what was is named.
    """
    wanted = benefit_of(path)
    try:
        return float(figures[wanted.dataset][wanted.subset][wanted.metric])
    except KeyError as error:
        subsets = figures.get(wanted.dataset, {})
        measured = [f"{wanted.dataset}.{subset}.{metric}" for subset in subsets for metric in subsets[subset]]
        raise VocabgraftError(
            f"register_model.gates.benefit is {path!r}, which evaluate_model did not measure; "
            f"it has {', '.join(sorted(measured)) or 'nothing of this dataset'}"
        ) from error


def benefit_of(path: str) -> Benefit:
    """`DATASET.SUBSET.METRIC` in its parts."""
    return Benefit(*path.split("."))


def speed_of(path: Path, digest: str) -> dict[str, Any]:
    """What `evaluate_model` timed in its last run, where that was of this model."""
    speed: dict[str, Any] = read_json(path) if path.is_file() else {}
    return speed if speed.get("merged_digest") == digest else {}


def rival_gate(rival: Rival) -> Gate:
    """Whether a model is not worse than the champion beyond what chance explains."""
    name = f"gain over the champion, version {rival.version}"
    if rival.gain is None:
        return Gate(name, None, rival.how, False)
    interval = f"{rival.gain.low:+.2f} to {rival.gain.high:+.2f}"
    # Worse is what the whole interval says, not the point in its middle.
    limit = f"a 95 % interval that is not all under 0; it is {interval}, {rival.how}"
    return Gate(name, rival.gain.gain, limit, rival.gain.high >= 0)


def _retention_gate(figures: dict[str, Any], most: float) -> Gate:
    measured = [figures[model]["retention"].get("no_new_word", {}).get("spearman") for model in ("base", "merged")]
    if None in measured:
        return Gate("retention drop", None, "no correlation on retention pairs without a new word to measure it", False)
    drop = round((measured[0] - measured[1]) / 100, 6)
    return Gate("retention drop", drop, f"at most {most:g}", drop <= most)


def _cost_gate(figures: dict[str, Any], speed: dict[str, Any], most: float) -> Gate:
    """Seconds a text over the base's; by the tokens of a text where this model was not timed on this machine."""
    if "ratio" in speed:
        cost, how = 1 / speed["ratio"], "as timed"
    else:
        cost = figures["merged"]["tokens_per_text"] / figures["base"]["tokens_per_text"]
        how = "by tokens per text, since this model was not timed here"
    cost = round(cost, 4)
    return Gate("cost ratio", cost, f"at most {most:g}, {how}", cost <= most)
