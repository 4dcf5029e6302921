"""What two models embed differently is told without embedding, and nothing that changes is left out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, load, rows_of
from tests.vocabgraft.reembedding_samples import STALE, TEXTS, vectors_of
from vocabgraft.index.model_diff import ModelDifference, compare_models
from vocabgraft.models.encode import encode


def stale(difference: ModelDifference) -> set[str]:
    return {text for text, found in zip(TEXTS, difference.stale(TEXTS), strict=True) if found}


def changed(previous: Any, new: Any) -> set[str]:
    """What truly changes: each text alone in its batch, so that padding does not matter."""
    pairs = (encode(model, TEXTS, 1, "document") for model in (previous, new))
    return {text for text, before, after in zip(TEXTS, *pairs, strict=True) if not np.array_equal(before, after)}


def test_only_texts_with_a_new_word_change_after_training_of_rows(graft: Graft) -> None:
    base, merged = load(graft.base), load(graft.merged["tokens"])
    difference = compare_models(base, merged)
    assert difference.everything is None and difference.word_filter is not None
    assert stale(difference) == set(STALE) == changed(base, merged)


def test_a_new_word_that_the_new_model_lost_changes_its_texts_too(graft: Graft) -> None:
    assert stale(compare_models(load(graft.merged["tokens"]), load(graft.base))) == set(STALE)


def test_rows_trained_anew_change_the_texts_of_words_that_the_champion_had(graft: Graft) -> None:
    """Growth on the champion, one of whose words trains again."""
    champion, new = load(graft.merged["tokens"]), load(graft.merged["tokens"])
    number = next(token.id for token in graft.tokens if token.text == "Thrombopenia")
    rows_of(new)[number] += 0.5
    assert stale(compare_models(champion, new)) == {"Nephrolith, thrombopenia and pain"}


def test_an_equal_model_changes_nothing(graft: Graft) -> None:
    assert stale(compare_models(load(graft.merged["tokens"]), load(graft.merged["tokens"]))) == set()


def test_an_old_row_that_moved_changes_the_texts_that_hold_it(graft: Graft) -> None:
    base, new = load(graft.base), load(graft.merged["tokens"])
    rows_of(new)[base.tokenizer.convert_tokens_to_ids("dog")] += 0.5
    difference = compare_models(base, new)
    assert difference.everything is None and difference.word_filter is None
    assert stale(difference) == {*STALE, *(text for text in TEXTS if "dog" in text)}


def test_a_word_that_hides_another_changes_a_text_without_a_new_word(graft: Graft) -> None:
    """Found by the quick look as much as by the tokenizers."""
    from tokenizers import AddedToken

    before, after = load(graft.base), load(graft.base)
    before.tokenizer.backend_tokenizer.add_tokens([AddedToken("beta", single_word=True)])
    after.tokenizer.backend_tokenizer.add_tokens(
        [AddedToken("beta", single_word=True), AddedToken("beta-b", single_word=True)]
    )
    difference = compare_models(before, after)
    assert difference.word_filter is not None
    assert difference.stale(["beta-blocker", "beta", "beta-b", "betab"]).tolist() == [True, False, True, False]


def with_other_weight(model: Any) -> None:
    model[0].auto_model.encoder.layer[1].output.dense.weight.data[0, 0] += 1e-3


def with_other_special_row(model: Any) -> None:
    rows_of(model)[model.tokenizer.cls_token_id] += 1


def with_other_pooling(model: Any) -> None:
    from sentence_transformers.models import Pooling

    model[1] = Pooling(32, pooling_mode="cls")


def without_normalize(model: Any) -> None:
    del model[2]


def with_shorter_texts(model: Any) -> None:
    model.max_seq_length = 8


def with_prompt(model: Any) -> None:
    model.prompts = {"document": "passage: "}


def with_padding_before(model: Any) -> None:
    model.tokenizer.padding_side = "left"


def with_other_epsilon(model: Any) -> None:
    model[0].auto_model.config.layer_norm_eps = 1e-3


def without_special_tokens(model: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_other_weight, "encoder.layer.1.output.dense.weight, which affects every text"),
        (with_other_special_row, "'[CLS]', which every text holds"),
        (with_other_pooling, "module 1 (Pooling)"),
        (without_normalize, "were Transformer, Pooling, Normalize"),
        (with_shorter_texts, "the maximum length is 8 and was 64"),
        (with_padding_before, "the padding side is 'left' and was 'right'"),
        (with_prompt, "the prompt is 'passage: ' and was ''"),
        (with_other_epsilon, "module 0 (Transformer)"),
        (without_special_tokens, "other tokens around every text"),
    ],
)
def test_what_every_text_passes_changes_every_text(graft: Graft, change: Callable[[Any], None], says: str) -> None:
    base, new = load(graft.base), load(graft.merged["tokens"])
    change(new)
    difference = compare_models(base, new)
    assert difference.everything is not None and says in difference.everything
    assert stale(difference) == set(TEXTS)


def test_an_adapter_that_was_merged_changes_every_text(graft: Graft) -> None:
    everything = compare_models(load(graft.base), load(graft.merged["lora_and_tokens"])).everything
    assert everything is not None and "which affects every text" in everything


def test_an_adapter_behind_a_gate_changes_texts_with_a_new_word_alone(graft: Graft) -> None:
    base, gated = load(graft.base), load(graft.merged["gated"])
    for previous, new in ((base, gated), (gated, base), (load(graft.merged["tokens"]), gated)):
        difference = compare_models(previous, new)
        assert difference.everything is None and difference.word_filter is not None
        assert stale(difference) == set(STALE) == changed(previous, new)


def test_two_gates_change_texts_with_a_new_word_where_what_is_behind_differs(graft: Graft) -> None:
    gated, equal, other = (load(graft.merged["gated"]) for _ in range(3))
    assert stale(compare_models(gated, equal)) == set()
    next(value for name, value in other[0].adapted_weights().items() if "value" in name).mul_(1.5)
    assert stale(compare_models(gated, other)) == set(STALE) == changed(gated, other)


def test_a_gate_over_another_base_changes_every_text(graft: Graft) -> None:
    new = load(graft.merged["gated"])
    with_other_weight(new)
    assert "which affects every text" in str(compare_models(load(graft.base), new).everything)


def test_a_prompt_that_makes_a_new_word_with_the_text_counts(graft: Graft) -> None:
    base, new = load(graft.base), load(graft.merged["tokens"])
    for model in (base, new):
        model.prompts = {"passage": "nephro"}
    difference = compare_models(base, new)
    assert difference.stale(["lith", "nephrolith", "dog"]).tolist() == [True, False, False]
    assert vectors_of(new, ["lith"]) == pytest.approx(encode(new, ["nephrolith"], 1))
    assert compare_models(base, new, None).stale(["lith", "nephrolith"]).tolist() == [False, True]


def test_a_tokenizer_of_another_make_is_compared_text_by_text(graft: Graft, tmp_path: Path) -> None:
    shutil.copytree(graft.base, tmp_path / "cased")
    cased = load(tmp_path / "cased")
    from tokenizers import normalizers

    cased.tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    difference = compare_models(load(graft.base), cased)
    assert difference.word_filter is None
    assert difference.stale(["dog", "Dog"]).tolist() == [False, True]
