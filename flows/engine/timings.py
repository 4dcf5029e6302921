"""How long each stage took when it last ran here: what `--plan` foretells, and what an unchanged stage saved."""

import json
from pathlib import Path

from vocabgraft.storage.atomic import replace_text

HISTORY = Path(".dvc/tmp/build_model.seconds.json")


def last_seconds(root: Path) -> dict[str, float]:
    """The seconds of each stage's last completed run in this workspace; what never ran here is left out."""
    try:
        content = json.loads((root / HISTORY).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        # It is only a forecast: a damaged one, as a full disk leaves it, is begun again.
        return {}


def keep_seconds(root: Path, seconds: dict[str, float]) -> None:
    """Keep how long stages took, beside what is known of the others."""
    path = root / HISTORY
    merged = last_seconds(root) | {name: round(value, 2) for name, value in seconds.items()}
    replace_text(path, json.dumps(merged, indent=1, sort_keys=True))
