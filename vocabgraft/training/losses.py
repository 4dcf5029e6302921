"""Builds losses from params.yaml: classes, arguments, wrappers and weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vocabgraft.config.datasets import LossParams
from vocabgraft.config.losses import LIBRARY, LOSSES
from vocabgraft.config.signatures import arguments_of
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.training.distributed import world_size

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

SIMILARITIES = ("cos_sim", "dot_score", "euclidean_sim", "manhattan_sim")
PAIRWISE = ("pairwise_cos_sim", "pairwise_dot_score", "pairwise_euclidean_sim", "pairwise_manhattan_sim")
# Losses that compare row with row; the others compare every row with every other.
PAIRWISE_LOSSES = ("CoSENTLoss", "MarginMSELoss", "DistillKLDivLoss")
OF_TORCH = ("loss_fct", "cos_score_transformation")
BASE = "base"
# The losses of several datasets by name, or the loss of a single one.
Losses = Mapping[str, nn.Module] | nn.Module


class WeightedLoss(nn.Module):
    """A loss times a weight."""

    def __init__(self, model: nn.Module, loss: nn.Module, weight: float) -> None:
        """Take the model too: the trainer replaces the attribute of this name by its wrapped model."""
        super().__init__()
        self.model, self.loss, self.weight = model, loss, weight

    def forward(self, sentence_features: Any, labels: torch.Tensor | None = None) -> Any:
        """The loss, or each of its named terms, times the weight."""
        loss = self.loss(sentence_features, labels)
        if isinstance(loss, dict):
            return {name: self.weight * term for name, term in loss.items()}
        return self.weight * loss


class Entities(Sequence[str]):
    """The distinct heads and tails of triples, sorted, in an Arrow array: their bytes plus 4 per text.

    Python strings would take 50 to 100 bytes more per text.
    """

    def __init__(self, triples: "Dataset") -> None:
        """Read the columns `head` and `tail` without copying them."""
        import pyarrow as pa
        from pyarrow import compute

        table = triples.select_columns(["head", "tail"]).with_format("arrow")[:]
        found = pa.chunked_array([*table["head"].chunks, *table["tail"].chunks], table["head"].type).unique()
        self.texts = found.take(compute.sort_indices(found))

    def __len__(self) -> int:
        """The number of entities."""
        return len(self.texts)

    def __getitem__(self, place: int) -> str:  # type: ignore[override]  # slices are not needed
        """The text at an index."""
        return str(self.texts[place])


def build_loss(
    model: "SentenceTransformer",
    name: str,
    loss: LossParams,
    rows: Sequence["Dataset"],
    weight: float = 1.0,
    scale: float = 20.0,
    guides: Mapping[str, "SentenceTransformer"] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The loss of one dataset.

    Args:
        model: with its adapter; weights that do not train must be frozen.
        name: of the dataset, for errors.
        loss: its class, arguments and wrappers, checked by `vocabgraft.config.losses.check_loss`.
        rows: the splits that it reads, the training split first.
        weight: of the dataset.
        scale: of an in-batch softmax without its own scale.
        guides: by their name in params.yaml.
        seed: of random numbers in the loss.

    Raises:
        VocabgraftError: for a value that the loss refuses.
    """
    entry = LOSSES[loss.name]
    place = f"dataset {name}: {loss.name}"
    arguments = {key: _value(loss.name, key, value, place) for key, value in loss.arguments.items()}
    if entry.in_batch_softmax:
        arguments.setdefault("scale", scale)
    loss_class = _class(loss.name, entry.module)
    if world_size() > 1 and "gather_across_devices" in arguments_of(entry.module, loss.name):
        # The candidates are then those of the whole batch, as in one process. `inspect.signature` does not work here: a
        # class marked as deprecated, such as MultipleNegativesSymmetricRankingLoss, has the signature of the marker.
        arguments.setdefault("gather_across_devices", True)
    if entry.guided:
        arguments["guide"] = (guides or {})[loss.arguments["guide"]]
    arguments |= _from_the_data(model, loss, rows, seed, place)
    built = _make(loss_class, (model,), arguments, place)
    if loss.name == "DenoisingAutoEncoderLoss":
        _give_rows(built, model)
    for wrapper in loss.wrappers:
        built = _make(_class(wrapper.name), (model, built), dict(wrapper.arguments), f"{place} in {wrapper.name}")
    return built if weight == 1 else WeightedLoss(model, built, weight)


def load_guides(losses: Sequence[LossParams], base: "SentenceTransformer") -> dict[str, "SentenceTransformer"]:
    """The guide models of losses, frozen: `base` is a copy of the current model, others are folders.

    The resized base has the same tokens as the trained model, so it can read relation tokens.
    """
    import copy

    names = {loss.arguments["guide"] for loss in losses if LOSSES[loss.name].guided}
    guides = {
        str(name): copy.deepcopy(base) if name == BASE else load_model(_guide_folder(name), device=str(base.device))
        for name in sorted(names, key=str)
    }
    for guide in guides.values():
        guide.eval().requires_grad_(False)
    return guides


