"""`vg.train` trains the new words of a model in memory; `vg.merge` merges an adapter."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vocabgraft.api.extend import SEED, refused
from vocabgraft.api.report import ATTRIBUTE, TrainingRecord, ids_of, report_of
from vocabgraft.api.rows import training_sets
from vocabgraft.config.training import ROW_METHODS, Method, TrainAdapterParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.gate import is_gated
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME, save_model
from vocabgraft.training.adapters import fold_behind_gate, remove_adapter
from vocabgraft.training.columns import ids_not_in
from vocabgraft.training.fit import TrainingResult, TrainingSet, fit

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ADAPTER_FILES = (ADAPTER_CONFIG_NAME, "adapter_model.safetensors")
ROWS_AT_ONCE = 10_000
# Names of training arguments of sentence-transformers, and the parameter that each one sets.
RENAMED = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "metric_for_best_model": "best_metric",
}


def train(
    model: "SentenceTransformer",
    train_dataset: Any,
    eval_dataset: Any = None,
    *,
    loss: Any = None,
    evaluator: Any = None,
    method: Method = "tokens",
    tokens: Sequence[Any] | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int = SEED,
    merge: bool = True,
    **settings: Any,
) -> TrainingResult:
    """Train the embeddings of new tokens, an adapter, or the whole model.

    Args:
        model: an extended model; it is trained in place.
        train_dataset: a `datasets.Dataset`; a list of (anchor, positive), (anchor, positive, negative) or
            (sentence1, sentence2, score) tuples or of dicts; or a mapping from names to several of these.
        eval_dataset: held-out rows in the same form, for the evaluation loss.
        loss: the name of a loss, `{"name": ..., "arguments": {...}}`, or an instance made for this model; with several
            datasets, a mapping from their names. By default the loss that fits the rows: CoSENTLoss for scores,
            MultipleNegativesRankingLoss for pairs, triplets and triples.
        evaluator: an evaluator of sentence-transformers, or a list of them, run with each evaluation.
        method: `tokens` trains only the rows of the new tokens: every text without a new word keeps its embedding.
            So does `gated`, which also trains LoRA that acts only on texts with a new word; its model has its own code,
            which `SentenceTransformer(folder, trust_remote_code=True)` loads. `lora` and `peft` train an adapter,
            `lora_and_tokens` and `peft_and_tokens` both, `full` every weight.
        tokens: the new tokens to train; by default all that `extend` added. Required for a loaded model.
        weights: of the losses, by dataset name.
        seed: of the adapter's initialization and of the order of the rows.
        merge: merge the adapter into the weights at the end, so that `model.save_pretrained` writes a plain
            sentence-transformers model. With False the model keeps its PEFT adapter until `merge(model)`, and
            `save_pretrained` writes only the adapter: it loads only if the extended model was saved and loaded before
            the training, since an adapter names its base by its folder.
        **settings: fields of `TrainAdapterParams` (`rows_learning_rate`, `lora`, `peft`, `phases`, ...) or arguments of
            SentenceTransformerTrainingArguments by their own name (`num_train_epochs`, `per_device_train_batch_size`,
            `learning_rate`, `eval_strategy`, ...). `learning_rate` applies to all weights except rows. `peft` also
            takes a configuration object of peft, such as `LoHaConfig(r=8, target_modules=["query"])`.

    Returns:
        The loss curve, the numbers of trainable parameters and rows, the tokens whose row was reset as an attention
        sink (`set_back`), and the tokens that no training text holds (`untrained`), whose row did not change.

    Raises:
        VocabgraftError: for settings, rows or a loss that do not fit, if no training text holds a new token, or if the
            training fails. An error restores the model, unless `method` is `full`. After a KeyboardInterrupt the model
            keeps its partly trained adapter; `merge(model)` merges it. With `gated` it is merged already.
    """
    params = _params(method, settings)
    if method == "gated":
        _require_gate(model, tokens, merge)
    if getattr(model[0].auto_model, "peft_config", None):
        raise VocabgraftError("the model has a PEFT adapter already; merge it first: vocabgraft.merge(model)")
    ids = ids_of(model, tokens) if method in ROW_METHODS or report_of(model) or tokens else {}
    sets = training_sets(train_dataset, eval_dataset, loss, weights, seed)
    untrained = _untrained(model, ids, sets, method)
    evaluators = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []
    with _left_whole(model, method, list(ids.values())):
        result = fit(model, sets, list(ids.values()), params, seed, evaluators=evaluators)
    _record(model, method, untrained, list(ids), result.set_back)
    if method == "gated":
        fold_behind_gate(model, list(ids.values()))
    elif merge and method != "full":
        remove_adapter(model, merge=True)
    return replace(result, untrained=untrained)


def merge(model: "SentenceTransformer") -> "SentenceTransformer":
    """Merge the PEFT adapter of a model into its weights (changed in place), and return the model.

    Only needed after `train(..., merge=False)`. The merged model needs neither PEFT nor a file of the base.

    Raises:
        VocabgraftError: for a model without an adapter.
    """
    remove_adapter(model, merge=True)
    return model


@contextmanager
def _left_whole(model: "SentenceTransformer", method: Method, ids: Sequence[int]) -> Iterator[None]:
    """After an error the model has no adapter; after an interrupt it keeps what was trained."""
    try:
        yield
    except KeyboardInterrupt:
        if method == "gated" and getattr(model[0].auto_model, "peft_config", None):
            fold_behind_gate(model, ids)
        raise
    except Exception:
        if getattr(model[0].auto_model, "peft_config", None):
            remove_adapter(model, merge=False)
        raise


def _require_gate(model: "SentenceTransformer", tokens: Any, merge: bool) -> None:
    """Refuse arguments that do not fit a model with a gate."""
    if is_gated(model):
        raise VocabgraftError(
            "the model has a gate already, from a training with method='gated'; extend and train its base again"
        )
    if tokens is not None and report_of(model) is not None:
        raise VocabgraftError("method='gated' trains every new token, since each opens the gate; leave tokens out")
    if not merge:
        raise VocabgraftError("method='gated' merges its adapter behind the gate; leave merge at True")


def _params(method: str, settings: Mapping[str, Any]) -> TrainAdapterParams:
    own = set(TrainAdapterParams.model_fields)
    given: dict[str, Any] = {"method": method, "checkpoint_every": None}
    arguments: dict[str, Any] = dict(settings.get("arguments", {}))
    for name, value in settings.items():
        target = RENAMED.get(name, name)
        if target in given and target != "checkpoint_every":
            raise VocabgraftError(f"train: {name} is given twice, by this name and as {target}; keep one")
        if target in own:
            given[target] = value
        else:
            arguments[name] = value
    given["arguments"] = arguments
    if is_dataclass(given.get("peft")):
        given["peft"] = _of_peft(given["peft"])
    try:
        params = TrainAdapterParams.model_validate(given)
    except ValidationError as error:
        raise refused("train", error) from error
    if not params.trains:
        raise VocabgraftError("train: num_train_epochs is 0, which trains nothing; give 1 or more")
    return params


def _of_peft(config: Any) -> dict[str, Any]:
    """A configuration object of peft as its class and the fields that differ from the defaults."""
    plain = type(config)()
    arguments = {
        field.name: _as_list(value)
        for field in fields(config)
        if field.init and (value := getattr(config, field.name)) != getattr(plain, field.name)
    }
    arguments.pop("task_type", None)
    return {"config": type(config).__name__, "arguments": arguments}


def _as_list(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def _untrained(
    model: "SentenceTransformer", ids: Mapping[str, int], sets: Sequence[TrainingSet], method: Method
) -> tuple[str, ...]:
    """The new tokens that no training text holds.

    Raises:
        VocabgraftError: if only rows are trained, and no text holds any new token.
    """
    if method not in (*ROW_METHODS, "full"):
        return ()
    lacking = set(ids_not_in(model.tokenizer, _texts(sets), list(ids.values())))
    if method in ROW_METHODS and len(lacking) == len(ids):
        raise VocabgraftError(
            f"none of the {len(ids)} new tokens is in a training text, so no row can be trained; add rows that use "
            "them, or train an adapter: method='lora'"
        )
    return tuple(text for text, token_id in ids.items() if token_id in lacking)


def _texts(sets: Sequence[TrainingSet]) -> Iterator[list[str]]:
    for entry in sets:
        for batch in entry.train.iter(ROWS_AT_ONCE):
            yield [text for column in batch.values() for text in column if isinstance(text, str)]


def _record(
    model: "SentenceTransformer",
    method: Method,
    untrained: Sequence[str],
    words: Sequence[str],
    set_back: Iterable[str],
) -> None:
    """Keep in the report what `check` needs to know about the training."""
    if (report := report_of(model)) is None:
        return
    adapter = _adapter_files(model, method, words)
    before = report.training
    not_chosen = {token.text for token in report.tokens} - set(words) if method in ROW_METHODS else set[str]()
    left = set(untrained) | not_chosen
    reset = tuple(sorted({*set_back, *(before.set_back if before else ())}))
    if before is not None:
        left &= set(before.untrained)
        if (before.method, method) != ("tokens", "tokens"):
            # Several trainings changed more than rows, and no single adapter describes them.
            method, adapter = "full", {}
    setattr(model, ATTRIBUTE, replace(report, training=TrainingRecord(method, tuple(sorted(left)), adapter, reset)))


def _adapter_files(model: "SentenceTransformer", method: Method, words: Sequence[str]) -> dict[str, bytes]:
    """The adapter's files; empty if only rows, or every weight, were trained."""
    if method in ("tokens", "full"):
        return {}
    with tempfile.TemporaryDirectory() as folder, _without_base(model):
        save_model(model, Path(folder))
        return {name: (Path(folder) / name).read_bytes() for name in ADAPTER_FILES}


@contextmanager
def _without_base(model: "SentenceTransformer") -> Iterator[None]:
    """Keep PEFT from writing the whole embedding matrix: it does so if the base on disk has fewer rows."""
    configs = list(model[0].auto_model.peft_config.values())
    names = [config.base_model_name_or_path for config in configs]
    for config in configs:
        config.base_model_name_or_path = None
    try:
        yield
    finally:
        for config, name in zip(configs, names, strict=True):
            config.base_model_name_or_path = name
