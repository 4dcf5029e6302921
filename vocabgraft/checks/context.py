"""The evidence for the checks: the models of a run, loaded from disk, and probe texts."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vocabgraft.checks.isolated import FreshProcess
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.config.training import Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import carried_types, load_model
from vocabgraft.models.encode import Embeddings, encode, split_by_new_token
from vocabgraft.models.gate import gate_class
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME
from vocabgraft.storage.artifacts import read_json
from vocabgraft.token_embeddings.distill import TEMPLATES, Context
from vocabgraft.token_embeddings.sinks import SinkLimits, sink_limits
from vocabgraft.token_embeddings.token_uses import find_uses
from vocabgraft.tokens.tokenizer import ExtendedToken, load_tokenizer, new_ids_in
from vocabgraft.training.adapters import merged_model
from vocabgraft.triples.relation_ranks import HeldOutTriples

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

Artifact = Literal["base", "resized", "adapter", "merged", "merged in memory"]
# Texts of each kind: enough to show a change in one layer, few enough to take seconds.
PROBES = 256
# Texts of each kind for checks that encode one by one, in another process or in an emulated precision.
FEW = 32
# Longest probe text in tokens, whatever the model's limit is.
LONGEST = 1024
UNICODE = (
    "na\u00efve caf\u00e9, na\u0131ve cafe\u0301",
    "\U0001f469\u200d\u2695\ufe0f \U0001fa7a 38.5\u202f\u00b0C",
    "\u05db\u05d0\u05d1 \u05e8\u05d0\u05e9 \u0627\u0644\u0642\u0644\u0628",
    "\u80be\u81d3 \u30ab\u30eb\u30c6 \uff21\uff22\uff23",
    "zero\u200bwidth\u00adsoft\tand\r\nlines",
)


@dataclass(frozen=True)
class Folders:
    """The folders of a run's artifacts."""

    base: Path
    tokenizer: Path
    resized: Path
    adapter: Path
    merged: Path


@dataclass(frozen=True)
class Probes:
    """Probe texts in separate lists, because a text is padded to the longest of its list.

    `edge_*` are edge cases: empty, one token, characters of all kinds. `longest_*` are longer than the model's limit
    and have lists of their own, because everything beside them would be padded to their length.
    """

    with_new: tuple[str, ...]
    without_new: tuple[str, ...]
    edge_with_new: tuple[str, ...] = ()
    edge_without_new: tuple[str, ...] = ()
    longest_with_new: tuple[str, ...] = ()
    longest_without_new: tuple[str, ...] = ()

    @property
    def new(self) -> tuple[tuple[str, ...], ...]:
        """The lists whose texts contain a new token.

        Raises:
            VocabgraftError: if the run has no such text, so that nothing would be compared.
        """
        return _required(self.with_new, "with"), self.edge_with_new, self.longest_with_new

    @property
    def old(self) -> tuple[tuple[str, ...], ...]:
        """The lists whose texts contain no new token.

        Raises:
            VocabgraftError: as for `new`.
        """
        return _required(self.without_new, "without"), self.edge_without_new, self.longest_without_new

    @property
    def all(self) -> tuple[tuple[str, ...], ...]:
        """Every list."""
        return (*self.new, *self.old)

    def few(self, number: int = FEW) -> "Probes":
        """The first texts of each kind, with all edge cases and longest texts."""
        return replace(self, with_new=self.with_new[:number], without_new=self.without_new[:number])

    @property
    def mixed(self) -> list[str]:
        """All texts except the longest, alternately with and without a new token, so that they share batches."""
        lists = [text_list for text_list in (*self.new[:2], *self.old[:2]) if text_list]
        longest = max(len(text_list) for text_list in lists)
        return [text_list[place] for place in range(longest) for text_list in lists if place < len(text_list)]


def _required(texts: tuple[str, ...], kind: str) -> tuple[str, ...]:
    if texts:
        return texts
    raise VocabgraftError(
        f"no probe text {kind} a new word: neither retention pairs nor test splits nor contexts contain one, so "
        f"nothing can be compared; add retention pairs {kind} new words"
    )


