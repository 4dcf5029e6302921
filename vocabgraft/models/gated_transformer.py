"""A Transformer with a gate: adapted weights embed texts with a new token, the base's own weights every other text.

A copy of this file lies in each model folder that needs it, where `trust_remote_code=True` loads it. So it imports
only torch, safetensors and sentence-transformers.
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Transformer

WEIGHTS = "adapted_weights.safetensors"
PLACES = ("subfolder", "token", "cache_folder", "revision", "local_files_only")


class GatedTransformer(Transformer):  # type: ignore[misc]
    """Two sets of weights with one tokenizer; equal weights are one tensor in memory.

    A batch of one kind of text is one forward pass with one set of weights. A mixed batch is two passes over its two
    parts. `auto_model` embeds texts without a new token, `adapted.auto_model` the others.

    Attributes:
        gates: first and last id of each range of new tokens.
        adapted: a Transformer with the adapted weights.
    """

    config_keys: ClassVar[list[str]] = [*Transformer.config_keys, "gates"]

    def __init__(self, *args: Any, gates: Sequence[Sequence[int]], **options: Any) -> None:
        """Load the base's weights; `adapt` sets the adapted ones."""
        super().__init__(*args, **options)
        self.gates = [[int(first), int(last)] for first, last in gates]

    @classmethod
    def of(cls, transformer: Any, gates: Sequence[Sequence[int]], weights: Mapping[str, torch.Tensor]) -> Any:
        """A Transformer in memory with a gate; it shares all weights with the given one.

        Args:
            transformer: with a row for each new token.
            gates: first and last id of each range of new tokens.
            weights: the adapted weights, as `adapt` takes them.
        """
        gated = cls.joined(transformer, transformer, gates)
        gated.adapt(weights)
        return gated

    @classmethod
    def joined(cls, transformer: Any, adapted: Any, gates: Sequence[Sequence[int]]) -> Any:
        """Two Transformers in memory with one tokenizer, combined into one with a gate; each keeps its own weights."""
        gated = _empty()
        gated.__dict__ = {**transformer.__dict__, "_modules": {**transformer._modules, "adapted": adapted}}
        gated.gates = [[int(first), int(last)] for first, last in gates]
        return gated

    def adapt(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the adapted weights, by the names of the transformer's parameters; all others are shared.

        Raises:
            ValueError: for a name or a shape that the transformer does not have.
        """
        own = dict(self.auto_model.named_parameters())
        wrong = sorted(name for name, value in weights.items() if name not in own or own[name].shape != value.shape)
        if wrong:
            raise ValueError(f"{WEIGHTS} does not fit the model ({', '.join(wrong[:3])}); restore the folder")
        shared = [parameter for name, parameter in own.items() if name not in weights]
        memo = {id(tensor): tensor for tensor in (*shared, *self.auto_model.buffers())}
        model = copy.deepcopy(self.auto_model, memo)
        with torch.no_grad():
            for name, value in weights.items():
                model.get_parameter(name).copy_(value)
        self.adapted = self._over(model)
        self.train(self.training)

    def closed(self) -> Transformer:
        """The Transformer for texts without a new token, with shared weights."""
        return self._over(self.auto_model)

    def _over(self, model: torch.nn.Module) -> Transformer:
        made = Transformer.__new__(Transformer)
        made.__dict__ = {**self.__dict__, "_modules": {"model": model}}
        return made

    def adapted_weights(self) -> dict[str, torch.Tensor]:
        """The weights that are not shared, by name."""
        own = dict(self.auto_model.named_parameters())
        adapted = self.adapted.auto_model.named_parameters()
        return {name: value.detach() for name, value in adapted if value is not own[name]}

    def opened_by(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Whether each text of a batch holds a new token: bool, (texts,); ids and mask are (texts, tokens)."""
        new = torch.zeros_like(ids, dtype=torch.bool)
        for first, last in self.gates:
            new |= (ids >= first) & (ids <= last)
        return (new & mask.bool()).any(dim=1)

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Embed each text with its set of weights: `token_embeddings` of shape (texts, tokens, width)."""
        opened = self.opened_by(features["input_ids"], features["attention_mask"])
        if not bool(opened.any()):
            return dict(super().forward(features, **options))
        if bool(opened.all()):
            return dict(self.adapted(features, **options))
        places = [(~opened).nonzero().flatten(), opened.nonzero().flatten()]
        parts = [
            super().forward(_rows(features, places[0]), **options),
            self.adapted(_rows(features, places[1]), **options),
        ]
        order = torch.cat(places).argsort()
        made = {name: _joined([part[name] for part in parts], order) for name in parts[0] if name not in features}
        return {**features, **made}

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Write the folder of a Transformer, the adapted weights, and this file."""
        super().save(output_path, *args, **options)
        weights = {name: value.contiguous().cpu() for name, value in sorted(self.adapted_weights().items())}
        save_file(weights, str(Path(output_path) / WEIGHTS), {"format": "pt"})
        code = Path(output_path) / f"{CODE_NAME}.py"
        if code.resolve() != Path(__file__).resolve():
            shutil.copyfile(__file__, code)

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> Any:
        """Load both sets of weights, from a folder or a repository.

        Raises:
            ValueError: for a folder without the adapted weights, or a backend other than torch.
        """
        if (backend := options.get("backend", "torch")) != "torch":
            raise ValueError(f"a model with a gate has no {backend} form; load it with backend='torch'")
        gated = super().load(model_name_or_path, **options)
        known = {name: options[name] for name in PLACES if name in options}
        path = cls.load_file_path(model_name_or_path, WEIGHTS, **known)
        if path is None:
            raise ValueError(f"{model_name_or_path} has no {WEIGHTS}; restore the folder")
        gated.adapt(load_file(path))
        return gated

    def _can_flatten_inputs(self) -> bool:
        """Always false: the gate needs one row per text."""
        return False

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle through a function of this file, since the class is named after another module."""
        return _empty, (), self.__getstate__()


CODE_NAME = "gated_transformer"
# sentence-transformers writes this name into modules.json, and loads the class from the file of that name.
GatedTransformer.__module__ = CODE_NAME


def _empty() -> Any:
    return GatedTransformer.__new__(GatedTransformer)


def _rows(features: dict[str, Any], places: torch.Tensor) -> dict[str, Any]:
    texts = len(features["input_ids"])
    return {name: value[places] if _by_text(value, texts) else value for name, value in features.items()}


def _by_text(value: Any, texts: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == texts


def _joined(values: list[Any], order: torch.Tensor) -> Any:
    """The results of both parts in the order of the texts; hidden states are a tuple of tensors."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)[order]
    return tuple(torch.cat(pair)[order] for pair in zip(*values, strict=True))
