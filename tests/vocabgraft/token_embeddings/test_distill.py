"""Distillation: new tokens learn to say what their old pieces said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

from tests.vocabgraft.conftest import Graft, load, rows_of
from vocabgraft.config.stages import DistillationParams
from vocabgraft.data.splits import is_held_out
from vocabgraft.errors import VocabgraftError
from vocabgraft.token_embeddings.distill import (
    TEMPLATES,
    Context,
    _by_token,
    choose_contexts,
    distil,
    fidelity,
)
from vocabgraft.token_embeddings.sinks import RowGuard
from vocabgraft.tokens.tokenizer import ExtendedToken

WORDS = ("stone", "liver", "sugar", "patient", "doctor", "heart", "drug", "pain")
TEXTS = [
    f"the {word} of {other} and {token}"
    for word in WORDS
    for other in WORDS[:4]
    for token in ("nephrolith", "thrombopenia", "<|IsA|> water", "-> wood")
]
SETTINGS = DistillationParams(epochs=6, least_steps=1, batch_size=16, learning_rate=0.01, precision="float32")


def contexts_of(graft: Graft, per_token: int = 100) -> list[Context]:
    """Every text that holds a new token."""
    return choose_contexts(TEXTS, load(graft.resized).tokenizer, graft.tokens, per_token, 1)


def with_pooling(folder: Path, mode: str) -> SentenceTransformer:
    """The model with another pooling, and attention strong enough for one position to tell texts apart."""
    model = load(folder)
    with torch.no_grad():
        for name, parameter in model[0].auto_model.encoder.named_parameters():
            if parameter.dim() == 2 and "attention" in name:
                parameter.mul_(6)
    return SentenceTransformer(modules=[model[0], Pooling(32, pooling_mode=mode), Normalize()], device="cpu").eval()


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_distilled_rows_are_nearer_to_the_teacher_on_texts_kept_out(graft: Graft, pooling: str) -> None:
    student, teacher = with_pooling(graft.resized, pooling), with_pooling(graft.base, pooling)
    report = distil(student, teacher, contexts_of(graft), graft.tokens, SETTINGS, seed=3)
    assert report["contexts"]["held_out"] > 5
    for group in ("all", "words", "special_tokens"):
        assert report["after"][group]["mean"] > report["before"][group]["mean"]


def test_only_the_new_rows_move(graft: Graft) -> None:
    student = load(graft.resized)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    distil(student, load(graft.base), contexts_of(graft), graft.tokens, SETTINGS, seed=3)
    old = [row for row in range(len(rows_of(student))) if row not in graft.new_ids]
    for name, value in student.state_dict().items():
        rows = old if "word_embeddings" in name else slice(None)
        assert torch.equal(value[rows], before[name][rows]), name
    assert not torch.equal(rows_of(student)[graft.new_ids], rows_of(load(graft.resized))[graft.new_ids])


def test_the_result_depends_on_the_seed_alone_and_the_global_generator_is_left(graft: Graft) -> None:
    results = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        before = torch.random.get_rng_state()
        student = load(graft.resized)
        distil(student, load(graft.base), contexts_of(graft), graft.tokens, SETTINGS, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(rows_of(student))
    assert torch.equal(*results)


def test_the_teacher_reads_a_special_token_as_its_description(graft: Graft) -> None:
    (context,) = choose_contexts(["dog <|IsA|> animal"], load(graft.resized).tokenizer, graft.tokens, 1, 1)[:1]
    assert context.teacher_text == "dog is a kind of animal"


def test_prompts_of_the_base_are_read_by_student_and_teacher(graft: Graft) -> None:
    contexts, models = contexts_of(graft), [load(graft.resized), load(graft.base)]
    plain = fidelity(*models, contexts, 16)
    for model in models:
        model.prompts = {"document": "passage "}
    assert not (plain == fidelity(*models, contexts, 16)).any()


def test_a_token_that_few_texts_use_gets_templates(graft: Graft) -> None:
    contexts = choose_contexts(["a nephrolith"], load(graft.resized).tokenizer, graft.tokens, 5, 1)
    texts = [context.text for context in contexts]
    assert [TEMPLATES[number].format("<|IsA|>") in texts for number in range(6)] == [True] * 5 + [False]
    assert sum("nephrolith" in text for text in texts) == 5


def test_a_token_that_many_texts_use_gets_only_so_many(graft: Graft) -> None:
    contexts = contexts_of(graft, per_token=4)
    assert {token: sum(token in context.tokens for context in contexts) for token in graft.new_ids} == dict.fromkeys(
        graft.new_ids, 4
    )


def test_words_in_no_text_are_distilled_from_description_and_templates(graft: Graft) -> None:
    contexts = choose_contexts(["a dog"], load(graft.resized).tokenizer, graft.tokens, 4, 1, describe_under=1)
    assert all(context.is_made for context in contexts)
    for token in graft.tokens:
        texts = [context.text for context in contexts if token.id in context.tokens]
        described = f"{token.text}: {token.description}"
        assert (described in texts) is (token.kind != "special" and bool(token.description))
        assert TEMPLATES[0].format(token.text) in texts
    told = distil(load(graft.resized), load(graft.base), contexts, graft.tokens, SETTINGS, seed=3)["by_texts"]
    assert [(row["from"], row["to"], row["tokens"]) for row in told] == [(0, 0, len(graft.tokens))]


def test_a_word_in_enough_texts_is_not_distilled_from_its_description(graft: Graft) -> None:
    texts = ["a nephrolith", "the nephrolith"]
    contexts = choose_contexts(texts, load(graft.resized).tokenizer, graft.tokens, 9, 1, describe_under=2)
    assert not any(context.text.startswith("nephrolith: ") for context in contexts)


def test_fidelity_is_reported_by_the_number_of_real_texts(graft: Graft) -> None:
    texts = [*(f"the {word} and nephrolith" for word in WORDS), "one thrombopenia"]
    contexts = choose_contexts(texts, load(graft.resized).tokenizer, graft.tokens, 100, 1)
    settings = SETTINGS.model_copy(update={"held_out": 0.3})
    told = distil(load(graft.resized), load(graft.base), contexts, graft.tokens, settings, seed=3)["by_texts"]
    assert sum(row["tokens"] for row in told) == len(graft.tokens)
    trained = sum(not is_held_out(text, 0.3) for text in texts[:-1])
    assert trained >= 2
    assert [row["tokens"] for row in told if row["from"] <= trained <= row["to"]] == [1]
    assert sum(row["tokens"] for row in told if row["from"] < 2) == len(graft.tokens) - 1
    assert all((row["mean"] is None) is (row["measured"] == 0) for row in told)


def test_tokens_that_stay_far_from_the_teacher_are_named(graft: Graft) -> None:
    strict = SETTINGS.model_copy(update={"epochs": 1, "least_fidelity": 1.0})
    report = distil(load(graft.resized), load(graft.base), contexts_of(graft), graft.tokens, strict, seed=3)
    assert report["under_limit"] == sorted(report["by_token"])
    assert set(report["by_token"]) | set(report["not_measured"]) == {token.text for token in graft.tokens}


def test_few_contexts_are_passed_over_until_there_are_enough_steps(graft: Graft) -> None:
    few = choose_contexts(TEXTS[:6], load(graft.resized).tokenizer, graft.tokens, 1, 1)
    reports = {}
    for least in (1, 60):
        settings = SETTINGS.model_copy(update={"epochs": 1, "least_steps": least, "held_out": 0.0})
        student, teacher = load(graft.resized), load(graft.base)
        distil(student, teacher, few, graft.tokens, settings, seed=3)
        reports[least] = fidelity(student, teacher, few, 16).mean()
    assert reports[60] > reports[1] + 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_models_in_float16_are_distilled_in_float32_and_stay_float16(graft: Graft, precision: str) -> None:
    student, teacher = load(graft.resized).half(), load(graft.base).half()
    settings = SETTINGS.model_copy(update={"precision": precision})
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    report = distil(student, teacher, contexts_of(graft), graft.tokens, settings, seed=3)
    assert report["after"]["all"]["mean"] > report["before"]["all"]["mean"]
    assert rows_of(student).dtype == torch.float16 and bool(rows_of(student).isfinite().all())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_base_that_embeds_a_text_as_nan_is_refused(graft: Graft) -> None:
    teacher = load(graft.base)
    with torch.no_grad():
        rows_of(teacher)[teacher.tokenizer.convert_tokens_to_ids("liver")] = torch.nan
    with pytest.raises(VocabgraftError, match=r"NaN or infinity.*liver"):
        distil(load(graft.resized), teacher, contexts_of(graft), graft.tokens, SETTINGS, seed=3)


def test_a_student_whose_loss_is_nan_is_refused(graft: Graft) -> None:
    student = load(graft.resized)
    with torch.no_grad():
        student[0].auto_model.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(VocabgraftError, match="loss of the distillation is nan"):
        distil(student, load(graft.base), contexts_of(graft), graft.tokens, SETTINGS, seed=3)


def test_rows_that_the_last_step_makes_infinite_are_refused_by_name(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(guard: RowGuard, optimizer: object) -> None:
        guard.rows.data[0] = torch.inf

    monkeypatch.setattr(RowGuard, "finish", finish)
    with pytest.raises(VocabgraftError, match=f"1 of {len(graft.tokens)} tokens.*'nephrolith'"):
        distil(load(graft.resized), load(graft.base), contexts_of(graft), graft.tokens, SETTINGS, seed=3)


def test_a_fidelity_of_nan_is_under_the_limit() -> None:
    token = ExtendedToken("nephrolith", "word", "", 7, (1,), ())
    figures = _by_token(np.array([np.nan], dtype=np.float32), [Context("t", "t", (7,), 1)], [token], 0.5)
    assert figures["under_limit"] == ["nephrolith"]
