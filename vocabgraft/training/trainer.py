"""The trainer of sentence-transformers, with errors instead of log messages, best weights and early stopping."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerCallback

from vocabgraft.config.training import EarlyStoppingParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, write_json
from vocabgraft.token_embeddings.sinks import RowGuard
from vocabgraft.token_embeddings.trainable import ROWS
from vocabgraft.training.checkpoints import WEIGHTS, PhaseCheckpoints, load_weights, save_weights, share_weights
from vocabgraft.training.losses import own_parameters
from vocabgraft.training.samplers import SharesOfBatches

DIGEST = "trained.sha256"
GUARD = "guard.safetensors"
# Key in the last log entry of a phase: the step whose weights were kept.
KEPT_STEP = "kept_step"
SHOWN_TEXTS = 3
RETRY = "lower the learning rates of train_adapter (a tenth of each), or raise train_adapter.batch_size"
# Messages of the memory allocators for CPU and GPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "No executable batch size")


# Called with a step and its metrics as they are logged.
Listener = Callable[[int, Mapping[str, float]], None]


class AdapterTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """Stops at a loss that is NaN or infinite, keeps the weights of the best evaluation, and can stop early.

    If it gets checkpoints, it writes them and resumes from the newest. With several processes, each trains with its
    share of every batch, and `per_device_train_batch_size` is that share.
    """

    def __init__(
        self,
        early_stopping: EarlyStoppingParams | None = None,
        checkpoints: PhaseCheckpoints | None = None,
        listener: Listener | None = None,
        guard: RowGuard | None = None,
        **options: Any,
    ) -> None:
        """Take the arguments of SentenceTransformerTrainer."""
        super().__init__(**options)
        self.early_stopping = early_stopping
        self.evaluations_without_gain = 0
        self.checkpoints = checkpoints
        self.listener = listener
        self.guard = guard
        self.epoch_has_ended = False
        self.checkpointed = 0
        self.resumed_from: Path | None = None
        self.add_callback(_Moments(self))
        if guard:
            self.add_callback(_Guarding(self, guard))

    def train_or_resume(self) -> None:
        """Train, from the newest complete checkpoint if there is one."""
        self.resumed_from = self.checkpoints.newest() if self.checkpoints else None
        if self.resumed_from:
            # It was already evaluated at its start.
            self.args.eval_on_start = False
        self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)
        if self.guard:
            self.guard.finish(self.optimizer)
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        last = {"step": self.state.global_step, "epoch": self.state.epoch}
        self.state.log_history.append(last | {KEPT_STEP: best or self.state.global_step})

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        """Like the library, but for several datasets also `eval_loss`, the mean of their losses weighted by rows.

        It is logged like any other metric, so the log has the value that selects the best weights.
        """
        metrics: dict[str, float] = super().evaluate(eval_dataset, *args, **options)
        mean = _mean_loss(metrics, self.eval_dataset) if eval_dataset is None else None
        if mean is None:
            return metrics
        self.log({"eval_loss": mean})
        return metrics | {"eval_loss": mean}

    def get_train_dataloader(self) -> Any:
        """The batches of one process; with several processes, each one's share of the same batches."""
        if self.args.world_size == 1 and self._train_batch_size == self.args.train_batch_size:
            return super().get_train_dataloader()
        if self.args.world_size == 1:
            # The library uses the configured batch size, even if auto_find_batch_size found another one.
            loader = self._build_dataloader(self.train_dataset, self._train_batch_size, dataset_kind="train")
            self._train_dataloader = self.accelerator.prepare(loader)
            return self._train_dataloader
        return self._shared(self.train_dataset, self.args.train_batch_size, "train")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in training, so that a loss over whole batches equals that of one process."""
        chosen = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        if self.args.world_size == 1 or chosen is None:
            return super().get_eval_dataloader(eval_dataset)
        return self._shared(chosen, self.args.eval_batch_size, "eval")

    def _shared(self, dataset: Any, share: int, kind: str) -> Any:
        """Split batches between processes; Accelerate would give them whole batches in turn.

        These come from several datasets at one step, and have unequal lengths at the end of each dataset, so the
        processes could not gather their results.
        """
        from accelerate.data_loader import prepare_data_loader

        world = self.args.world_size
        loader = self._build_dataloader(dataset, share * world, dataset_kind=kind)
        shares = SharesOfBatches(loader.batch_sampler, self.args.process_index, world)
        options = {name: getattr(loader, name) for name in ("collate_fn", "num_workers", "pin_memory")}
        shared = torch.utils.data.DataLoader(loader.dataset, batch_sampler=shares, **options)
        return prepare_data_loader(
            shared, device=self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A step with a finite loss and finite gradients; otherwise the weights stay as before the step."""
        batch = dict(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._average_own_gradients()
        # With float16 an infinite gradient is a signal to the scaler, which skips the step itself.
        gradients_count = self.accelerator.scaler is None
        if not torch.isfinite(loss) or (gradients_count and not self._gradients_are_finite()):
            raise VocabgraftError(
                f"the loss is NaN or infinite at step {self.state.global_step + 1}; {RETRY}. {self._shown(batch)}; the "
                f"model in memory has the weights of the step before{self._last_checkpoint()}"
            )
        return loss

    def _last_checkpoint(self) -> str:
        found = self.checkpoints.newest() if self.checkpoints else None
        return f"; the last checkpoint is {found}" if found else ""

    def _average_own_gradients(self) -> None:
        """Average the gradients of a loss's own parameters, which torch's wrapper does not cover."""
        if self.args.world_size == 1 or not isinstance(self.loss, dict):
            return
        for parameter in own_parameters(self.loss, self.model).values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.args.world_size

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

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **options)
        if self._checkpoint_is_due():
            self._write_checkpoint()

    def _checkpoint_is_due(self) -> bool:
        if self.checkpoints is None or self.control.should_training_stop:
            return False
        # A run that resumes at the last step of an epoch would not evaluate at its end, so evaluate first.
        between = not float(self.state.epoch).is_integer() or self.epoch_has_ended
        every = self.checkpoints.every
        return between and self.state.global_step // every > self.checkpointed // every

    def _write_checkpoint(self) -> None:
        """Each process writes its own state into the folder that the first one creates."""
        from accelerate.utils import broadcast_object_list

        checkpoints, step = self.checkpoints, self.state.global_step
        assert checkpoints is not None, "a checkpoint is due only if there is a folder for it"
        self.checkpointed = step
        checkpoints.keep_table(step)
        with checkpoints.new(step) if self.args.should_save else nullcontext() as work:
            folder = Path(broadcast_object_list([str(work)])[0])
            self._save_rng_state(str(folder))
            write_json(folder / f"progress_{self.args.process_index}.json", self._progress())
            if self.args.should_save:
                save_weights(self.model, self.loss, folder / WEIGHTS)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                if self.guard:
                    save_file(self.guard.state(), folder / GUARD)
                self.state.save_to_json(str(folder / "trainer_state.json"))
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()

    def _progress(self) -> dict[str, Any]:
        """State that the library does not save: losses since the last log entry, count for early stopping."""
        parts = {kind: {name: value.item() for name, value in of.items()} for kind, of in self._components().items()}
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "components": parts,
            "evaluations_without_gain": self.evaluations_without_gain,
        }

    def _components(self) -> dict[str, dict[str, torch.Tensor]]:
        components: dict[str, dict[str, torch.Tensor]] = self.accum_loss_components
        return components

    def take_progress(self) -> None:
        """Restore the state of the checkpoint that the training resumes from."""
        if self.resumed_from is None or self.checkpoints is None:
            return
        if self.guard:
            self.guard.load_state(load_file(self.resumed_from / GUARD))
        progress = read_json(self.resumed_from / f"progress_{self.args.process_index}.json")
        self._tr_loss.fill_(progress["loss"])
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["logged"]
        self._initial_global_step = 0
        self.evaluations_without_gain = progress["evaluations_without_gain"]
        for kind, of in progress["components"].items():
            self._components()[kind].update(
                {name: torch.tensor(value, device=self.args.device) for name, value in of.items()}
            )
        self.checkpointed = self.state.global_step
        self.checkpoints.take_table(self.state.global_step)

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the rows and of the rest, if both train."""
        rows = {id(parameter) for name, parameter in self.model.named_parameters() if ROWS.search(name)}
        return {
            f"learning_rate_{'rows' if id(group['params'][0]) in rows else 'adapter'}": float(group["lr"])
            for group in (self.optimizer.param_groups if self.optimizer else [])
            if group["params"]
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write only the weights that training changes; the best weights are loaded from them."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, self.loss, folder / WEIGHTS)
        (folder / DIGEST).write_text(digest_of_trained(self.model), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, self.loss, Path(resume_from_checkpoint) / WEIGHTS)

    def _load_best_model(self) -> None:
        """Load the best checkpoint; on failure, the library only logs it and keeps the last weights."""
        folder = Path(str(self.state.best_model_checkpoint))
        try:
            self._load_from_checkpoint(str(folder))
            saved = (folder / DIGEST).read_text(encoding="utf-8")
        except Exception as error:
            raise VocabgraftError(f"the best checkpoint, {folder.name}, does not load: {error}") from error
        if digest_of_trained(self.model) != saved:
            raise VocabgraftError(f"the best checkpoint, {folder.name}, was loaded, but the weights differ from it")

    def require_best(self) -> None:
        """Refuse to continue if best weights were requested and there are none.

        The first process keeps them in a folder that others may not see, so it sends them the weights.

        Raises:
            VocabgraftError: when no evaluation gave a value.
        """
        from accelerate.utils import broadcast_object_list

        if not self.args.load_best_model_at_end:
            return
        if broadcast_object_list([self.state.best_model_checkpoint])[0] is None:
            raise VocabgraftError(
                f"train_adapter.best_metric is {self.args.metric_for_best_model!r}, but no evaluation gave a number "
                "for it, so there are no best weights; see arguments.eval_strategy and the validation split"
            )
        if self.args.world_size > 1:
            share_weights(self.model, self.loss)


class _Moments(TrainerCallback):  # type: ignore[misc]
    """Gives the trainer its position in an epoch, and passes what is logged to a listener."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer
        # The rates of the last step; when they are logged, the scheduler has moved on.
        self.rates: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.trainer.take_progress()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.trainer.epoch_has_ended = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.trainer.epoch_has_ended = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.trainer.listener:
            self.rates = self.trainer.learning_rates()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
        if self.trainer.listener and state.is_world_process_zero:
            figures = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
            self.trainer.listener(state.global_step, figures | (self.rates if "loss" in figures else {}))


