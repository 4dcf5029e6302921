"""Stage train_control: trains LoRA without new tokens on the same data, if params.yaml asks for it."""

from pathlib import Path

from tasks.support.stage import run_stage
from vocabgraft.config.stages import BaseParams, EvaluateModelParams, ValidateDataParams
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.storage.artifacts import new_folder, write_json


def train_control(
    base_identity: Path,
    tokens: Path,
    datasets: Path,
    out: Path,
    evaluate_model: EvaluateModelParams,
    train_adapter: TrainAdapterParams,
    base: BaseParams,
    seed: int,
    validate_data: ValidateDataParams,
) -> None:
    """Train LoRA over the unchanged base; without `control`, only record that nothing was trained."""
    if not evaluate_model.control:
        with new_folder(out) as work:
            write_json(work / "report.json", {"trained": False})
        return
    # Imported only for a training, because these modules import torch.
    from tasks.support.models import find_base
    from vocabgraft.data.accepted import read_datasets
    from vocabgraft.models.base import load_model, prompts_of
    from vocabgraft.models.saving import save_model
    from vocabgraft.storage.artifacts import read_json
    from vocabgraft.tokens.new_token import reading_descriptions
    from vocabgraft.tokens.tokenizer import added_tokens, read_tokens
    from vocabgraft.training.fit import train_adapter as train

    trusted = base.trust_remote_code
    model = load_model(find_base(base_identity, trusted), trust_remote_code=trusted)
    model.prompts = prompts_of(model.prompts, base.prompts)
    described = [token.new_token for token in added_tokens(read_tokens(tokens))]
    params = train_adapter.for_control()
    with reading_descriptions(model, described):
        result = train(model, read_datasets(datasets), [], params, seed, validate_data.datasets)
    with new_folder(out) as work:
        save_model(model, work, adapter_base=read_json(base_identity)["model"])
        report = {
            "trained": True,
            "epochs": params.epochs,
            "precision": result.precision,
            **result.measured,
            "trainable_parameters": result.trainable_parameters,
            "examples": result.examples,
            "log": result.curve,
        }
        write_json(work / "report.json", report)


if __name__ == "__main__":
    raise SystemExit(run_stage(train_control))
