"""Stage merge_adapter: the adapter folded into the resized base, which then needs no PEFT."""

from pathlib import Path

from tasks._stage import run_stage
from vocabgraft.adapters import merged_model
from vocabgraft.artifacts import new_folder, require_artifact
from vocabgraft.model_folder import save_model


def merge_adapter(resized: Path, adapter: Path, out: Path) -> None:
    """Merge on the CPU, so that the result does not depend on where it is made."""
    model = merged_model(require_artifact(resized), require_artifact(adapter))
    with new_folder(out) as work:
        save_model(model, work)


if __name__ == "__main__":
    raise SystemExit(run_stage(merge_adapter))
