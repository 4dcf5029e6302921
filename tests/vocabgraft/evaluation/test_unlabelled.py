"""Fidelity and tokens per text: of which texts, against what, and with planted models."""

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of
from vocabgraft.config.stages import EvaluateModelParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.evaluation.evaluate import Evaluation, Questions, evaluate
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.unlabelled import fidelity_json, held_out_texts, measure_fidelity, measure_tokens
from vocabgraft.tokens.tokenizer import added_tokens

PARAMS = EvaluateModelParams(batch_size=8, recall_at=2, smoke_under=10, reference_texts=60)
CONTEXTS = [f"the nephrolith of {word}" for word in ("a dog", "the cat", "water", "blood", "the heart", "a bird")]


@pytest.fixture
def new_words(graft: Graft) -> NewWords:
    """Which texts hold a new token of the graft."""
    return NewWords(load(graft.merged["tokens"]).tokenizer, graft.tokens)


@pytest.fixture
def subjects(graft: Graft, new_words: NewWords) -> dict[str, Subject]:
    """The base, which reads descriptions, and a merged model."""
    described = [token.new_token for token in added_tokens(graft.tokens)]
    return {
        "base": Subject("base", load(graft.base), new_words, 4, described),
        "merged": Subject("merged", load(graft.merged["tokens"]), new_words, 4),
    }


@pytest.fixture
def pairs(write_dataset: WriteDataset) -> AcceptedDataset:
    """Pairs of which a test text is a train text too."""
    train = [("a nephrolith hurts", "pain"), ("the nephrolith of a dog", "stone")]
    return write_dataset("terms", "pairs", ("anchor", "positive"), train=train, test=[("nephrolith", "stone")])


def test_held_out_texts_are_of_no_train_split(pairs: AcceptedDataset) -> None:
    assert held_out_texts([pairs], [*CONTEXTS, CONTEXTS[1]]) == ["nephrolith", *CONTEXTS[1:]]
    assert held_out_texts([], CONTEXTS) == CONTEXTS
    # A text of a test split that distillation learnt from, as a context, is not held out.
    assert held_out_texts([pairs], CONTEXTS[1:], learnt=["nephrolith"]) == CONTEXTS[1:]


def test_fidelity_is_the_cosine_to_the_bases_own_reading(subjects: dict[str, Subject], new_words: NewWords) -> None:
    texts = [*CONTEXTS, "a dog", "dog <|IsA|>"]
    found = measure_fidelity(subjects["base"], list(subjects.values()), texts, new_words)
    assert found is not None
    assert list(found.items) == [*CONTEXTS, "dog <|IsA|>"], "a text without a new word is read alike by any model"
    assert found.values["base"].tolist() == [1.0] * 7
    own, goal = (subjects[name].encode(["dog <|IsA|>"])[0] for name in ("merged", "base"))
    cosine = own @ goal / np.linalg.norm(own) / np.linalg.norm(goal)
    assert found.values["merged"][-1] == pytest.approx(cosine, abs=1e-6)
    shown = fidelity_json(found, 17)
    assert shown is not None
    assert shown["gain"] == pytest.approx(found.values["merged"].mean(), abs=1e-6)
    assert shown["low"] <= shown["gain"] <= shown["high"]
    assert (shown["queries"], shown["groups"]) == (7, 7)


def test_a_destroyed_row_is_seen_in_fidelity(graft: Graft, subjects: dict[str, Subject], new_words: NewWords) -> None:
    broken = load(graft.merged["tokens"])
    rows_of(broken)[[token.id for token in graft.tokens]] *= -20
    both = [*subjects.values(), Subject("broken", broken, new_words, 4)]
    found = measure_fidelity(subjects["base"], both, CONTEXTS, new_words)
    assert found is not None
    assert (found.values["broken"] < found.values["merged"]).all()


