"""The section with the changes since the champion."""

from typing import Any

from flows.reporting.numbers import metric_name
from flows.reporting.sections import SUBSETS, Gathered

WORDS_SHOWN = 200


def changes(gathered: Gathered) -> dict[str, Any]:
    """Parameters, words, data rows and metrics that differ from the champion's."""
    if gathered.registration is None:
        return {"absent": ["No version was registered, so none is compared with the champion."]}
    if gathered.changed:
        return {"absent": ["The stages ran again after the version was registered."]}
    found = gathered.registration.get("changes")
    if found is None:
        return {"absent": ["There is no earlier champion to compare with."]}
    figures = [
        {**entry, "metric": metric_name(entry["metric"]), "subset": SUBSETS.get(entry["subset"], entry["subset"])}
        for entry in found["figures"]
    ]
    words = {kind: (listed[:WORDS_SHOWN], len(listed)) for kind, listed in found["words"].items()}
    return {"absent": [], **found, "words": words, "figures": figures}
