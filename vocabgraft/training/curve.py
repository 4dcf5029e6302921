"""The training curve: losses by step, from the trainer's log."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def loss_lines(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The losses of all phases; steps are counted on from phase to phase.

    Returns:
        `train`, with `steps` and `losses`; `validation`, the same for each validation loss by its name, without the
        mean over a single dataset; `phases`, each with its number and the steps before it.
    """
    train: dict[str, list[float]] = {"steps": [], "losses": []}
    validation: dict[str, dict[str, list[float]]] = {}
    before, phases = 0, []
    for phase in sorted({entry.get("phase", 1) for entry in log}):
        entries = [entry for entry in log if entry.get("phase", 1) == phase]
        phases.append([phase, before])
        for entry in entries:
            for name in (name for name in entry if name == "loss" or re.fullmatch("eval_.*loss", name)):
                line = train if name == "loss" else validation.setdefault(name, {"steps": [], "losses": []})
                line["steps"].append(before + entry["step"])
                line["losses"].append(entry[name])
        before += max(entry["step"] for entry in entries)
    if len(validation) == 2:
        validation.pop("eval_loss", None)
    return {"train": train, "validation": dict(sorted(validation.items())), "phases": phases}
