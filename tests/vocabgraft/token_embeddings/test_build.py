"""The rows of new tokens, from the base's folder."""

from pathlib import Path

import pytest
import torch

from tests.vocabgraft.conftest import Graft, load, mean_rows, rows_of
from vocabgraft.config.stages import PromptParams, ResizeBaseParams
from vocabgraft.storage.artifacts import new_folder
from vocabgraft.token_embeddings.build import make_rows
from vocabgraft.token_embeddings.initialize import METHODS
from vocabgraft.tokens.tokenizer import load_tokenizer

TEXTS = [f"the {word} of nephrolith and thrombopenia <|IsA|> a -> b" for word in ("dog", "cat", "stone", "heart")]


def rows_by(graft: Graft, texts: list[str] = TEXTS, **params: object) -> tuple[torch.Tensor, dict[str, object]]:
    """Rows by a method."""
    section = ResizeBaseParams.model_validate(params)
    tokenizer = load_tokenizer(graft.tokenizer)
    return make_rows(graft.base, tokenizer, graft.tokens, texts, section, PromptParams(), seed=5)


@pytest.mark.parametrize("method", [*METHODS, "distillation"])
def test_every_method_gives_a_finite_row_a_token_and_leaves_the_global_generator(graft: Graft, method: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    rows, report = rows_by(graft, initialisation=method)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert rows.shape == (len(graft.tokens), 32) and rows.isfinite().all()
    assert bool(report) == (method == "distillation")


def test_distillation_starts_from_the_method_named_and_is_the_default(graft: Graft) -> None:
    small = {"learning_rate": 1e-6, "epochs": 1, "least_steps": 1}
    rows, report = rows_by(graft, distillation={"start": "subword_mean", **small})
    start, _ = rows_by(graft, initialisation="subword_mean")
    torch.testing.assert_close(rows, start, atol=1e-4, rtol=0)
    other, _ = rows_by(graft, distillation={"start": "random_normal", **small})
    assert not torch.allclose(rows, other, atol=1e-3)
    assert set(report) > {"before", "after", "by_token", "under_limit"}


def test_words_in_no_text_are_distilled_from_templates_and_the_report_says_so(graft: Graft) -> None:
    rows, report = rows_by(graft, ["a dog"])
    assert len(rows) == len(graft.tokens)
    assert [(row["to"], row["tokens"]) for row in report["by_texts"]] == [(0, len(graft.tokens))]


def test_rows_of_padding_are_no_neighbours_and_in_no_mean(graft: Graft, tmp_path: Path) -> None:
    from dataclasses import replace

    from vocabgraft.models.saving import save_model

    model = load(graft.base)
    plain, _ = rows_by(graft, initialisation="similar_tokens")
    model[0].auto_model.resize_token_embeddings(len(model.tokenizer) + 5, mean_resizing=False)
    with torch.no_grad():
        # What a mean row would find to be its nearest neighbour, were it a token's.
        rows_of(model)[-5:] = mean_rows(graft.base, graft.tokens)[:1]
    with new_folder(tmp_path / "padded") as work:
        save_model(model, work)
    padded, _ = rows_by(replace(graft, base=tmp_path / "padded"), initialisation="similar_tokens")
    assert torch.equal(plain, padded)


def test_without_a_token_to_add_there_are_no_rows(graft: Graft) -> None:
    section, tokenizer = ResizeBaseParams(), load_tokenizer(graft.base)
    rows, report = make_rows(graft.base, tokenizer, [], TEXTS, section, PromptParams(), seed=5)
    assert rows.shape == (0, 32) and report == {}
