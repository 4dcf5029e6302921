"""Which loss fits which format, in one table. It imports nothing heavy, since params.yaml is checked often."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vocabgraft.config.signatures import arguments_of
from vocabgraft.errors import did_you_mean

Format = Literal[
    "triples",
    "pairs",
    "triplets",
    "scored_pairs",
    "labelled_pairs",
    "labelled_texts",
    "texts",
    "teacher_embeddings",
    "margins",
]
FORMATS: tuple[Format, ...] = get_args(Format)
# What a loss reads from a row. `pair` is anchor and positive, followed by the negatives of triplets; `noisy` is a text
# without some of its words, and the text; `contrast` is two texts and whether they are the same.
Reads = Literal[
    "pair",
    "triplet",
    "triple",
    "scored",
    "labelled_pair",
    "labelled_text",
    "single",
    "noisy",
    "contrast",
    "teacher",
    "margin",
]
READS: dict[Reads, tuple[Format, ...]] = {
    "pair": ("triples", "pairs"),
    "triplet": (),
    "triple": ("triples",),
    "scored": ("scored_pairs",),
    "labelled_pair": ("labelled_pairs",),
    "labelled_text": ("labelled_texts",),
    "single": ("texts",),
    "noisy": ("texts",),
    "contrast": ("texts",),
    "teacher": ("teacher_embeddings",),
    "margin": ("margins",),
}
WRAPPERS_OF_ALL = ("MatryoshkaLoss", "AdaptiveLayerLoss", "Matryoshka2dLoss")
LIBRARY = "sentence_transformers.sentence_transformer.losses"
# Methods that train every weight, so that weights may be shared with a decoder and saved.
WHOLE_MODEL_METHODS = frozenset({"full"})


@dataclass(frozen=True)
class LossEntry:
    """One loss.

    Attributes:
        reads: what it reads from a row, which decides the formats that fit.
        negatives: number of negatives of triplets that it takes; 0: triplets do not fit, None: any number.
        wrappers: losses that may wrap it.
        constants: whether it reads only `sentence_embedding` of one model. Otherwise the cache of constant embeddings
            (`vocabgraft/training/embedding_cache.py`), which returns nothing else, is off.
        copies_model: whether it also trains a copy of the model, made when the loss is constructed.
        in_batch_softmax: whether `train_adapter.scale` is its default scale.
        guided: whether it needs a guide model: `base` (the resized base, frozen) or a folder.
        module: module of the class.
    """

    reads: Reads
    negatives: int | None = 0
    wrappers: tuple[str, ...] = WRAPPERS_OF_ALL
    constants: bool = True
    copies_model: bool = False
    in_batch_softmax: bool = False
    guided: bool = False
    module: str = LIBRARY

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats that it fits, in the order of `FORMATS`."""
        fitting = READS[self.reads] + (() if self.negatives == 0 else ("triplets",))
        return tuple(name for name in FORMATS if name in fitting)


# A loss that embeds again in its backward pass can be wrapped by MatryoshkaLoss only.
_BY_DIMENSION = ("MatryoshkaLoss",)
# The classifier has a fixed input width.
_BY_LAYER = ("AdaptiveLayerLoss",)
_TRIPLES = "vocabgraft.triples.losses"
_SIMCSE = "vocabgraft.training.simcse"