@dataclass(frozen=True)
class Evidence:
    """The models of a run, loaded from their folders on the CPU, and the texts that probe them.

    Attributes:
        folders: folders of the artifacts.
        models: the models by artifact; the error if one does not load.
        tokenizer: the tokenizer of `extend_tokenizer`, which all later artifacts must have.
        tokens: the tokens whose rows train.
        method: `train_adapter.method`.
        adapter_config: PEFT's configuration in the adapter's folder.
        without_training_text: new tokens that are in no training text.
        set_back: new tokens whose row became an attention sink in training and was reset to a safe value, which may be
            its initial one.
        probes: the probe texts.
        trained: whether anything was trained; otherwise rows are as distilled.
        training_texts: texts of the train splits and contexts.
        training_rows: gives blocks of the train splits' rows: their groups, and each row's texts as one.
        triples: triples that test the relations' tokens.
        fresh: encodings by another process.
        params: the section `check_consistency`.
        trust_remote_code: whether code in the folders runs.
    """

    folders: Folders
    models: Mapping[Artifact, "SentenceTransformer | VocabgraftError"]
    tokenizer: "PreTrainedTokenizerFast"
    tokens: tuple[ExtendedToken, ...]
    method: Method
    adapter_config: Mapping[str, Any]
    without_training_text: frozenset[str]
    set_back: frozenset[str]
    probes: Probes
    training_texts: tuple[str, ...]
    triples: tuple[HeldOutTriples, ...]
    fresh: FreshProcess
    params: CheckConsistencyParams
    trust_remote_code: bool = False
    trained: bool = True
    training_rows: Callable[[], Iterable[tuple[list[str], list[str]]]] = tuple
    _encoded: dict[tuple[Artifact, tuple[str, ...]], Embeddings] = field(default_factory=dict, init=False, repr=False)

    def model(self, artifact: Artifact) -> "SentenceTransformer":
        """The model of an artifact.

        Raises:
            VocabgraftError: if it does not load.
        """
        found = self.models[artifact]
        if isinstance(found, VocabgraftError):
            raise found
        return found

    def load_base(self) -> "SentenceTransformer":
        """The base, loaded from disk again."""
        return load_model(self.folders.base, device="cpu", trust_remote_code=self.trust_remote_code)

    @cached_property
    def base_tokenizer(self) -> "PreTrainedTokenizerFast":
        """The base's tokenizer, whether or not its model loads."""
        return load_tokenizer(self.folders.base, self.trust_remote_code)

    @property
    def may_stay(self) -> frozenset[str]:
        """The new tokens whose row training may leave at its initial value."""
        return self.without_training_text | self.set_back

    @property
    def new_ids(self) -> list[int]:
        """The ids of the new tokens."""
        return [token.id for token in self.tokens]

    @cached_property
    def uses(self) -> dict[int, list[Context]]:
        """By id of a new token: texts with it and other words, but without other new tokens."""
        return find_uses(self.training_texts, self.tokenizer, self.tokens)

    @cached_property
    def taught_together(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Whether training rows of one group hold both of two new tokens: (tokens, tokens)."""
        places = {token_id: place for place, token_id in enumerate(self.new_ids)}
        held: dict[str, set[int]] = {}
        for groups, rows in self.training_rows():
            found = new_ids_in(self.tokenizer(rows, verbose=False)["input_ids"], places)
            for group, ids in zip(groups, found, strict=True):
                held.setdefault(group, set()).update(places[token_id] for token_id in ids)
        together = np.zeros((len(places), len(places)), dtype=bool)
        for chosen in map(list, held.values()):
            together[np.ix_(chosen, chosen)] = True
        return together

    @cached_property
    def sink_limits(self) -> SinkLimits:
        """The usual ratio of hidden activations of the base's own words, and the ratio of a sink."""
        return sink_limits(self.model("base"), self.new_ids)

    def reads(self, texts: Sequence[str], ids: Collection[int]) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Whether each text has one of these tokens within the merged model's maximum length: (texts,)."""
        if not texts:
            return np.zeros(0, dtype=bool)
        window = self.model("merged").max_seq_length
        options = {"truncation": window is not None, "max_length": window, "verbose": False}
        read = self.tokenizer(list(texts), **options)["input_ids"]
        return np.array([bool(found) for found in new_ids_in(read, ids)], dtype=bool)

    def encode(self, artifact: Artifact, texts: Sequence[str]) -> Embeddings:
        """Embeddings with a fixed batch size, so that equal lists are batched equally; cached."""
        key = artifact, tuple(texts)
        if key not in self._encoded:
            self._encoded[key] = encode(self.model(artifact), texts, self.params.batch_size)
        return self._encoded[key]


def gather_evidence(
    folders: Folders,
    tokens: Sequence[ExtendedToken],
    method: Method,
    texts: Sequence[str],
    training_texts: Sequence[str],
    triples: Sequence[HeldOutTriples],
    params: CheckConsistencyParams,
    trust_remote_code: bool = False,
    training_rows: Callable[[], Iterable[tuple[list[str], list[str]]]] = tuple,
) -> Evidence:
    """Load everything from disk and choose the probes: the first distinct texts with and without a new token.

    Args:
        folders: folders of the run's artifacts.
        tokens: the new tokens.
        method: `train_adapter.method`.
        texts: texts to choose the probes from.
        training_texts: texts to find uses of each new token in.
        triples: triples of each dataset of triples.
        params: the section `check_consistency`.
        trust_remote_code: whether code in the folders runs.
        training_rows: gives blocks of the train splits' rows: their groups, and each row's texts as one. Read only if
            a check needs them.

    If a model does not load, or there is no text of a kind, the checks that need it fail and say so.

    Raises:
        VocabgraftError: if the extended tokenizer or the adapter's report cannot be read.
    """
    tokenizer = load_tokenizer(folders.tokenizer, trust_remote_code)
    gate_ids = [token.id for token in tokens] if method == "gated" else []
    models = _load_all(folders, trust_remote_code, gate_ids)
    probes = choose_probes(tokenizer, texts, tokens, _window(models["resized"]))
    few = [] if not (probes.with_new and probes.without_new) else list(probes.few().all)
    others = (folders.tokenizer, folders.resized, folders.adapter)
    training = _read_if_there(folders.adapter / "report.json")
    trusts_merged = trust_remote_code or bool(gate_class(folders.merged)) or _carries_code(folders.merged)
    return Evidence(
        folders=folders,
        models=models,
        tokenizer=tokenizer,
        tokens=tuple(tokens),
        method=method,
        adapter_config=_read_if_there(folders.adapter / ADAPTER_CONFIG_NAME),
        without_training_text=frozenset(training.get("tokens_without_training_text", ())),
        set_back=frozenset(training.get("set_back", ())),
        probes=probes,
        training_texts=tuple(training_texts),
        triples=tuple(triples),
        fresh=FreshProcess(
            folders.merged, folders.base, others, few, params.batch_size, trust_remote_code, trusts_merged
        ),
        params=params,
        trust_remote_code=trust_remote_code,
        trained=training.get("examples", 1) > 0,
        training_rows=training_rows,
    )


def _load_all(
    folders: Folders, trust_remote_code: bool, gate_ids: Sequence[int]
) -> dict[Artifact, "SentenceTransformer | VocabgraftError"]:
    def load(folder: Path, own_modules: bool = True) -> "SentenceTransformer":
        return load_model(folder, device="cpu", own_modules=own_modules, trust_remote_code=trust_remote_code)

    return {
        "base": _loaded("base", lambda: load(folders.base, own_modules=False)),
        "resized": _loaded("resized", lambda: load(folders.resized)),
        "adapter": _loaded("adapter", lambda: load(folders.adapter)),
        "merged": _loaded("merged", lambda: load(folders.merged)),
        "merged in memory": _loaded(
            "the merge of adapter and resized base",
            lambda: merged_model(folders.resized, folders.adapter, trust_remote_code, gate_ids),
        ),
    }


def _loaded(name: str, make: "Callable[[], SentenceTransformer]") -> "SentenceTransformer | VocabgraftError":
    try:
        return make()
    except VocabgraftError as error:
        return error
    except Exception as error:  # noqa: BLE001  # PEFT and torch raise many kinds of errors for weights that do not fit
        return VocabgraftError(f"{name} does not load: {type(error).__name__}: {error}")


def _carries_code(folder: Path) -> bool:
    """Whether the model has the files of the project's own classes; another check reports a damaged folder."""
    try:
        return bool(carried_types(folder))
    except VocabgraftError:
        return False


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _window(model: "SentenceTransformer | VocabgraftError") -> int:
    """The model's maximum number of tokens, at most LONGEST."""
    limit = None if isinstance(model, VocabgraftError) else model.max_seq_length
    return min(limit or LONGEST, LONGEST)


def choose_probes(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], tokens: Sequence[ExtendedToken], window: int
) -> Probes:
    """Choose the first distinct texts of each kind, and make edge cases from them.

    Args:
        tokenizer: the extended tokenizer, which determines whether a text contains a new token.
        texts: texts of the run.
        tokens: the new tokens.
        window: the model's maximum number of tokens.
    """
    ids = [token.id for token in tokens]
    with_new, without_new = split_by_new_token(tokenizer, list(dict.fromkeys(texts)), ids)
    if not with_new:
        # A vocabulary may have no texts.
        made = [template.format(token.text) for token in tokens[:PROBES] for template in TEMPLATES[-2:]]
        with_new, _ = split_by_new_token(tokenizer, made, ids)
    edges = ["", *UNICODE]
    for token in tokens[:1]:
        edges += [token.text, f"\u00ab{token.text}\u00bb \U0001fa7a"]
    for text in without_new[:1]:
        edges += [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:1])]
    longest = [_longer_than(window, tokenizer, made) for made in (with_new, without_new) if made]
    # A tokenizer without special tokens turns "" into no token, which no model can encode, not even the base.
    readable = [text for text in dict.fromkeys(edges) if tokenizer(text)["input_ids"]]
    edge_with_new, edge_without_new = split_by_new_token(tokenizer, readable, ids)
    longest_with_new, longest_without_new = split_by_new_token(tokenizer, longest, ids)
    return Probes(
        with_new=tuple(with_new[:PROBES]),
        without_new=tuple(without_new[:PROBES]),
        edge_with_new=tuple(edge_with_new),
        edge_without_new=tuple(edge_without_new),
        longest_with_new=tuple(longest_with_new),
        longest_without_new=tuple(longest_without_new),
    )


def _longer_than(window: int, tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> str:
    """Join texts until they are longer than the window."""
    joined, length = list[str](), 0
    for text in islice(cycle(texts), window + 1):
        joined.append(text)
        length += len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if length > window:
            break
    return " ".join(joined)
