"""`VocabularyBank`: many vocabularies on one loaded model, without a second copy of it.

    bank = VocabularyBank(SentenceTransformer(...))
    bank.load("packs/cardiology")
    bank.load("packs/nephrology")
    bank.activate("cardiology")                        # the model itself now reads its words
    bank.encode(texts, vocabulary=["cardiology", None])  # one vocabulary per text, in shared batches
    bank.activate(None)                                # the base again, bit for bit

A vocabulary in use is a view: a model whose first module has other rows and another tokenizer, but shares the weights
of the base. Views are made once and never changed, so threads that encode with different vocabularies share no mutable
state.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from vocabgraft.config.stages import DistillationParams
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import REGISTRY_PREFIX
from vocabgraft.models.encode import Embeddings
from vocabgraft.models.gate import is_gated, put_gate
from vocabgraft.models.resize import extended_copy
from vocabgraft.packs.adapters import changed_weights, folded, merged_into
from vocabgraft.packs.combine import Combined, OnConflict, combine
from vocabgraft.packs.pack import (
    Pack,
    PackBase,
    PackToken,
    check_name,
    choose_contexts,
    identify,
    renamed,
    require_base,
)
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.packs.shared_modules import sharing_tokenizer, with_children
from vocabgraft.packs.views import Names, TaggedText, mixed_view, settle_tokenizer, vocabulary_view
from vocabgraft.token_embeddings.distill import choose_contexts as choose_training_contexts
from vocabgraft.token_embeddings.distill import distil
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.token_embeddings.trainable import ROWS
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken, extend_tokenizer
from vocabgraft.training.adapters import adapter_parameters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

    from vocabgraft.data.accepted import AcceptedDataset
    from vocabgraft.training.fit import TrainingResult

# A vocabulary, several combined, or none.
Choice = str | tuple[str, ...] | list[str] | None
# Reserved; not allowed as a vocabulary's name.
ACTIVE: Final = "@active"
# Cached views of vocabularies and combinations; a dropped view is made again in milliseconds.
VIEWS_KEPT = 64
# Cached views whose adapter is merged into copies of weights for speed: each takes up to half the size of the base.
FOLDED_KEPT = 2
CONTEXTS_PER_TOKEN = 4
MAX_TOKEN_CHARACTERS = 64
SHOWN_WORDS = 5


class VocabularyBank:
    """Named vocabularies on one SentenceTransformer, which stays usable.

    All methods are thread-safe. `encode` and `view` never change the model; `activate` (and a fallback to the base)
    replaces its first module, so a thread that calls `model.encode` itself at that moment may tokenize with one
    vocabulary
    and encode with the other: use `bank.encode` there.

    Attributes:
        model: the given model.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        base: PackBase | None = None,
        fetch: Callable[[str], Path] | None = None,
    ) -> None:
        """Take a loaded model without an adapter; no weight of it is copied or changed.

        Args:
            model: its first module is a Transformer with a fast tokenizer and plain input embeddings.
            base: identity of the model if its weights do not show it, because it is quantized or loaded in another
                precision than the packs' base. By default its weights are hashed when the first pack is loaded or
                added.
            fetch: returns the folder of a pack for a `models:/` URI, such as `tasks.registry.lookup.download_pack`;
                this library knows no registry.

        Raises:
            VocabgraftError: for another kind of model.
        """
        self.model = model
        self._key = next(iter(model._modules), "")
        self._transformer = _require_transformer(model)
        self._fetch = fetch
        self._base = base
        self._lock = threading.RLock()
        self._packs: dict[str, Pack] = {}
        self._views: OrderedDict[Names, torch.nn.Module] = OrderedDict()
        self._folded: OrderedDict[Names, torch.nn.Module] = OrderedDict()
        self._active: Names = ()
        settle_tokenizer(self._transformer)
        # An unsuitable model fails here, and not at the first vocabulary.
        vocabulary_view(self._transformer, replace(_EMPTY, rows=self._embedding.weight[:0].detach()))

    def __repr__(self) -> str:
        """The model's name and its vocabularies, each with its number of words and whether it is active."""
        name = Path(str(self._transformer.auto_model.name_or_path or "a model made in memory")).name
        lines = [
            f"  {key}: {len(pack.tokens)} words ({', '.join(pack.texts[:SHOWN_WORDS])}"
            f"{', ...' if len(pack.texts) > SHOWN_WORDS else ''})"
            f"{_adapter_of(pack)}{', active' if key in self._active else ''}"
            for key, pack in self._packs.items()
        ]
        return "\n".join([f"VocabularyBank on {name}: {len(lines)} vocabularies", *lines])

    @property
    def active(self) -> tuple[str, ...]:
        """The names of the active vocabularies; empty for the base."""
        return self._active

    @property
    def names(self) -> list[str]:
        """All vocabularies, in the order in which they were added."""
        return list(self._packs)

    @property
    def base(self) -> PackBase:
        """The identity of the model by its content."""
        with self._lock:
            if self._base is None:
                name = str(self._transformer.auto_model.name_or_path or "a model made in memory")
                self._base = identify(self.view(None), Path(name).name if Path(name).is_absolute() else name)
            return self._base

    def pack(self, name: str) -> Pack:
        """A vocabulary as a pack.

        Raises:
            VocabgraftError: when there is no vocabulary of this name.
        """
        if name not in self._packs:
            allowed = ", ".join(self._packs) or "none yet"
            raise VocabgraftError(f"there is no vocabulary {name!r}; there is: {allowed}")
        return self._packs[name]

    def add(
        self,
        name: str,
        tokens: Sequence[NewToken | str],
        reference: str | None = None,
        initialisation: str = "subword_mean",
        texts: Sequence[str] = (),
        distillation: DistillationParams | None = None,
        seed: int = 0,
    ) -> None:
        """Add a new vocabulary; it is not active until `activate` is called.

        Args:
            name: must not be taken.
            tokens: tokens that the base does not have; a string is a `word` without a description.
            reference: a vocabulary whose rows are used for the tokens that it also has.
            initialisation: of the other rows, as in `resize_base.initialisation`.
            texts: sentences with the tokens; `distillation` needs them, and a few are kept in the pack.
            distillation: its settings; None uses the defaults.
            seed: of the random numbers.

        Raises:
            VocabgraftError: for a name that is taken, a token that cannot be added, a method that cannot initialize a
                row.
        """
        with self._lock:
            self._require_free(name)
            wanted = [token if isinstance(token, NewToken) else NewToken(token, "word", "") for token in tokens]
            known = self.pack(reference) if reference is not None else None
            tokenizer = sharing_tokenizer(self._tokenizer)
            plain = sharing_tokenizer(self._tokenizer).backend_tokenizer
            extended = extend_tokenizer(tokenizer, plain, wanted, MAX_TOKEN_CHARACTERS)
            rows = self._initial_rows(extended, tokenizer, known, initialisation, texts, distillation, seed)
            unknown = tokenizer.unk_token_id
            self._packs[name] = Pack(
                name=name,
                base=self.base,
                tokens=tuple(PackToken.of(token.new_token) for token in extended),
                rows=rows,
                contexts=choose_contexts(texts, tokenizer, extended, CONTEXTS_PER_TOKEN, unknown),
            )

    def put(self, pack: Pack, name: str | None = None) -> str:
        """Add a vocabulary from a pack in memory; return its name.

        Raises:
            VocabgraftError: when the name is taken, or the pack is for another base.
        """
        with self._lock:
            pack = renamed(pack, name or pack.name)
            self._require_free(pack.name)
            require_base(pack, self.base)
            # Errors show before the vocabulary is added.
            self._views[pack.name,] = vocabulary_view(self._transformer, pack)
            self._packs[pack.name] = pack
            self._forget_old_views()
            return pack.name

    def load(self, path: str | Path, name: str | None = None) -> str:
        """Add a vocabulary from a folder, or from a `models:/` URI if the bank has `fetch`; return its name.

        Args:
            path: of the pack.
            name: by default the one in its manifest.

        Raises:
            VocabgraftError: for a damaged pack, one for another base, or a name that is taken.
        """
        return self.put(read_pack(self._found(path)), name)

    def save(self, name: str, path: str | Path) -> None:
        """Write a vocabulary as a pack; only `register_model` puts a pack into a registry.

        Raises:
            VocabgraftError: when there is no vocabulary of this name, or the path exists and is not a pack.
        """
        if str(path).startswith(REGISTRY_PREFIX):
            raise VocabgraftError(
                f"a pack is not saved to {path}: the stage register_model logs the pack of the model that it "
                "registers; name a folder"
            )
        write_pack(self.pack(name), Path(path))

    def delete(self, name: str) -> None:
        """Remove a vocabulary; a model that uses it falls back to the base.

        Raises:
            VocabgraftError: when there is no vocabulary of this name.
        """
        with self._lock:
            self.pack(name)
            if name in self._active:
                self.activate(None)
            del self._packs[name]
            self._forget_views_of(name)

    def activate(self, names: Choice) -> None:
        """Let the model itself read with a vocabulary, with several combined, or with none, bit for bit like the base.

        Raises:
            VocabgraftError: when a vocabulary does not exist, or the vocabularies conflict; the model then does not
                change.
        """
        with self._lock:
            chosen = _names(names)
            self.model._modules[self._key] = self._view(chosen)
            self._active = chosen

    def view(self, names: Choice = ACTIVE) -> "SentenceTransformer":
        """A stock SentenceTransformer that reads with a vocabulary and shares all weights with the bank's model.

        `activate` does not affect it. Do not train or move it.

        Raises:
            VocabgraftError: as for `activate`.
        """
        with self._lock:
            view = self._view(self._active if names == ACTIVE else _names(names))
            self._with_length(view)
            return with_children(self.model, {self._key: view})

    def encode(
        self, texts: Sequence[str], vocabulary: Choice | Sequence[str | tuple[str, ...] | None] = ACTIVE, **options: Any
    ) -> Embeddings:
        """Embeddings of shape (texts, width) in float32.

        Args:
            texts: to encode.
            vocabulary: a name, a tuple of names combined, or None for the base; by default the active one. A list has
                one entry per text: texts of vocabularies without an adapter then share batches, which changes their
                embeddings by about 1e-7.
            options: of `SentenceTransformer.encode`.

        Raises:
            VocabgraftError: as for `activate`, or for a list whose length differs from that of the texts.
        """
        if not isinstance(vocabulary, list):
            return _encode(self.view(cast(Choice, vocabulary)), list(texts), options)
        if len(vocabulary) != len(texts):
            raise VocabgraftError(
                f"{len(vocabulary)} vocabularies for {len(texts)} texts; give one for each, or a tuple of names to "
                "read every text with all of them"
            )
        chosen = [_names(entry) for entry in vocabulary]
        result = np.zeros((len(texts), self.model.get_embedding_dimension() or 0), dtype=np.float32)
        for model, places in self._shares(chosen):
            tagged = [TaggedText(texts[place], chosen[place]) for place in places]
            result[places] = _encode(model, tagged, options)
        return result

    def combine(self, names: Sequence[str], on_conflict: OnConflict = "refuse", name: str | None = None) -> Combined:
        """Combine several vocabularies into one pack, and report the conflicts.

        Raises:
            VocabgraftError: as for `combine.combine`.
        """
        packs = [self.pack(each) for each in names]
        if not packs:
            raise VocabgraftError("no vocabulary is named; give at least one")
        return combine(packs, self._tokenizer.backend_tokenizer, on_conflict, name)

    def merge(self, names: Choice) -> "SentenceTransformer":
        """A separate plain model with copied weights: the rows are in its matrix, and an adapter is merged.

        Raises:
            VocabgraftError: as for `activate`.
        """
        chosen = _names(names)
        base = copy.deepcopy(self.view(None))
        if not chosen:
            return base
        pack = self.combine(chosen).pack
        tokenizer = copy.deepcopy(sharing_tokenizer(self._tokenizer, pack.tokens))
        model = extended_copy(base, tokenizer, pack.rows)
        if pack.adapter is not None and pack.gate is None:
            model[0].model = merged_into(model[0].model, pack.adapter, pack.name)
        elif pack.adapter is not None:
            first = len(self._tokenizer)
            ids = [first + place for place, token in enumerate(pack.tokens) if token.text in (pack.gate or ())]
            put_gate(model, ids, changed_weights(model[0].model, pack.adapter, pack.name))
        return model.eval()

    def train(
        self,
        name: str,
        datasets: Sequence["AcceptedDataset"],
        params: TrainAdapterParams,
        seed: int,
        checkpoints: Path | None = None,
    ) -> "TrainingResult":
        """Train the rows of a vocabulary with the code of the stage `train_adapter`; every other row stays the same.

        The training uses a copy of the matrix and the other weights, frozen. Other vocabularies can encode meanwhile.

        Args:
            name: of a vocabulary without an adapter.
            datasets: as `validate_data` accepted them.
            params: the section `train_adapter`, with `method: tokens`.
            seed: of the order of the examples.
            checkpoints: a folder for this training, to resume it after a kill.

        Raises:
            VocabgraftError: for another method, a vocabulary with an adapter, or a failed training; the rows are then
                unchanged.
        """
        from vocabgraft.training.fit import train_adapter

        pack = self.pack(name)
        if params.method != "tokens" or pack.adapter is not None:
            seen = f"train_adapter.method is {params.method}" if pack.adapter is None else f"{name!r} has an adapter"
            raise VocabgraftError(f"a bank trains a vocabulary only with method tokens; {seen}; train it as a run")
        tokenizer = copy.deepcopy(sharing_tokenizer(self._tokenizer, pack.tokens))
        first = len(self._tokenizer)
        base = self.view(None)
        with _same_flags(base):
            model = extended_copy(base, tokenizer, pack.rows)
            new_ids = list(range(first, first + len(pack.tokens)))
            result = train_adapter(model, datasets, new_ids, params, seed, checkpoints=checkpoints)
            (rows,) = (value for key, value in adapter_parameters(model).items() if ROWS.search(key))
        self._replace_rows(name, rows.detach().clone().to(pack.rows))
        return result

    @property
    def _tokenizer(self) -> "PreTrainedTokenizerFast":
        return cast("PreTrainedTokenizerFast", self._transformer.processor)

    @property
    def _embedding(self) -> torch.nn.Embedding:
        return cast(torch.nn.Embedding, self._transformer.auto_model.get_input_embeddings())

    def _require_free(self, name: str) -> None:
        if check_name(name) in self._packs:
            raise VocabgraftError(f"the name {name!r} is taken; delete that vocabulary first, or give another name")

    def _found(self, path: str | Path) -> Path:
        if not str(path).startswith(REGISTRY_PREFIX):
            return Path(path)
        if self._fetch is None:
            raise VocabgraftError(
                f"{path} is in a registry, which this bank does not know; make it with "
                "VocabularyBank(model, fetch=tasks.registry.lookup.download_pack), or name a folder"
            )
        return self._fetch(str(path))

    def _initial_rows(
        self,
        tokens: Sequence[ExtendedToken],
        tokenizer: "PreTrainedTokenizerFast",
        reference: Pack | None,
        method: str,
        texts: Sequence[str],
        distillation: DistillationParams | None,
        seed: int,
    ) -> torch.Tensor:
        settings = distillation or DistillationParams()
        deviation = getattr(self._transformer.auto_model.config.get_text_config(), "initializer_range", 0.02)
        # Rows beyond the tokenizer's size are padding.
        weight = self._embedding.weight.detach()[: len(self._tokenizer)]
        start = Start(weight, tuple(tokens), tokenizer.unk_token_id, seed, float(deviation))
        distilled = method == "distillation"
        rows = initial_rows(settings.start if distilled else method, start)
        if distilled:
            rows = _distilled(self.view(None), tokenizer, tokens, rows, texts, settings, seed)
        if reference is not None:
            known = {token.text: place for place, token in enumerate(reference.tokens)}
            for place, token in enumerate(tokens):
                if token.text in known:
                    rows[place] = reference.rows[known[token.text]]
        return rows.clone()

    def _view(self, names: Names) -> torch.nn.Module:
        """The first module of a model that reads with these vocabularies; call it with the lock held."""
        if not names:
            return cast(torch.nn.Module, self._transformer)
        if names not in self._views:
            self._views[names] = vocabulary_view(self._transformer, self.combine(names).pack)
            self._forget_old_views()
        self._views.move_to_end(names)
        return self._folded_view(names) if self._has_adapter(names) else self._views[names]

    def _folded_view(self, names: Names) -> torch.nn.Module:
        if names not in self._folded:
            if len(self._folded) == FOLDED_KEPT:
                self._folded.popitem(last=False)
            self._folded[names] = folded(self._views[names])
        self._folded.move_to_end(names)
        return self._folded[names]

    def _has_adapter(self, names: Names) -> bool:
        return any(self.pack(name).adapter is not None for name in names)

    def _mixed(self, choices: Sequence[Names]) -> torch.nn.Module:
        """The first module of a model that reads each tagged text with the vocabularies of its tag.

        It is not cached: it copies only a few rows, and there is one for every set of vocabularies.
        """
        views = {names: self._view(names) for names in choices}
        for view in views.values():
            self._with_length(view)
        return mixed_view(self._transformer, views)

    def _with_length(self, view: Any) -> None:
        # The maximum length is stored in the tokenizer; each view has its own, but users set that of the model.
        view.processor.model_max_length = self.model.max_seq_length

    def _shares(self, chosen: Sequence[tuple[str, ...]]) -> "Iterator[tuple[SentenceTransformer, list[int]]]":
        """Models with the indices of their texts; one model for all texts without an adapter, if possible."""
        places: dict[tuple[str, ...], list[int]] = {}
        for place, names in enumerate(chosen):
            places.setdefault(names, []).append(place)
        alone = [names for names in places if self._has_adapter(names)]
        together = [names for names in places if names not in alone]
        # Attention without padding makes one sequence of a batch, so rows of several views cannot be combined.
        if len(together) < 2 or self.model._can_flatten_inputs():
            alone, together = [*alone, *together], []
        for names in alone:
            yield self.view(names), places[names]
        if together:
            with self._lock:
                mixed = self._mixed(together)
                view = with_children(self.model, {self._key: mixed})
            yield view, sorted(place for names in together for place in places[names])

    def _replace_rows(self, name: str, rows: torch.Tensor) -> None:
        with self._lock:
            self._packs[name] = replace(self.pack(name), rows=rows)
            self._forget_views_of(name)
            if name in self._active:
                self.activate(self._active)

    def _forget_views_of(self, name: str) -> None:
        for views in (self._views, self._folded):
            for names in [names for names in views if name in names]:
                del views[names]

    def _forget_old_views(self) -> None:
        while len(self._views) > VIEWS_KEPT:
            self._views.popitem(last=False)


