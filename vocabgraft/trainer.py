"""The trainer of sentence-transformers, with what it only logs made an error, and its best weights really kept."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.sampler import GroupByLabelBatchSampler, NoDuplicatesBatchSampler

from vocabgraft.errors import VocabgraftError
from vocabgraft.params import EarlyStoppingParams

DIGEST = "trained.sha256"
SHOWN_TEXTS = 3
RETRY = "lower the learning rates of train_adapter (a tenth of each), or raise train_adapter.batch_size"
# What the allocators of a processor and of a GPU say.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "No executable batch size")


class AdapterTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """Stops at a loss that is no number, keeps the weights of the best evaluation, and stops early where asked."""

    def __init__(self, early_stopping: EarlyStoppingParams | None = None, **options: Any) -> None:
        """Take what SentenceTransformerTrainer takes."""
        super().__init__(**options)
        self.early_stopping = early_stopping
        self.evaluations_without_gain = 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A step whose loss and gradients are numbers; otherwise the weights stay what they were before it."""
        batch = dict(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        # With float16 an infinite gradient is a sign to the scaler, which skips that step itself.
        gradients_count = self.accelerator.scaler is None
        if not torch.isfinite(loss) or (gradients_count and not self._gradients_are_finite()):
            raise VocabgraftError(
                f"the loss is no number at step {self.state.global_step + 1}; {RETRY}. {self._shown(batch)}; the model "
                "in memory has the weights of the step before"
            )
        return loss

    def _gradients_are_finite(self) -> bool:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def _shown(self, batch: Mapping[str, Any]) -> str:
        column = next(name for name in batch if name.endswith("input_ids"))
        ids = batch[column]
        texts = self.model.tokenizer.batch_decode(ids[:SHOWN_TEXTS], skip_special_tokens=True)
        name = batch.get("dataset_name")
        of = f" of the dataset {name}" if name else ""
        more = ", ..." if len(ids) > SHOWN_TEXTS else ""
        return f"The batch has {len(ids)} rows{of}: {', '.join(repr(text[:60]) for text in texts)}{more}"

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        wanted = self.args.metric_for_best_model
        if wanted is None:
            return False
        metrics = _with_mean_loss(metrics, self.eval_dataset)
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in metrics:
            allowed = ", ".join(sorted(key.removeprefix("eval_") for key in metrics if _is_figure(key)))
            raise VocabgraftError(
                f"train_adapter.best_metric is {wanted!r}, which no evaluation gives; allowed: eval_loss, {allowed}"
            )
        before = self.state.best_metric
        is_best: bool = super()._determine_best_metric(metrics, trial)
        self._stop_early(is_best, before, metrics[name])
        return is_best

    def _stop_early(self, is_best: bool, before: float | None, value: float) -> None:
        if self.early_stopping is None:
            return
        gained = is_best and (before is None or abs(value - before) > self.early_stopping.threshold)
        self.evaluations_without_gain = 0 if gained else self.evaluations_without_gain + 1
        if self.evaluations_without_gain >= self.early_stopping.patience:
            self.control.should_training_stop = True

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / DIGEST).write_text(digest_of_trained(self.model), encoding="utf-8")

    def _load_best_model(self) -> None:
        """Load the best checkpoint; the library only logs where that fails and keeps the last weights."""
        folder = Path(str(self.state.best_model_checkpoint))
        try:
            self._load_from_checkpoint(str(folder))
            saved = (folder / DIGEST).read_text(encoding="utf-8")
        except Exception as error:
            raise VocabgraftError(f"the best checkpoint, {folder.name}, does not load: {error}") from error
        if digest_of_trained(self.model) != saved:
            raise VocabgraftError(f"the best checkpoint, {folder.name}, was loaded, and the weights are not its own")

    def require_best(self) -> None:
        """Refuse to go on where best weights were asked for and there were none.

        Raises:
            VocabgraftError: when no evaluation gave a figure.
        """
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            raise VocabgraftError(
                f"train_adapter.best_metric is {self.args.metric_for_best_model!r}, and no evaluation gave a number "
                "for it, so there are no best weights; see arguments.eval_strategy and the validation split"
            )


def digest_of_trained(model: torch.nn.Module) -> str:
    """SHA-256 of the parameters that are trained, by name."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            found.update(name.encode())
            found.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss or a mean rank, of which less is better."""
    return metric.endswith(("loss", "_mr", "mean_rank")) or metric == "mr"


def told_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in str(error) for part in OUT_OF_MEMORY)


def by_label_or_apart(dataset: Any, batch_size: int, **options: Any) -> Any:
    """The batch sampler of labelled texts, which puts several of each label into a batch; that of pairs for others."""
    kinds = dataset.features
    labelled = {"text", "label"} <= set(kinds) and str(getattr(kinds["label"], "dtype", "")).startswith("int")
    if labelled and batch_size >= 4 and batch_size % 2 == 0 and _has_two_groups(dataset["label"]):
        return GroupByLabelBatchSampler(dataset, batch_size=batch_size, **options)
    return NoDuplicatesBatchSampler(dataset, batch_size=batch_size, **options)


def _has_two_groups(labels: Sequence[int]) -> bool:
    counts: dict[int, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return sum(count > 1 for count in counts.values()) > 1


def _with_mean_loss(metrics: dict[str, float], datasets: Any) -> dict[str, float]:
    """The mean of the datasets' losses by their rows, as `eval_loss`."""
    rows = {name: len(data) for name, data in datasets.items()} if isinstance(datasets, dict) else {}
    losses = {name: metrics[f"eval_{name}_loss"] for name in rows if f"eval_{name}_loss" in metrics}
    if not losses:
        return metrics
    total = sum(rows[name] * loss for name, loss in losses.items())
    return metrics | {"eval_loss": total / sum(rows[name] for name in losses)}


def _is_figure(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(("runtime", "_per_second", "eval_loss"))
