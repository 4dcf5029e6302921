"""The trainer for users who need the whole interface of `SentenceTransformerTrainer`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformerTrainingArguments

from vocabgraft.api.report import ids_of
from vocabgraft.api.rows import TARGETS
from vocabgraft.config.training import LoraParams, Method, PeftParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.precision import in_float32
from vocabgraft.token_embeddings.sinks import RowGuard
from vocabgraft.token_embeddings.trainable import ROWS, ROWS_PATTERN, fast_peft_rows
from vocabgraft.training.adapters import add_adapter, train_only
from vocabgraft.training.trainer import AdapterTrainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass
class VocabularyTrainingArguments(SentenceTransformerTrainingArguments):  # type: ignore[misc]  # its types are not followed
    """SentenceTransformerTrainingArguments with the defaults that new token embeddings need.

    Attributes:
        rows_learning_rate: of the new rows; `learning_rate` applies to all other weights.
    """

    rows_learning_rate: float = 5e-3
    num_train_epochs: float = 2
    per_device_train_batch_size: int = 64
    learning_rate: float = 5e-4
    lr_scheduler_type: str = "cosine"
    # Weight decay would pull rows towards zero even in steps whose batch does not use them.
    weight_decay: float = 0.0
    logging_nan_inf_filter: bool = False
    report_to: str = "none"
    # The library's own field has no default of this type.
    learning_rate_mapping: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Set the learning rate of the rows."""
        self.learning_rate_mapping = {ROWS_PATTERN: self.rows_learning_rate} | (self.learning_rate_mapping or {})
        super().__post_init__()


class VocabularyTrainer(AdapterTrainer):
    """SentenceTransformerTrainer that trains the rows of new tokens, with or without an adapter.

    It puts the adapter on the model, freezes the rest, stops at a loss that is NaN, and resets rows that become
    attention sinks. After `train()`, `vocabgraft.merge(model)` folds the adapter in.

    Checkpoints hold only the trained weights.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        args: VocabularyTrainingArguments | None = None,
        *,
        method: Method = "tokens",
        tokens: Sequence[Any] | None = None,
        lora: LoraParams | None = None,
        peft: PeftParams | None = None,
        **options: Any,
    ) -> None:
        """Prepare the model (changed in place).

        Args:
            model: an extended model without an adapter.
            args: None uses the defaults of VocabularyTrainingArguments.
            method: as in `vocabgraft.train`.
            tokens: the new tokens to train; by default all that `extend` added.
            lora: for the methods with `lora`.
            peft: for the methods with `peft`.
            **options: arguments of SentenceTransformerTrainer: train_dataset, eval_dataset, loss, evaluator, callbacks.
                Without a loss, rows without a label get MultipleNegativesRankingLoss.

        Raises:
            VocabgraftError: for a model whose new tokens are unknown, or that peft cannot adapt in this way.
        """
        if method == "gated":
            raise VocabgraftError(
                "VocabularyTrainer trains one path for all texts; for method='gated' use vocabgraft.train"
            )
        ids = ids_of(model, tokens)
        with in_float32(model):
            add_adapter(model, method, list(ids.values()), lora or LoraParams(), peft)
            train_only(model, "all")
            rows = [weight for name, weight in model.named_parameters() if weight.requires_grad and ROWS.search(name)]
            guard = RowGuard(model, list(ids.values()), list(ids), rows[0]) if rows else None
        if options.get("loss") is None:
            options["loss"] = _default_loss(model, options.get("train_dataset"))
        super().__init__(model=model, args=args or VocabularyTrainingArguments(), guard=guard, **options)

    def train(self, *given: Any, **options: Any) -> Any:
        """Train as the library does, with a row lookup that does not copy the whole matrix.

        A model stored in 16 bits trains in float32.
        """
        with in_float32(self.model):
            with fast_peft_rows(self.model):
                result = super().train(*given, **options)
            if self.guard:
                self.guard.finish(self.optimizer)
        return result

    @property
    def set_back(self) -> dict[str, int]:
        """The tokens whose row became an attention sink and was reset, with how often."""
        return self.guard.report() if self.guard else {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as `model.save_pretrained` does; a checkpoint holds only the trained weights."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
        else:
            self.model.save_pretrained(output_dir or self.args.output_dir)


def _default_loss(model: "SentenceTransformer", rows: Any) -> Any:
    """The default loss for rows without a label; None leaves the choice to the library."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    columns: Any = getattr(rows, "column_names", None) or ()
    names = [name for part in columns.values() for name in part] if isinstance(columns, dict) else columns
    return None if set(TARGETS) & set(names) else MultipleNegativesRankingLoss(model)
