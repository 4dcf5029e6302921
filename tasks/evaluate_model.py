"""Stage evaluate_model: base, resized and merged on the same held-out texts."""

from pathlib import Path

from tasks._base import find_base
from tasks._stage import run_stage
from vocabgraft.accepted_data import read_datasets, read_retention
from vocabgraft.artifacts import new_folder, require_artifact, write_json
from vocabgraft.base_model import load_model, prompts_of
from vocabgraft.evaluation import evaluate
from vocabgraft.params import BaseParams, EvaluateModelParams
from vocabgraft.tokenizer import read_tokens


def evaluate_model(
    base_identity: Path,
    tokens: Path,
    resized: Path,
    merged: Path,
    datasets: Path,
    retention: Path,
    out: Path,
    params: EvaluateModelParams,
    base: BaseParams,
) -> None:
    """Measure what the new tokens bring and what they cost elsewhere."""
    base_model = load_model(find_base(base_identity))
    base_model.prompts = prompts_of(base_model.prompts, base.prompts)
    folders = {"resized": resized, "merged": merged}
    extended = {name: load_model(require_artifact(path), own_modules=True) for name, path in folders.items()}
    figures = evaluate(
        base_model,
        extended,
        read_datasets(datasets),
        read_retention(retention),
        read_tokens(tokens),
        params.batch_size,
        params.recall_at,
    )
    with new_folder(out) as work:
        write_json(work / "metrics.json", figures)


if __name__ == "__main__":
    raise SystemExit(run_stage(evaluate_model))
