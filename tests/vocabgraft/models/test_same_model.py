"""Texts without a new token are embedded once for two models, if nothing but new rows tells the two apart."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.models.same_model import differ_in_new_rows_alone

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = ["a dog", "the nephrolith", "water in blood", "a cat and a fish", "thrombopenia of the dog"]
Change = Callable[["SentenceTransformer"], object]


def test_resized_and_trained_rows_leave_the_rest_of_the_model_as_it_was(graft: Graft) -> None:
    base = load(graft.base)
    assert differ_in_new_rows_alone(base, load(graft.resized))
    assert differ_in_new_rows_alone(base, load(graft.merged["tokens"]))
    assert not differ_in_new_rows_alone(base, load(graft.merged["lora"]))


def last_weight(model: "SentenceTransformer") -> torch.Tensor:
    weights: list[torch.Tensor] = list(model[0].auto_model.encoder.parameters())
    return weights[-1].data


def old_row(model: "SentenceTransformer") -> torch.Tensor:
    weight: torch.Tensor = model[0].auto_model.get_input_embeddings().weight.data
    return weight[5]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: last_weight(model).add_(1e-3),
        lambda model: old_row(model).add_(1e-3),
        lambda model: model.prompts.update(query="query: "),
        lambda model: setattr(model, "max_seq_length", 4),
        lambda model: setattr(model[1], "pooling_mode", "cls"),
        lambda model: model.train(),
        lambda model: model.append(torch.nn.Identity()),
        lambda model: model.half(),
    ],
    ids=["a weight", "an old row", "a prompt", "the length", "pooling", "dropout", "a module", "the type"],
)
def test_any_other_difference_is_seen(graft: Graft, change: Change) -> None:
    changed = load(graft.merged["tokens"])
    change(changed)
    assert not differ_in_new_rows_alone(load(graft.base), changed)


def test_the_base_embeds_what_both_read_alike_and_the_model_the_rest(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged, seen = load(graft.merged["tokens"]), list[str]()
    new_words = NewWords(merged.tokenizer, graft.tokens)
    alone = Subject("merged", load(graft.merged["tokens"]), new_words, 2)
    own = merged.encode
    monkeypatch.setattr(merged, "encode", lambda inputs, **options: (seen.extend(inputs), own(inputs, **options))[1])
    base = Subject("base", load(graft.base), new_words, 2)
    shared = Subject("merged", merged, new_words, 2, base=base)
    found = shared.encode(TEXTS)
    assert sorted(seen) == ["the nephrolith", "thrombopenia of the dog"]
    assert np.abs(found - alone.encode(TEXTS)).max() <= 1e-6
    held = new_words.held(TEXTS)
    assert (found[~held] == base.encode(TEXTS)[~held]).all()


def test_a_text_that_the_two_cut_otherwise_is_embedded_by_each(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    new_words = NewWords(load(graft.merged["tokens"]).tokenizer, graft.tokens)
    base = Subject("base", load(graft.base), new_words, 2)
    shared = Subject("merged", load(graft.merged["tokens"]), new_words, 2, base=base)
    monkeypatch.setattr(base, "read", lambda texts: [text.replace("water", "fish") for text in texts])
    assert (shared.encode(["water in blood"]) != base.encode(["water in blood"])).any()
