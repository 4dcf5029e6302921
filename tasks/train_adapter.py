"""Stage train_adapter: trains new rows, an adapter, or the whole model (`method: full`)."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.support.live_metrics import live_metrics
from tasks.support.stage import run_stage
from tasks.support.trainer_log import loss_lines
from vocabgraft.config.stages import BaseParams, ValidateDataParams
from vocabgraft.config.training import PEFT_METHODS, ROW_METHODS, TrainAdapterParams
from vocabgraft.data.accepted import read_datasets, read_general_texts
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.remote_code import copy_code
from vocabgraft.models.base import load_model
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import content_digest, new_folder, require_artifact, write_json
from vocabgraft.tokens.tokenizer import read_tokens
from vocabgraft.training import distributed
from vocabgraft.training.adapters import require_reload
from vocabgraft.training.checkpoints import key_of
from vocabgraft.training.columns import ids_without_text
from vocabgraft.training.fit import TrainingResult, leave_untrained
from vocabgraft.training.fit import train_adapter as train

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Outside data/, because DVC deletes a stage's output before it runs.
CHECKPOINTS = Path(".checkpoints/train_adapter")
CURVE_PLOT = Path("reports/training_curve.svg")


def train_adapter(
    resized: Path,
    tokens: Path,
    datasets: Path,
    general_texts: Path,
    out: Path,
    params: TrainAdapterParams,
    base: BaseParams,
    seed: int,
    validate_data: ValidateDataParams,
) -> None:
    """Train, then save the adapter as a folder that stock sentence-transformers loads from the project's root.

    With `method: full` there is no adapter, and the folder holds the complete model. Without datasets, or with
    `epochs: 0`, nothing is trained: the adapter holds the distilled rows.
    """
    if not (validate_data.datasets and params.trains):
        _leave_untrained(resized, tokens, out, base)
        return
    paths = {
        "resized": resized,
        "tokens": tokens,
        "datasets": datasets,
        "general-texts": general_texts,
        "out": out,
    }
    if max(params.processes, distributed.nodes()) > 1 and not distributed.is_worker():
        options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        distributed.launch(["-m", "tasks.train_adapter", *options], params.processes)
        return
    if distributed.is_worker():
        distributed.enter()
    model = load_model(require_artifact(resized), own_modules=True, trust_remote_code=base.trust_remote_code)
    new_tokens, accepted = read_tokens(tokens), read_datasets(datasets)
    new_ids = [token.id for token in new_tokens]
    moves_rows = params.method in (*ROW_METHODS, "full")
    untrained = ids_without_text(model.tokenizer, accepted, new_ids) if moves_rows else []
    if params.method in ROW_METHODS:
        _require_something_to_train(len(untrained), len(new_ids))
    # The copy of the project on a cluster machine is deleted after the run, so no run could resume from there.
    checkpoints = None if distributed.nodes() > 1 else CHECKPOINTS / _key(paths, params, seed, validate_data)
    with _live_metrics(params) as listener:
        general = read_general_texts(general_texts)
        result = train(model, accepted, new_ids, params, seed, validate_data.datasets, checkpoints, listener, general)
    without_text = [token.text for token in new_tokens if token.id in untrained]
    if distributed.writes():
        with new_folder(out) as work:
            _save(model, work, resized, [token.text for token in new_tokens], params, base)
            write_json(work / "curve.json", _curve(result.curve))
            write_json(work / "report.json", _report(result, params, without_text))
        if checkpoints is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)
        _draw(result.curve)
    if distributed.is_worker():
        distributed.leave()


def _leave_untrained(resized: Path, tokens: Path, out: Path, base: BaseParams) -> None:
    model = load_model(require_artifact(resized), own_modules=True, trust_remote_code=base.trust_remote_code)
    new_tokens = read_tokens(tokens)
    result = leave_untrained(model, [token.id for token in new_tokens])
    logger.info("nothing is trained: %d rows stay as distilled", len(new_tokens))
    # The adapter has the format of this method, whatever params.yaml would have trained.
    params = TrainAdapterParams(method="tokens" if new_tokens else "full")
    with new_folder(out) as work:
        _save(model, work, resized, [], params, base)
        write_json(work / "curve.json", [])
        write_json(work / "report.json", _report(result, params, []))
    CURVE_PLOT.unlink(missing_ok=True)


def _save(
    model: "SentenceTransformer",
    out: Path,
    resized: Path,
    words: list[str],
    params: TrainAdapterParams,
    base: BaseParams,
) -> None:
    save_model(model, out, adapter_base=resized.as_posix())
    if base.trust_remote_code:
        copy_code(resized, out)
    if params.method in PEFT_METHODS:
        require_reload(model, out, words, base.trust_remote_code)


def _key(paths: Mapping[str, Path], params: TrainAdapterParams, seed: int, validate_data: ValidateDataParams) -> str:
    """A key of all inputs of the training: only checkpoints with the same key are resumed.

    How often checkpoints are written does not change the weights, so it is not in the key.
    """
    return key_of(
        {
            "resized": content_digest(paths["resized"]),
            "tokens": paths["tokens"].read_text(encoding="utf-8"),
            "datasets": content_digest(paths["datasets"]),
            "general_texts": read_general_texts(paths["general-texts"]) if params.retain else [],
            "params": params.model_dump(exclude={"checkpoint_every"}),
            "seed": seed,
            "settings": [dataset.model_dump() for dataset in validate_data.datasets],
            "world": distributed.world_size(),
        }
    )


def _live_metrics(params: TrainAdapterParams) -> AbstractContextManager[Any]:
    """A listener for live metrics in the first process; none in the others."""
    if distributed.rank():
        return nullcontext()
    settings = {name: value for name, value in params.model_dump().items() if value not in (None, [], {})}
    return live_metrics(params.arguments, settings)


def _report(result: TrainingResult, params: TrainAdapterParams, without_text: list[str]) -> dict[str, Any]:
    return {
        "tokens_without_training_text": without_text,
        "set_back": result.set_back,
        "method": params.method,
        "precision": result.precision,
        **result.measured,
        "trainable_parameters": result.trainable_parameters,
        "examples": result.examples,
        "final_loss": result.final_loss,
        "log": result.curve,
    }


def _draw(log: list[dict[str, Any]]) -> None:
    """Plot the losses over the steps of all phases; not tracked, because its bytes depend on matplotlib's version."""
    from matplotlib.figure import Figure

    lines = loss_lines(log)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, line in (lines["validation"] | {"loss": lines["train"]}).items():
        axes.plot(line["steps"], line["losses"], marker="." if name != "loss" else None, label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    CURVE_PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(CURVE_PLOT)


def _require_something_to_train(untrained: int, tokens: int) -> None:
    if tokens and untrained == tokens:
        raise VocabgraftError(
            f"none of the {tokens} new tokens is in a training text, so there is no row to train; add examples that "
            "use them to a dataset (contexts only initialize rows), or set train_adapter.method to lora"
        )


def _curve(log: list[dict[str, float]]) -> list[dict[str, float]]:
    keys = ("phase", "step", "epoch", "loss", "learning_rate")
    return [{key: entry[key] for key in keys if key in entry} for entry in log if "loss" in entry]


if __name__ == "__main__":
    raise SystemExit(run_stage(train_adapter))
