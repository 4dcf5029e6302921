"""Chooses the precision of the computation, and keeps float32 weights while a 16-bit model trains."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

import torch

from vocabgraft.config.training import Precision
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Computed = Literal["float32", "bfloat16"]
# Texts per timed batch, and seconds of timing per precision.
TIMED_TEXTS, TIMED_SECONDS = 32, 0.4
TEXT = "a sentence of a length that is usual in the texts of a training"


@dataclass(frozen=True)
class ChosenPrecision:
    """The precision of the computation.

    Attributes:
        name: of the precision.
        texts_per_second: of both precisions, forward and backward, if `auto` measured them.
    """

    name: Computed
    texts_per_second: Mapping[str, float] | None = None

    @property
    def measured(self) -> dict[str, Mapping[str, float]]:
        """The measured speeds, for reports."""
        return {"texts_per_second": self.texts_per_second} if self.texts_per_second else {}


def resolve_precision(setting: Precision, model: "SentenceTransformer", processes: int = 1) -> ChosenPrecision:
    """The precision of a setting; `auto` uses the one that trains faster on this machine and device.

    A CPU's flags do not decide it: of two CPUs with AVX512-BF16, one encoded 3.0 times as fast in bfloat16, the other
    490 texts per second against 680 in float32. Several processes must agree without communication, so they use
    bfloat16 on a GPU that supports it, and float32 elsewhere.
    """
    if setting != "auto":
        return ChosenPrecision(setting)
    if processes > 1:
        on_gpu = model.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return ChosenPrecision("bfloat16" if on_gpu else "float32")
    return faster_precision(_texts_per_second(model))


def faster_precision(texts_per_second: Mapping[str, float]) -> ChosenPrecision:
    """bfloat16 if it is faster, else float32, which is exact."""
    faster = texts_per_second["bfloat16"] > texts_per_second["float32"]
    return ChosenPrecision("bfloat16" if faster else "float32", texts_per_second)


def autocast(precision: Computed, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context of a precision; a null context for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _texts_per_second(model: "SentenceTransformer") -> dict[str, float]:
    """The speed of forward and backward of one batch. The precisions alternate, so that other load slows both."""
    features = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in model.preprocess([TEXT] * TIMED_TEXTS).items()
    }
    seconds: dict[Computed, list[float]] = {"float32": [], "bfloat16": []}
    training = model.training
    # Dropout would draw from the generators that the training uses later.
    model.eval()
    for name in seconds:
        _timed(model, features, name)
    end = time.monotonic() + TIMED_SECONDS * len(seconds)
    while time.monotonic() < end or not seconds["bfloat16"]:
        for name, taken in seconds.items():
            taken.append(_timed(model, features, name))
    model.train(training)
    return {name: round(TIMED_TEXTS / median(taken), 1) for name, taken in seconds.items()}


def _timed(model: "SentenceTransformer", features: Mapping[str, object], precision: Computed) -> float:
    begin = time.perf_counter()
    with torch.enable_grad(), autocast(precision, model.device):
        embedded = model(dict(features))["sentence_embedding"]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if weights and embedded.requires_grad:
        torch.autograd.grad(embedded.float().sum(), weights, allow_unused=True)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - begin


@contextmanager
def in_float32(*models: torch.nn.Module) -> Iterator[None]:
    """Within the block, weights stored in 16 bits are float32; afterwards they have their type again.

    Training needs it: Adam's `eps` of 1e-8 is 0 in float16, so its steps divide by 0 and rows become NaN, and in
    bfloat16 a step below 1/256 of a weight is lost. Weights that the block does not change stay equal bit for bit,
    since float32 holds every 16-bit number. Weights that the block adds, such as an adapter, stay float32.

    Args:
        models: changed in place; they may share weights.

    Raises:
        VocabgraftError: for a weight that its own type cannot hold, such as 70,000 in float16. The weights have their
            type again in that case too.
    """
    known = [(model, name, tensor, tensor.dtype) for model in models for name, tensor in _halves(model)]
    for _, _, tensor, _ in known:
        _convert(tensor, torch.float32)
    try:
        yield
    finally:
        # The block may have replaced a parameter by another of the same name, as a merge does.
        now = {(id(model), name): tensor for model in models for name, tensor in _weights(model)}
        found = [(name, now.get((id(model), name), tensor), tensor, dtype) for model, name, tensor, dtype in known]
        too_large = [_convert_back(name, tensor, dtype) for name, *both, dtype in found for tensor in both]
    if broken := next(filter(None, too_large), None):
        raise VocabgraftError(broken)


def _weights(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _halves(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in _weights(model) if tensor.dtype in (torch.float16, torch.bfloat16)]


def _convert(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    # As in torch's own `Module.to`: the parameter stays the same object, to which optimizers and ties refer.
    tensor.data = tensor.data.to(dtype)
    tensor.grad = None


def _convert_back(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> str:
    """Convert in place; return the error if a number became infinite, else an empty string."""
    if tensor.dtype == dtype:
        return ""
    before = tensor.data
    _convert(tensor, dtype)
    lost = before.isfinite() & ~tensor.data.isfinite()
    if not bool(lost.any()):
        return ""
    return (
        f"{name} reached {float(before[lost].abs().max()):.4g}, but {dtype}, the type of the base, ends at "
        f"{torch.finfo(dtype).max:.4g}; lower the learning rates, or save the base in float32"
    )
