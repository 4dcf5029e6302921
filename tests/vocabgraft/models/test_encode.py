"""Encoding for comparisons."""

import numpy as np

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.models.encode import encode, encode_apart, split_by_new_token

PLAIN = ["a dog", "the cat of the house and the dog of the house", "water"]
NEW = ["a nephrolith", "pain with the nephrolith in the kidney is high and the patient is used to sleep"]


def test_no_text_gives_no_row_of_the_right_width(graft: Graft) -> None:
    model = load(graft.base)
    assert encode(model, [], 4).shape == (0, 32)
    assert encode_apart(model, [], np.zeros(0, dtype=bool), 4).shape == (0, 32)


def test_the_prompt_of_the_role_is_read(graft: Graft) -> None:
    model = load(graft.base)
    model.prompts = {"query": "query ", "document": "passage "}
    plain = encode(model, ["query a dog", "passage a dog", "a dog"], 4)
    for place, role in enumerate(("query", "document", None)):
        assert np.allclose(encode(model, ["a dog"], 4, role)[0], plain[place], atol=1e-6)  # type: ignore[arg-type]
    assert np.abs(plain[0] - plain[1]).max() > 1e-3


def test_texts_come_back_in_their_places(graft: Graft) -> None:
    model = load(graft.base)
    texts = [PLAIN[0], NEW[0], PLAIN[1], NEW[1], PLAIN[2]]
    apart = encode_apart(model, texts, np.array([False, True, False, True, False]), 2)
    alone = np.concatenate([encode(model, [text], 1) for text in texts])
    assert np.allclose(apart, alone, atol=1e-6)


def test_untouched_texts_are_equal_bit_for_bit_whatever_stands_beside_them(graft: Graft) -> None:
    base, merged = load(graft.base), load(graft.merged["tokens"])
    held = np.array([False, True, False, True, False])
    texts = [PLAIN[0], NEW[0], PLAIN[1], NEW[1], PLAIN[2]]
    before, after = encode_apart(base, texts, held, 4), encode_apart(merged, texts, held, 4)
    assert np.array_equal(before[~held], after[~held])
    assert np.array_equal(after[~held], encode(merged, PLAIN, 4))
    assert np.abs(before[held] - after[held]).max() > 1e-3


def test_texts_are_parted_by_whether_they_hold_a_new_token(graft: Graft) -> None:
    tokenizer = load(graft.merged["tokens"]).tokenizer
    parted = split_by_new_token(tokenizer, [PLAIN[0], NEW[0], "nephroliths", NEW[1]], graft.new_ids)
    assert parted == (NEW, [PLAIN[0], "nephroliths"])
