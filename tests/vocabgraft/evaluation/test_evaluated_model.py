"""A model under evaluation: each text embedded once, in lists that two models share."""

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, load, rows_of
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.evaluated_model import NewWords, Subject, compare_speed

TEXTS = ["a dog", "the nephrolith", "water in blood", "a cat and a fish", "thrombopenia of the dog"]


@pytest.fixture
def new_words(graft: Graft) -> NewWords:
    """Which texts hold a new token of the graft."""
    return NewWords(load(graft.merged["tokens"]).tokenizer, graft.tokens)


def test_a_text_is_embedded_once_whatever_it_is_asked_as(
    graft: Graft, new_words: NewWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = load(graft.base), list[str]()
    own = model.encode
    monkeypatch.setattr(model, "encode", lambda inputs, **options: (seen.extend(inputs), own(inputs, **options))[1])
    subject = Subject("base", model, new_words, 2)
    first = subject.encode([*TEXTS, TEXTS[0]])
    assert (first[0] == first[-1]).all()
    for role in ("query", "document"):
        assert (subject.encode(TEXTS, role) == first[:-1]).all()  # type: ignore[arg-type]
    assert sorted(seen) == sorted(TEXTS)


def test_a_prompt_makes_a_query_another_text_than_a_document(graft: Graft, new_words: NewWords) -> None:
    model = load(graft.base)
    model.prompts = {"query": "query: ", "document": ""}
    subject = Subject("base", model, new_words, 2)
    assert (subject.encode(TEXTS, "query") != subject.encode(TEXTS, "document")).any(axis=1).all()
    expected = model.encode_query(["a dog"], show_progress_bar=False)
    assert np.abs(subject.encode(["a dog"], "query") - expected).max() <= 1e-6


def test_what_holds_no_new_token_is_embedded_bit_for_bit_as_by_the_base(graft: Graft, new_words: NewWords) -> None:
    base, merged = (
        Subject(name, load(folder), new_words, 2).encode(TEXTS)
        for name, folder in (("base", graft.base), ("merged", graft.merged["tokens"]))
    )
    held = new_words.held(TEXTS)
    assert held.tolist() == [False, True, False, False, True]
    assert (base[~held] == merged[~held]).all()
    assert (base[held] != merged[held]).any(axis=1).all()


def test_a_text_holds_a_new_word_where_the_tokenizer_emits_a_new_id_of_any_kind(new_words: NewWords) -> None:
    texts = ["dog <|IsA|>", "nephrolith <|IsA|>", "dog", "dog <|Unknown|>"]
    assert new_words.held(texts).tolist() == [True, True, False, False]


def test_a_special_token_is_read_as_its_description_where_it_is_not_known(graft: Graft, new_words: NewWords) -> None:
    described = [token.new_token for token in graft.tokens]
    subject = Subject("base", load(graft.base), new_words, 2, described)
    assert subject.read(["dog <|IsA|> animal"]) == ["dog is a kind of animal"]
    assert subject.token_counts(["dog <|IsA|> animal", "dog"]).tolist() == [6.0, 1.0]
    assert subject.token_counts([]).tolist() == []
    assert np.abs(subject.encode(["dog <|IsA|> animal"]) - subject.encode(["dog is a kind of animal"])).max() <= 1e-6


def test_an_embedding_that_is_no_number_is_refused_with_its_text(graft: Graft, new_words: NewWords) -> None:
    damaged = load(graft.merged["tokens"])
    rows_of(damaged)[graft.tokens[0].id] = float("inf")
    with pytest.raises(VocabgraftError, match=r"the merged model's embedding of 'the nephrolith' .* \(1 of 5 texts\)"):
        Subject("merged", damaged, new_words, 2).encode(TEXTS)


class Clock:
    """Stands still but for what work adds."""

    def __init__(self) -> None:
        self.now, self.turns = 0.0, list[str]()

    def work(self, name: str, *seconds: float) -> object:
        """A function that takes these seconds, one after the other."""
        remaining = iter(seconds)

        def run() -> None:
            self.turns.append(name)
            self.now += next(remaining)

        return run


def test_the_two_take_turns_and_the_ratio_is_the_median_of_rounds() -> None:
    clock = Clock()
    # In the second round the machine is five times as slow for both, in the third for one alone.
    base, merged = clock.work("base", 2.0, 10.0, 2.0), clock.work("merged", 1.0, 5.0, 5.0)
    found = compare_speed(base, merged, 100, 3, lambda: clock.now)  # type: ignore[arg-type]
    assert clock.turns == ["base", "merged"] * 3
    assert found == {"base_texts_per_second": 50.0, "merged_texts_per_second": 20.0, "ratio": 2.0}