LOSSES: dict[str, LossEntry] = {
    "MultipleNegativesRankingLoss": LossEntry("pair", negatives=None, in_batch_softmax=True),
    "CachedMultipleNegativesRankingLoss": LossEntry(
        "pair", negatives=None, wrappers=_BY_DIMENSION, in_batch_softmax=True
    ),
    "MultipleNegativesSymmetricRankingLoss": LossEntry("pair", in_batch_softmax=True),
    "CachedMultipleNegativesSymmetricRankingLoss": LossEntry("pair", wrappers=_BY_DIMENSION, in_batch_softmax=True),
    "GISTEmbedLoss": LossEntry("pair", negatives=1, guided=True),
    "CachedGISTEmbedLoss": LossEntry("pair", negatives=None, wrappers=_BY_DIMENSION, guided=True),
    "MegaBatchMarginLoss": LossEntry("pair", wrappers=_BY_DIMENSION),
    # It returns two named terms, which a wrapper cannot add up.
    "GlobalOrthogonalRegularizationLoss": LossEntry("pair", negatives=None, wrappers=()),
    "TripletLoss": LossEntry("triplet", negatives=1),
    "TranslationLoss": LossEntry("triple", wrappers=(), constants=False, module=_TRIPLES),
    "TranslationRankingLoss": LossEntry("triple", wrappers=(), constants=False, module=_TRIPLES),
    "CoSENTLoss": LossEntry("scored"),
    "AnglELoss": LossEntry("scored"),
    "CosineSimilarityLoss": LossEntry("scored"),
    "ContrastiveLoss": LossEntry("labelled_pair"),
    "OnlineContrastiveLoss": LossEntry("labelled_pair"),
    "SoftmaxLoss": LossEntry("labelled_pair", wrappers=_BY_LAYER),
    "BatchAllTripletLoss": LossEntry("labelled_text"),
    "BatchHardTripletLoss": LossEntry("labelled_text"),
    "BatchHardSoftMarginTripletLoss": LossEntry("labelled_text"),
    "BatchSemiHardTripletLoss": LossEntry("labelled_text"),
    "DenoisingAutoEncoderLoss": LossEntry("noisy", wrappers=(), constants=False),
    "ContrastiveTensionLoss": LossEntry("contrast", wrappers=(), constants=False, copies_model=True),
    "ContrastiveTensionLossInBatchNegatives": LossEntry("single", wrappers=(), constants=False, copies_model=True),
    # AdaptiveLayerLoss reads the layers from the features, and SimCSE makes two copies of these.
    "SimCSELoss": LossEntry("single", wrappers=_BY_DIMENSION, in_batch_softmax=True, module=_SIMCSE),
    "MSELoss": LossEntry("teacher"),
    "EmbedDistillLoss": LossEntry("teacher"),
    "MarginMSELoss": LossEntry("margin"),
    "DistillKLDivLoss": LossEntry("margin"),
}


@dataclass(frozen=True)
class WrapperEntry:
    """A loss that wraps another: its required arguments, and `constants` as in `LossEntry`."""

    required: tuple[str, ...] = ()
    constants: bool = True


WRAPPERS: dict[str, WrapperEntry] = {
    "MatryoshkaLoss": WrapperEntry(("matryoshka_dims",)),
    "AdaptiveLayerLoss": WrapperEntry(constants=False),
    "Matryoshka2dLoss": WrapperEntry(("matryoshka_dims",), constants=False),
}
# Combinations of wrappers that work, innermost first.
WRAPPER_ORDERS = (*((name,) for name in WRAPPERS), ("MatryoshkaLoss", "AdaptiveLayerLoss"))
# Arguments that the pipeline fills in.
FILLED_IN = frozenset({"model", "loss", "embedding_dimension", "known", "candidates", "prompts", "seed"})

DEFAULT_LOSS: dict[Format, str] = {
    "triples": "MultipleNegativesRankingLoss",
    "pairs": "MultipleNegativesRankingLoss",
    "triplets": "MultipleNegativesRankingLoss",
    "scored_pairs": "CoSENTLoss",
    "labelled_pairs": "ContrastiveLoss",
    # The only one of the four without a margin; two unit vectors cannot reach the default margin of 5.
    "labelled_texts": "BatchHardSoftMarginTripletLoss",
    # The only one that needs neither a decoder nor sampled negatives.
    "texts": "ContrastiveTensionLossInBatchNegatives",
    "teacher_embeddings": "MSELoss",
    "margins": "MarginMSELoss",
}


def losses_for(dataset_format: Format) -> list[str]:
    """The losses that fit a format, in the order of the table."""
    return [name for name, entry in LOSSES.items() if dataset_format in entry.formats]


