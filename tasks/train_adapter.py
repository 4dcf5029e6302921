"""Stage train_adapter: a PEFT adapter over the resized base."""

from pathlib import Path

from tasks._stage import run_stage
from vocabgraft.accepted_data import read_datasets
from vocabgraft.artifacts import new_folder, require_artifact, write_json
from vocabgraft.base_model import load_model
from vocabgraft.model_folder import save_model
from vocabgraft.params import TrainAdapterParams, ValidateDataParams
from vocabgraft.tokenizer import read_tokens
from vocabgraft.training import train_adapter as train


def train_adapter(
    resized: Path,
    tokens: Path,
    datasets: Path,
    out: Path,
    params: TrainAdapterParams,
    seed: int,
    validate_data: ValidateDataParams,
) -> None:
    """Train, then save the adapter as a folder that stock sentence-transformers loads from the project's root."""
    model = load_model(require_artifact(resized), own_modules=True)
    new_ids = [token.id for token in read_tokens(tokens)]
    result = train(model, read_datasets(datasets), new_ids, params, seed, validate_data.datasets)
    with new_folder(out) as work:
        save_model(model, work, adapter_base=resized.as_posix())
        write_json(work / "curve.json", _curve(result.curve))
        write_json(
            work / "report.json",
            {
                "method": params.method,
                "trainable_parameters": result.trainable_parameters,
                "examples": result.examples,
                "final_loss": [entry["loss"] for entry in result.curve if "loss" in entry][-1],
                "log": result.curve,
            },
        )


def _curve(log: list[dict[str, float]]) -> list[dict[str, float]]:
    keys = ("phase", "step", "epoch", "loss", "learning_rate")
    return [{key: entry[key] for key in keys if key in entry} for entry in log if "loss" in entry]


if __name__ == "__main__":
    raise SystemExit(run_stage(train_adapter))