def own_parameters(losses: Losses, model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name that losses train beside the model, such as a classifier."""
    losses = {"loss": losses} if isinstance(losses, nn.Module) else losses
    of_model = {id(parameter) for parameter in model.parameters()}
    return {
        f"{dataset}.{name}": parameter
        for dataset, loss in losses.items()
        for name, parameter in loss.named_parameters()
        if parameter.requires_grad and id(parameter) not in of_model
    }


def _guide_folder(name: Any) -> Path:
    folder = Path(str(name))
    if not folder.is_dir():
        raise VocabgraftError(f"the guide {name!r} is not a folder; allowed: {BASE}, or the folder of a saved model")
    return folder


def _from_the_data(
    model: "SentenceTransformer",
    loss: LossParams,
    rows: Sequence["Dataset"],
    seed: int,
    place: str,
) -> dict[str, Any]:
    if loss.name == "SoftmaxLoss":
        highest = max(max(split["label"]) for split in rows)
        labels = loss.arguments.get("num_labels", highest + 1)
        if highest >= labels:
            raise VocabgraftError(f"{place}: a label is {highest}; allowed: 0 to {labels - 1} (num_labels)")
        return {"embedding_dimension": model.get_embedding_dimension(), "num_labels": labels}
    if loss.name == "DenoisingAutoEncoderLoss":
        decoder = loss.arguments.get("decoder_name_or_path", BASE)
        own: Any = model[0]
        return {"decoder_name_or_path": own.auto_model.config._name_or_path if decoder == BASE else decoder}
    if loss.name == "SimCSELoss":
        _require_dropout(model, place)
    if LOSSES[loss.name].reads == "teacher":
        _require_width(model, loss, rows[0], place)
    if loss.name == "TranslationLoss":
        return {"seed": seed}
    if loss.name == "TranslationRankingLoss":
        return {"seed": seed, "known": rows[0]} | _candidates(loss, rows[0])
    return {}


def _give_rows(built: Any, model: "SentenceTransformer") -> None:
    """Extend a decoder that reads the model's token ids by a row for each new token."""
    rows = len(model.tokenizer)
    if not built.need_retokenization and built.decoder.get_input_embeddings().num_embeddings < rows:
        built.decoder.resize_token_embeddings(rows, mean_resizing=False)


def _candidates(loss: LossParams, rows: "Dataset") -> dict[str, Sequence[str]]:
    return {"candidates": Entities(rows)} if loss.arguments.get("negatives") else {}


def _require_dropout(model: nn.Module, place: str) -> None:
    if not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        raise VocabgraftError(
            f"{place} learns from dropout, but this model has none, so both embeddings of a text are the same; use "
            "another loss, or a base whose config.json sets hidden_dropout_prob above 0"
        )


def _require_width(model: "SentenceTransformer", loss: LossParams, rows: "Dataset", place: str) -> None:
    width = len(rows[0]["label"])
    wanted = loss.arguments.get("projection_dim") or model.get_embedding_dimension()
    if width != wanted:
        raise VocabgraftError(
            f"{place}: the teacher's embeddings have width {width} and the model's {wanted}; give arguments: "
            f"{{projection_dim: {width}}}, or embed with a teacher of that width"
        )


def _class(name: str, module: str = LIBRARY) -> Any:
    if module != LIBRARY:
        # Imported by name, so that the code deps in dvc.yaml can be derived from the imports.
        from vocabgraft.training import simcse
        from vocabgraft.triples import losses as objectives

        return getattr(simcse if name == "SimCSELoss" else objectives, name)
    from sentence_transformers.sentence_transformer import losses

    return getattr(losses, name)


def _make(loss_class: Any, given: tuple[Any, ...], arguments: dict[str, Any], place: str) -> nn.Module:
    try:
        built: nn.Module = loss_class(*given, **arguments)
    except (ValueError, TypeError, AssertionError, OSError) as error:
        raise VocabgraftError(f"{place} cannot be built: {error}; see its loss in validate_data.datasets") from error
    return built


def _value(loss: str, name: str, value: Any, place: str) -> Any:
    """Values that YAML cannot express, by name: functions, distances and modules of torch."""
    if name == "similarity_fct":
        from sentence_transformers import util

        return getattr(util, _one_of(value, PAIRWISE if loss in PAIRWISE_LOSSES else SIMILARITIES, f"{place}: {name}"))
    if name == "distance_metric" and loss != "EmbedDistillLoss":
        return _distance(loss, value, f"{place}: {name}")
    if name in OF_TORCH:
        found = getattr(nn, str(value), None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise VocabgraftError(f"{place}: {name} is {value!r}; allowed: a class of torch.nn, such as MSELoss")
        return found()
    return tuple(value) if isinstance(value, list) else value


def _distance(loss: str, value: Any, place: str) -> Any:
    from sentence_transformers.sentence_transformer import losses

    if loss.startswith("Batch"):
        metrics: Any = losses.BatchHardTripletLossDistanceFunction
        names = ("cosine_distance", "euclidean_distance")
        return getattr(metrics, _one_of(value, names, place))
    metrics = losses.TripletDistanceMetric if loss == "TripletLoss" else losses.SiameseDistanceMetric
    names = tuple(name for name in vars(metrics) if name.isupper())
    return getattr(metrics, _one_of(value, names, place))


def _one_of(value: Any, allowed: Sequence[str], place: str) -> str:
    if value not in allowed:
        raise VocabgraftError(f"{place} is {value!r}; allowed: {', '.join(allowed)}")
    return str(value)
