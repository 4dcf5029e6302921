"""Stage train_adapter: a PEFT adapter over the resized base."""

from pathlib import Path

from tasks._stage import run_stage
from vocabgraft.accepted_data import read_datasets
from vocabgraft.artifacts import new_folder, require_artifact, write_json
from vocabgraft.base_model import load_model
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder import save_model
from vocabgraft.params import TrainAdapterParams, ValidateDataParams
from vocabgraft.tokenizer import read_tokens
from vocabgraft.training import train_adapter as train
from vocabgraft.training_data import ids_without_text


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
    new_tokens, data = read_tokens(tokens), read_datasets(datasets)
    new_ids = [token.id for token in new_tokens]
    untrained = ids_without_text(model.tokenizer, data, new_ids) if params.method != "lora" else []
    _require_something_to_train(len(untrained), len(new_ids))
    result = train(model, data, new_ids, params, seed, validate_data.datasets)
    with new_folder(out) as work:
        save_model(model, work, adapter_base=resized.as_posix())
        write_json(work / "curve.json", _curve(result.curve))
        write_json(
            work / "report.json",
            {
                "method": params.method,
                "trainable_parameters": result.trainable_parameters,
                "examples": result.examples,
                "tokens_without_training_text": [token.text for token in new_tokens if token.id in untrained],
                "final_loss": [entry["loss"] for entry in result.curve if "loss" in entry][-1],
                "log": result.curve,
            },
        )


def _require_something_to_train(untrained: int, tokens: int) -> None:
    if tokens and untrained == tokens:
        raise VocabgraftError(
            f"none of the {tokens} new tokens is in a training text, so there is no row to train; add examples that "
            "use them to a dataset (contexts only give rows their start), or set train_adapter.method to lora"
        )


def _curve(log: list[dict[str, float]]) -> list[dict[str, float]]:
    keys = ("phase", "step", "epoch", "loss", "learning_rate")
    return [{key: entry[key] for key in keys if key in entry} for entry in log if "loss" in entry]


if __name__ == "__main__":
    raise SystemExit(run_stage(train_adapter))
