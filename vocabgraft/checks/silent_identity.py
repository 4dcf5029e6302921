"""Checks against a silent identity: lost trained weights, so that the model loads but acts like the base."""

import copy
from typing import Any

import numpy as np
import torch

from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.encodings import relative_differences
from vocabgraft.checks.result import Finding, at_least, none_of, quoted
from vocabgraft.config.training import STILL_METHODS
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.token_embeddings.trainable import ROWS

TRAINED: tuple[Artifact, Artifact] = ("resized", "merged")


def trained_differs(evidence: Evidence) -> Finding:
    """The least change that training made to the embedding of a text with a trained token."""
    limit, lists = evidence.params.min_change, evidence.probes.new
    texts = [text for text_list in lists for text in text_list]
    before, after = (
        np.concatenate([evidence.encode(artifact, text_list) for text_list in lists if text_list])
        for artifact in TRAINED
    )
    moved = _reads_a_trained_token(evidence, texts)
    if not moved.any():
        raise VocabgraftError(
            "no probe text contains a trained token, so nothing shows that the trained weights are loaded; add "
            "retention pairs with such words"
        )
    changes = np.where(moved, relative_differences(before, after), np.inf)
    same = [
        f"{changes[place]:.3g}: {quoted(texts[place])}"
        for place in np.argsort(changes).tolist()
        if not changes[place] >= limit
    ]
    return at_least(float(np.min(changes)), limit, same)


def adapter_moved(evidence: Evidence) -> Finding:
    """Weights of the loaded adapter that still have their initial values, rows and custom modules included.

    A fresh adapter of the same configuration is made over the resized base. Its random weights never equal trained
    ones. Weights that start from fixed values (LoRA's B from zeros, a row from itself) show whether they were trained
    and loaded. Weights without influence on the embedding, such as a LoRA on an unused pooler, have no gradient and are
    skipped.
    """
    adapter = evidence.model("adapter")
    saved = dict(adapter.named_parameters())
    found = []
    for name, start in _fresh_adapter(evidence).items():
        if name not in saved:
            found.append(f"{name}: missing")
        elif ROWS.search(name):
            found += _rows_at_their_start(evidence, saved[name], start)
        elif torch.equal(saved[name].detach(), start):
            found.append(f"{name}: not trained")
    start_modules = custom_modules(evidence.model("resized"))
    for name, module in custom_modules(adapter).items():
        weights = dict(module.named_parameters())
        before = dict(start_modules[name].named_parameters()) if name in start_modules else {}
        if weights and all(key in before and torch.equal(value, before[key]) for key, value in weights.items()):
            found.append(f"{name}: not trained")
    return none_of(found)


def _reads_a_trained_token(evidence: Evidence, texts: list[str]) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether training changes each text's embedding: (texts,).

    Rows change texts with a trained token, an adapter with a gate those with any new token, other methods every text.
    """
    if evidence.method not in STILL_METHODS:
        return np.ones(len(texts), dtype=bool)
    untrained = evidence.without_training_text if evidence.method == "tokens" else frozenset()
    return evidence.reads(texts, {token.id for token in evidence.tokens if token.text not in untrained})


def _fresh_adapter(evidence: Evidence) -> dict[str, torch.Tensor]:
    """The trainable weights of a new adapter that influence the embedding, by name."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(evidence.folders.adapter))
    model = copy.deepcopy(evidence.model("resized"))
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(config)
    features = model.preprocess([evidence.probes.new[0][0]])
    model[0](dict(features))["token_embeddings"].square().sum().backward()
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _rows_at_their_start(evidence: Evidence, saved: torch.Tensor, start: torch.Tensor) -> list[str]:
    same = (saved.detach() == start).all(dim=1).tolist()
    order = sorted(evidence.tokens, key=lambda token: token.id)
    names = [token.text for token, is_same in zip(order, same, strict=True) if is_same]
    return [f"the row of {name}: not trained" for name in names if name not in evidence.may_stay]
