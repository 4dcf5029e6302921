"""How long each stage took in its last run here: `--plan` shows it, and the table of a run says what was saved."""

import json
from pathlib import Path

from vocabgraft.storage.artifacts import write_json

HISTORY = Path(".dvc/tmp/build_model.seconds.json")


def last_seconds(root: Path) -> dict[str, float]:
    """The seconds of each stage's last completed run in this workspace; what never ran here is left out."""
    try:
        content = json.loads((root / HISTORY).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        # It is only a forecast: a damaged one, as a full disk leaves it, is ignored.
        return {}


def keep_seconds(root: Path, seconds: dict[str, float]) -> None:
    """Keep how long stages took, beside what is known of the others."""
    write_json(root / HISTORY, last_seconds(root) | {name: round(value, 2) for name, value in seconds.items()})