def test_a_model_of_another_width_has_no_fidelity(subjects: dict[str, Subject], new_words: NewWords) -> None:
    merged = subjects["merged"]
    merged.encode(CONTEXTS)
    merged._rows = {None: {text: row[:16] for text, row in merged._rows[None].items()}}
    found = measure_fidelity(subjects["base"], list(subjects.values()), CONTEXTS, new_words)
    assert found is not None and list(found.values) == ["base"]
    assert fidelity_json(found, 17) is None


def test_tokens_saved_are_counted_text_by_text(subjects: dict[str, Subject], new_words: NewWords) -> None:
    texts = ["a dog", "nephrolith", "nephrolith", "dog <|IsA|> animal"]
    found = measure_tokens(list(subjects.values()), texts, new_words)
    assert found is not None
    pieces = len(subjects["base"].model.tokenizer("nephrolith", add_special_tokens=False)["input_ids"])
    assert found.values["base"].tolist() == [2.0, pieces, pieces, 6.0]
    assert found.values["merged"].tolist() == [2.0, 1.0, 1.0, 3.0]
    compared = found.compare("base", "merged", "all", 17)
    assert compared is not None and compared.gain == (2 * (pieces - 1) + 3) / 4
    assert len(set(found.groups)) == 3, "a text that stands there twice is one witness"
    assert measure_tokens(list(subjects.values()), [], new_words) is None


def run(graft: Graft, questions: Questions) -> Evaluation:
    """Evaluate a merged model."""
    models = {"base": graft.base, "resized": graft.resized, "merged": graft.merged["tokens"]}
    return evaluate({name: load(folder) for name, folder in models.items()}, questions, graft.tokens, PARAMS, 17)


def test_a_vocabulary_with_contexts_alone_is_evaluated(graft: Graft) -> None:
    retention = (["a dog", "the cat", "water"], ["a cat", "the bird", "fish"], [0.9, 0.4, 0.6])
    found = run(graft, Questions([], retention, contexts=CONTEXTS, held_out_contexts=CONTEXTS[:4]))
    assert found.comparison["items"] == []
    shown = found.comparison["without_labels"]
    assert shown["fidelity"]["queries"] == shown["tokens_per_text"]["queries"] == 4
    assert shown["tokens_per_text"]["gain"] > 0
    assert found.metrics["merged"]["fidelity"] == pytest.approx(shown["fidelity"]["gain"], abs=1e-4)
    assert found.metrics["base"]["fidelity"] == 1.0
    saved = found.metrics["base"]["tokens_per_text"] - found.metrics["merged"]["tokens_per_text"]
    assert saved == pytest.approx(shown["tokens_per_text"]["gain"], abs=1e-4)


def test_tokens_per_text_are_those_of_test_splits_where_there_are_any(graft: Graft, pairs: AcceptedDataset) -> None:
    retention = (["a dog", "the cat", "water"], ["a cat", "the bird", "fish"], [0.9, 0.4, 0.6])
    found = run(graft, Questions([pairs], retention, contexts=CONTEXTS, held_out_contexts=CONTEXTS))
    assert found.metrics["merged"]["tokens_per_text"] == 1.0
    assert found.comparison["without_labels"]["tokens_per_text"]["queries"] == 2


def test_nothing_held_out_is_said_and_measures_nothing(graft: Graft, write_dataset: WriteDataset) -> None:
    trained_on = write_dataset("terms", "pairs", ("anchor", "positive"), train=[("nephrolith", "stone")])
    retention = (["a dog", "the cat", "water"], ["a cat", "the bird", "fish"], [0.9, 0.4, 0.6])
    found = run(graft, Questions([trained_on], retention))
    assert found.comparison["without_labels"] == {"fidelity": None, "tokens_per_text": None}
    assert found.metrics["merged"]["tokens_per_text"] is None
    problems = found.comparison["problems"]
    assert any(problem.startswith("terms has no test row") for problem in problems)
    assert any(problem.startswith("fidelity: not measured") for problem in problems)
