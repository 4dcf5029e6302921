"""The section with search results before and after training."""

from collections.abc import Mapping
from typing import Any

from flows.reporting.sections import Gathered, gate_settings

# Number of entries of each kind that are open, so that a reader sees results without a click.
OPEN = 2
KINDS = {"losses": "Found worse", "gains": "Found better", "sample": "A random sample"}
MODELS = {"base": "Base", "merged": "Trained"}


def searches(gathered: Gathered) -> dict[str, Any]:
    """The held-out searches with the largest losses and gains, and a random sample."""
    found = gathered.content("searches")
    if found is None:
        return {"absent": gathered.absences("searches")}
    deciding = (gate_settings(gathered).get("benefit") or "").partition(".")[0]
    ordered = sorted(found["datasets"], key=lambda entry: entry["dataset"] != deciding)
    return {"absent": [], "datasets": [_dataset(entry) for entry in ordered], "models": MODELS}


def _dataset(entry: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [
        {"name": name, "title": title, "searches": [_search(search) for search in entry[name]]}
        | {"open": 0 if name == "sample" else OPEN, "of": {"losses": entry["worsened"], "gains": entry["improved"]}}
        for name, title in KINDS.items()
    ]
    same = entry["queries"] - entry["improved"] - entry["worsened"]
    counts = {name: entry[name] for name in ("dataset", "queries", "documents", "improved", "worsened")}
    return {**counts, "same": same, "kinds": [kind for kind in kinds if kind["searches"]]}


def _search(entry: Mapping[str, Any]) -> dict[str, Any]:
    before, after = entry["rank"]["base"], entry["rank"]["merged"]
    state = "better" if after < before else "worse" if after > before else "same"
    # If the right document is not among the five, the card shows it separately.
    shown = [kind == "right" for _, _, kind in entry["nearest"]["merged"]]
    return {**entry, "before": before, "after": after, "state": state, "is_found": any(shown)}
