"""Extending and training in memory: only what should move moves, and what is saved is a plain model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import vocabgraft as vg
from tests.vocabgraft.conftest import load, rows_of
from vocabgraft.tokens.new_token import NewToken

pytestmark = pytest.mark.usefixtures("isolated_forks")

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WORDS = ["nephrolith", NewToken("<|IsA|>", "special", "is a kind of")]
SENTENCES = [f"the nephrolith number {number} is a stone in the kidney" for number in range(20)]
PAIRS = [("a nephrolith", "a stone in the kidney"), ("dog <|IsA|>", "animal"), ("wood", "house")] * 3
OLD = ["a dog and a cat", "pain in the liver", "wood"]
NEW = ["a nephrolith", "dog <|IsA|> animal"]
SMALL: dict[str, Any] = {"per_device_train_batch_size": 3, "num_train_epochs": 1, "precision": "float32"}


@pytest.fixture
def base(tiny_base: Path) -> "SentenceTransformer":
    return load(tiny_base)


@pytest.fixture
def model(base: "SentenceTransformer") -> "SentenceTransformer":
    return vg.extend(base, WORDS, initialization="subword_mean")


def encode(model: "SentenceTransformer", texts: list[str]) -> Any:
    return model.encode(texts, show_progress_bar=False)


def weights(model: "SentenceTransformer") -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_extending_reports_fidelity_and_leaves_the_base_alone(base: "SentenceTransformer") -> None:
    before, tokens = weights(base), len(base.tokenizer)
    model = vg.extend(base, WORDS, texts=SENTENCES, distillation={"least_steps": 20, "least_fidelity": 0.9999})
    assert type(model) is type(base)
    assert same(before, weights(base)) and len(base.tokenizer) == tokens
    assert all(parameter.requires_grad for parameter in base.parameters())
    np.testing.assert_array_equal(encode(model, OLD), encode(base, OLD))
    report = model.vocabulary_report
    assert report.new_ids == [tokens, tokens + 1]
    assert report.fidelity is not None and 0.5 < report.fidelity["mean"] <= 1
    assert list(report.low_fidelity) == ["nephrolith"]
    assert report.not_measured == ("<|IsA|>",)
    assert report.segmentation.tokens_per_text_after < report.segmentation.tokens_per_text_before
    assert all(text in repr(report) for text in ("nephrolith", "low fidelity", "not measured", "tokens per text"))


def test_what_is_trained_later_does_not_reach_the_base(
    base: "SentenceTransformer", model: "SentenceTransformer"
) -> None:
    before = weights(base)
    vg.train(model, PAIRS, method="full", learning_rate=1e-2, **SMALL)
    assert same(before, weights(base))
    assert not np.allclose(encode(model, OLD), encode(base, OLD))


def test_texts_without_a_new_word_are_refused(base: "SentenceTransformer") -> None:
    with pytest.raises(vg.VocabgraftError, match="none of the 1"):
        vg.extend(base, WORDS, texts=["a dog"])


def test_settings_that_do_not_exist_are_refused_by_name(
    base: "SentenceTransformer", model: "SentenceTransformer"
) -> None:
    for call in (
        lambda: vg.extend(base, WORDS, distillation={"epoch": 1}),
        lambda: vg.extend(base, WORDS, initialization="distilation"),
        lambda: vg.train(model, PAIRS, epoch=1),
        lambda: vg.train(model, PAIRS, num_train_epochs=0),
        lambda: vg.train(model, PAIRS, optim_arg="x"),
        lambda: vg.train(model, PAIRS, epochs=1, num_train_epochs=2),
    ):
        with pytest.raises(vg.VocabgraftError, match=r"epoch|distilation|optim_arg"):
            call()


def test_training_moves_the_new_rows_alone(base: "SentenceTransformer", model: "SentenceTransformer") -> None:
    before = encode(model, NEW)
    result = vg.train(model, PAIRS, eval_dataset=PAIRS[:2], **SMALL)
    assert result.trainable_parameters == 2 * 32 and result.examples == 9 and result.untrained == ()
    assert "curve" not in repr(result)
    np.testing.assert_array_equal(encode(model, OLD), encode(base, OLD))
    assert (np.abs(encode(model, NEW) - before).max(axis=1) > 1e-4).all()
    assert torch.equal(rows_of(model)[: len(base.tokenizer)], rows_of(base)[: len(base.tokenizer)])


@pytest.mark.parametrize("method", ["tokens", "lora", "lora_and_tokens"])
def test_the_saved_model_needs_no_peft(model: "SentenceTransformer", tmp_path: Path, method: Any) -> None:
    vg.train(model, PAIRS, method=method, lora={"r": 2}, **SMALL)
    model.save_pretrained(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").rglob("adapter_*"))
    np.testing.assert_allclose(encode(load(tmp_path / "saved"), [*NEW, *OLD]), encode(model, [*NEW, *OLD]), atol=1e-6)


def test_merging_later_gives_the_same_model(base: "SentenceTransformer") -> None:
    models = [vg.extend(base, WORDS, initialization="subword_mean") for _ in range(2)]
    vg.train(models[0], PAIRS, method="lora_and_tokens", **SMALL)
    vg.train(models[1], PAIRS, method="lora_and_tokens", merge=False, **SMALL)
    with pytest.raises(vg.VocabgraftError, match="merge"):
        vg.train(models[1], PAIRS, **SMALL)
    assert vg.merge(models[1]) is models[1]
    assert same(weights(models[0]), weights(models[1]))
    with pytest.raises(vg.VocabgraftError, match="no PEFT adapter"):
        vg.merge(models[1])


def test_an_adapter_alone_loads_over_the_extended_model_that_was_saved(
    model: "SentenceTransformer", tmp_path: Path
) -> None:
    model.save_pretrained(str(tmp_path / "extended"))
    adapted = load(tmp_path / "extended")
    vg.train(adapted, PAIRS, method="lora", learning_rate=0.05, merge=False, **SMALL)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = load(tmp_path / "adapter")
    np.testing.assert_allclose(encode(loaded, [*NEW, *OLD]), encode(adapted, [*NEW, *OLD]), atol=1e-6)
    assert not np.allclose(encode(loaded, OLD), encode(model, OLD))


def test_a_training_that_fails_leaves_the_model_as_it_was(model: "SentenceTransformer") -> None:
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

    class Broken(SentenceEvaluator):  # type: ignore[misc]
        def __call__(self, *given: Any, **options: Any) -> Any:
            raise RuntimeError("planted")

    before = weights(model)
    with pytest.raises(RuntimeError, match="planted"):
        vg.train(model, PAIRS, eval_dataset=PAIRS[:2], evaluator=Broken(), method="lora_and_tokens", **SMALL)
    assert same(before, weights(model))


def test_a_loss_of_the_users_own_is_trained(base: "SentenceTransformer", model: "SentenceTransformer") -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    other = vg.extend(base, WORDS, initialization="subword_mean")
    vg.train(model, PAIRS, loss=MultipleNegativesRankingLoss(model, scale=20.0), **SMALL)
    vg.train(other, PAIRS, loss="MultipleNegativesRankingLoss", **SMALL)
    assert same(weights(model), weights(other))


def test_a_configuration_of_peft_is_taken(model: "SentenceTransformer") -> None:
    from peft import LoHaConfig

    before = encode(model, OLD)
    vg.train(model, PAIRS, method="peft", peft=LoHaConfig(r=2, target_modules=["query"]), learning_rate=0.1, **SMALL)
    assert not np.allclose(before, encode(model, OLD))
    assert model.vocabulary_report.training.method == "peft"


def test_words_of_a_loaded_model_must_be_named(model: "SentenceTransformer", tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = load(tmp_path / "saved")
    with pytest.raises(vg.VocabgraftError, match="tokens="):
        vg.train(loaded, PAIRS, **SMALL)
    with pytest.raises(vg.VocabgraftError, match="'dog'"):
        vg.train(loaded, PAIRS, tokens=["dog"], **SMALL)
    assert vg.train(loaded, PAIRS, tokens=["nephrolith"], **SMALL).trainable_parameters == 32


def test_words_that_no_row_uses_are_reported_or_refused(model: "SentenceTransformer") -> None:
    assert vg.train(model, PAIRS[:1] * 4, **SMALL).untrained == ("<|IsA|>",)
    with pytest.raises(vg.VocabgraftError, match="none of the 2"):
        vg.train(model, [("a dog", "an animal")] * 4, **SMALL)


def test_the_trainer_trains_the_new_rows(
    base: "SentenceTransformer", model: "SentenceTransformer", tmp_path: Path
) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    args = vg.VocabularyTrainingArguments(
        str(tmp_path / "out"), num_train_epochs=1, per_device_train_batch_size=3, save_strategy="no", use_cpu=True
    )
    rows = Dataset.from_list([{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS])
    trainer = vg.VocabularyTrainer(model, args, train_dataset=rows)
    assert isinstance(trainer, SentenceTransformerTrainer) and isinstance(args, SentenceTransformerTrainingArguments)
    before = encode(model, NEW)
    trainer.train()
    assert trainer.set_back == {}
    vg.merge(model)
    np.testing.assert_array_equal(encode(model, OLD), encode(base, OLD))
    assert (np.abs(encode(model, NEW) - before).max(axis=1) > 1e-4).all()


def test_distilling_again_raises_the_fidelity(base: "SentenceTransformer", model: "SentenceTransformer") -> None:
    figures = vg.distill(model, base, SENTENCES, distillation={"held_out": 0.3})
    assert figures["after"]["all"]["mean"] > figures["before"]["all"]["mean"]


def test_a_folder_of_a_registry_is_refused_with_the_way_out() -> None:
    with pytest.raises(vg.VocabgraftError, match="mlflow"):
        vg.extend("models:/name@champion", WORDS)


def test_a_gated_adapter_leaves_other_texts_as_they_were_and_loads_from_its_folder(
    model: "SentenceTransformer", base: "SentenceTransformer", tmp_path: Path
) -> None:
    before = encode(model, NEW)
    vg.train(model, PAIRS, method="gated", learning_rate=1e-2, **SMALL)
    np.testing.assert_array_equal(encode(model, OLD), encode(base, OLD))
    assert np.abs(encode(model, NEW) - before).max() > 1e-4
    model.save_pretrained(str(tmp_path / "model"))
    loaded = load(tmp_path / "model")
    np.testing.assert_array_equal(encode(loaded, OLD + NEW), encode(model, OLD + NEW))
    names = {"untouched_texts", "merged_as_adapter", "reload", "fresh_process", "adapter_moved", "trained_differs"}
    verdicts = {check.name: check.verdict for check in vg.check(model, base=base, texts=OLD + NEW).checks}
    assert {name: verdicts[name] for name in names} == dict.fromkeys(names, "passed")
    with pytest.raises(vg.VocabgraftError, match="has a gate already"):
        vg.train(model, PAIRS, method="gated", **SMALL)


@pytest.mark.parametrize("options", [{"merge": False}, {"tokens": ["nephrolith"]}, {"loss": "of all layers"}])
def test_a_gate_that_cannot_be_made_is_refused_and_leaves_the_model_as_it_was(
    model: "SentenceTransformer", options: dict[str, Any]
) -> None:
    before = weights(model)
    if "loss" in options:
        from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MultipleNegativesRankingLoss

        options = {"loss": AdaptiveLayerLoss(model, MultipleNegativesRankingLoss(model))}
    with pytest.raises(vg.VocabgraftError, match="gated"):
        vg.train(model, PAIRS, method="gated", **options, **SMALL)
    assert same(before, weights(model))