_EMPTY = Pack("empty", PackBase("", "", "", 0, 0, ""), (), torch.zeros(0, 0))


def _adapter_of(pack: Pack) -> str:
    if pack.adapter is None:
        return ""
    return ", with an adapter" if pack.gate is None else ", with a gated adapter"


def _require_transformer(model: "SentenceTransformer") -> Any:
    from sentence_transformers.base.modules import Transformer

    first = model[0]
    if not isinstance(first, Transformer) or first.tokenizer is None or first.tokenizer is not first.processor:
        raise VocabgraftError(
            f"the model's first module is a {type(first).__name__}; a bank takes a SentenceTransformer that begins "
            "with a Transformer for text"
        )
    if is_gated(model):
        raise VocabgraftError("the model has a gate (method gated); give the bank the base, and load the model's pack")
    if getattr(first.auto_model, "peft_config", None):
        raise VocabgraftError("the model has a PEFT adapter; give the bank the base, and load the adapter in a pack")
    return first


def _names(names: Choice) -> Names:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


def _encode(model: "SentenceTransformer", texts: Sequence[str], options: dict[str, Any]) -> Embeddings:
    if not texts:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    given = {"show_progress_bar": False, **options, "convert_to_numpy": True}
    return np.asarray(model.encode(list(texts), **given), dtype=np.float32)


def _distilled(
    base: "SentenceTransformer",
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    rows: torch.Tensor,
    texts: Sequence[str],
    settings: DistillationParams,
    seed: int,
) -> torch.Tensor:
    contexts = choose_training_contexts(texts, tokenizer, tokens, settings.contexts_per_token, tokenizer.unk_token_id)
    with _same_flags(base):
        student = extended_copy(base, tokenizer, rows)
        distil(student, base, contexts, tokens, settings, seed)
    weight: torch.Tensor = student[0].auto_model.get_input_embeddings().weight.detach()
    return weight[[token.id for token in tokens]]


@contextmanager
def _same_flags(model: "SentenceTransformer") -> Iterator[None]:
    """Training freezes parameters shared with the base; restore their flags at the end."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