class _Guarding(TrainerCallback):  # type: ignore[misc]
    """Checks for attention sinks every few steps, and before weights are evaluated or saved."""

    def __init__(self, trainer: AdapterTrainer, guard: RowGuard) -> None:
        self.trainer, self.guard = trainer, guard

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.guard.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.guard.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step % self.guard.LOOK_EVERY == 0 or control.should_evaluate or control.should_save:
            self.guard.look(self.trainer.optimizer)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.guard.look(self.trainer.optimizer)


def digest_of_trained(model: torch.nn.Module) -> str:
    """SHA-256 of the trainable parameters, by name."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            found.update(name.encode())
            found.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss or a mean rank, where lower is better."""
    return metric.endswith(("loss", "_mr", "mean_rank")) or metric == "mr"


def told_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in str(error) for part in OUT_OF_MEMORY)


def _mean_loss(metrics: Mapping[str, float], datasets: Any) -> float | None:
    """The mean of the datasets' losses, weighted by rows; None if none of them has a loss."""
    rows = {name: len(data) for name, data in datasets.items()} if isinstance(datasets, dict) else {}
    losses = {name: metrics[f"eval_{name}_loss"] for name in rows if f"eval_{name}_loss" in metrics}
    if not losses:
        return None
    return sum(rows[name] * loss for name, loss in losses.items()) / sum(rows[name] for name in losses)


def _is_figure(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(("runtime", "_per_second", "eval_loss"))