def check_loss(
    dataset_format: Format,
    name: str,
    arguments: Mapping[str, Any],
    wrappers: Iterable[tuple[str, Mapping[str, Any]]] = (),
) -> None:
    """Refuse a loss that cannot train any model.

    Raises:
        ValueError: for a loss that does not exist or does not fit, an unknown argument, or a wrapper that does not fit,
            each with what is allowed.
    """
    fitting = losses_for(dataset_format)
    if name not in LOSSES:
        raise ValueError(
            f"there is no loss {name}{did_you_mean(name, LOSSES)}; for {dataset_format}: {', '.join(fitting)}"
        )
    entry = LOSSES[name]
    if dataset_format not in entry.formats:
        raise ValueError(
            f"{name} does not fit the format {dataset_format} (it reads {' or '.join(entry.formats)}); "
            f"losses that do: {', '.join(fitting)}"
        )
    check_arguments(name, arguments, entry.module, FILLED_IN, ("guide",) if entry.guided else ())
    order = []
    for wrapper, given in wrappers:
        if wrapper not in WRAPPERS:
            raise ValueError(
                f"there is no wrapper {wrapper}{did_you_mean(wrapper, WRAPPERS)}; allowed: {', '.join(WRAPPERS)}"
            )
        if wrapper not in entry.wrappers:
            allowed = ", ".join(entry.wrappers) or "none"
            raise ValueError(f"{wrapper} does not fit around {name}; wrappers that do: {allowed}")
        check_arguments(wrapper, given, LIBRARY, FILLED_IN, WRAPPERS[wrapper].required)
        order.append(wrapper)
    if order and tuple(order) not in WRAPPER_ORDERS:
        allowed = "; ".join(", ".join(names) for names in WRAPPER_ORDERS)
        raise ValueError(
            f"the wrappers {', '.join(order)} do not work in this order; allowed, innermost first: {allowed}"
        )


def check_arguments(
    owner: str, given: Mapping[str, Any], module: str, filled_in: Collection[str], required: Iterable[str] = ()
) -> None:
    """Refuse an argument that is unknown or missing.

    Args:
        owner: name of the class.
        given: its arguments by name.
        module: module of the class.
        filled_in: arguments that the pipeline fills in.
        required: arguments that must be given.

    Raises:
        ValueError: with the arguments allowed.
    """
    names = [name for name in arguments_of(module, owner) if name not in filled_in] if given else []
    for name in given:
        if name not in names:
            shown = ", ".join(names) or "none"
            raise ValueError(f"{owner} has no argument {name}{did_you_mean(name, names)}; allowed: {shown}")
    if missing := [name for name in required if name not in given]:
        raise ValueError(f"{owner} needs the argument {', '.join(missing)}; give it under arguments")


def check_method(name: str, arguments: Mapping[str, Any], method: str, wrappers: Iterable[str] = ()) -> None:
    """Refuse a loss that a training method cannot train.

    Raises:
        ValueError: with the reason and the remedy.
    """
    if method == "gated" and not works_with_constants(name, wrappers):
        named = " in ".join([name, *wrappers])
        raise ValueError(
            f"{named} reads more of the model than a text's embedding, but the method gated trains on stored "
            "embeddings of texts without a new token; use a loss over embeddings, such as "
            "MultipleNegativesRankingLoss, or another method"
        )
    tied = arguments.get("tie_encoder_decoder", True)
    if name == "DenoisingAutoEncoderLoss" and tied and method not in WHOLE_MODEL_METHODS:
        raise ValueError(
            f"DenoisingAutoEncoderLoss ties its decoder to the encoder. The method {method} freezes the encoder's "
            "weights and the adapter does not save them, so nothing learned would be kept; give arguments: "
            "{tie_encoder_decoder: false} for a separate decoder"
        )


def works_with_constants(name: str, wrappers: Iterable[str] = ()) -> bool:
    """Whether a loss may read a text's embedding from a table (`vocabgraft/training/embedding_cache.py`)."""
    return LOSSES[name].constants and all(WRAPPERS[wrapper].constants for wrapper in wrappers)
