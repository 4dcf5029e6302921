"""The ONNX graph of a model: token ids and masks in, token embeddings and the embedding of the text out."""

import copy
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.gate import is_gated

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EXTRA = ("onnx", "onnxscript", "onnxruntime")
# The only inputs that text-embeddings-inference and fastembed pass.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENS, SENTENCE = "last_hidden_state", "sentence_embedding"
# Texts of different lengths: padding the shorter ones puts the masks into the graph. No two dimensions are equal.
EXAMPLES = (
    "a text",
    "a text that is longer than the first",
    "a third text, whose length is between those of the others",
)
# A protobuf file is limited to 2 GiB; larger weights go into a file beside it.
LARGEST_FILE = 1_900_000_000
# onnxruntime's quantization warns through the root logger.
NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "root")


@dataclass(frozen=True)
class Parts:
    """The modules of a model, split at the pooling.

    Attributes:
        before: the Transformer, and the modules on token embeddings after it.
        after: the Pooling, and the modules on the text embedding after it.
        folded: names of the modules between Transformer and Pooling, which become part of the graph.
    """

    before: tuple[torch.nn.Module, ...]
    after: tuple[torch.nn.Module, ...]
    folded: tuple[str, ...]


def missing_packages() -> list[str]:
    """Packages of the extra `onnx` that are not installed."""
    return [name for name in EXTRA if importlib.util.find_spec(name) is None]


def require_packages() -> None:
    """Raise VocabgraftError if the extra `onnx` is not installed."""
    if absent := missing_packages():
        raise VocabgraftError(
            f"the export to ONNX needs {', '.join(absent)}, not installed here; pip install 'vocabgraft[onnx]'"
        )


def parts_of(model: "SentenceTransformer") -> Parts:
    """The modules before and after the pooling.

    Raises:
        VocabgraftError: when no single graph with `INPUTS` gives the model's embeddings; the message names the module.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer

    children = dict(model.named_children())
    for name, module in children.items():
        if isinstance(module, Router):
            raise _not_covered(f"module {name}, a Router: queries and documents have different layers")
    modules = list(children.values())
    if not modules or not isinstance(modules[0], Transformer):
        raise _not_covered(
            f"{type(modules[0]).__name__ if modules else 'nothing'} as the first module; a Transformer is"
        )
    if is_gated(model):
        raise _not_covered("a gate (method gated): texts with a new token use other weights than the rest")
    if getattr(modules[0].auto_model, "peft_config", None):
        raise VocabgraftError("the model has a PEFT adapter, which an export would leave out; merge it first")
    pooling = [place for place, module in enumerate(modules) if isinstance(module, Pooling)]
    if len(pooling) != 1:
        raise _not_covered(f"{len(pooling)} modules of type Pooling; exactly one is")
    (place,) = pooling
    if not modules[place].include_prompt:
        raise _not_covered("a Pooling that leaves out the prompt's tokens: the graph cannot identify them")
    return Parts(tuple(modules[:place]), tuple(modules[place:]), tuple(children)[1:place])


def write_graph(model: "SentenceTransformer", path: Path) -> None:
    """Write the model as ONNX in float32, for any batch size and any text length up to the model's maximum.

    The outputs are `last_hidden_state`, of shape (texts, tokens, width), after all modules before the pooling, and
    `sentence_embedding`, of shape (texts, width), after all modules. The file contains no path of this machine.

    Args:
        model: merged; it is not changed.
        path: of the file; weights of more than 2 GiB go to `NAME_data` beside it.

    Raises:
        VocabgraftError: when a package is missing or torch's exporter does not cover the architecture.
    """
    require_packages()
    parts_of(model)
    frozen = copy.deepcopy(model).cpu().float().eval()
    parts = parts_of(frozen)
    transformer = cast(torch.nn.Module, parts.before[0].auto_model)
    inputs = _example(frozen, transformer)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=frozen.max_seq_length)}
    shapes = (tuple(sizes for _ in inputs),)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                _Graph(parts, tuple(inputs)), tuple(inputs.values()), dynamic_shapes=shapes, strict=False
            )
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=list(inputs), output_names=[TOKENS, SENTENCE]
            )
    except Exception as error:
        name = type(transformer).__name__
        raise _not_covered(f"the architecture {name} ({type(error).__name__}: {_first_line(error)})") from error
    assert exported is not None, "the exporter of dynamo returns a program"
    _without_traces(exported.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    exported.save(path, external_data=_bytes_of(frozen) > LARGEST_FILE)


class _Graph(torch.nn.Module):
    """The modules as a function from tensors to tensors."""

    def __init__(self, parts: Parts, names: Sequence[str]) -> None:
        super().__init__()
        self.before, self.after = torch.nn.ModuleList(parts.before), torch.nn.ModuleList(parts.after)
        self.names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features: dict[str, Any] = dict(zip(self.names, tensors, strict=True))
        for module in self.before:
            features = module(features)
        tokens = features["token_embeddings"]
        for module in self.after:
            features = module(features)
        return tokens, features["sentence_embedding"]


def _example(model: "SentenceTransformer", transformer: Any) -> dict[str, torch.Tensor]:
    """The inputs that the tokenizer returns and the architecture accepts."""
    import inspect

    features = model.preprocess(list(EXAMPLES))
    taken = inspect.signature(transformer.forward).parameters
    return {name: features[name] for name in INPUTS if name in features and name in taken}


def _without_traces(program: Any) -> None:
    """Remove the source locations of the nodes: lines of code with paths of this machine."""
    graphs = [program.graph, *(function.graph for function in program.functions.values())]
    for graph in graphs:
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
        graph.metadata_props.clear()
        graph.doc_string = None
    program.metadata_props.clear()


def _bytes_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _not_covered(what: str) -> VocabgraftError:
    return VocabgraftError(f"the export to ONNX does not cover {what}; deploy this model with sentence-transformers")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' own messages, such as the absence of torchvision; errors are still raised."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
