"""The checks of the tokenizer hold for every family of tokenizers, and see what a reload loses in each."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tokenizer_families import FAMILIES, as_fast
from vocabgraft.checks.context import UNICODE, choose_probes
from vocabgraft.checks.segmentation import (
    differences,
    one_id_each,
    segmentation,
    special_tokens,
    tokenizer_reload,
    tokenizers_equal,
)
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import extend_tokenizer, load_tokenizer

NEW = (
    NewToken("nephrolith", "word", "a stone"),
    NewToken("Hepatoma", "word", "a pain"),
    NewToken("\u814e\u7d50\u77f3", "word", "a stone of the kidney"),
    NewToken("->", "symbol", "is made into"),
    NewToken("<|IsA|>", "special", "is a kind of"),
)
TEXTS = ["a nephrolith of the kidney", "dog <|IsA|> animal", "the kidney of a dog", "nephroliths"]


def evidence_of(build: Callable[[], Any], lost: int = 0) -> Any:
    """A base's tokenizer and its extension, as the base and every artifact after it have them."""
    base, extended = as_fast(build()), as_fast(build())
    tokens = tuple(extend_tokenizer(extended, build(), NEW, 64))
    made = extended
    if lost:
        made = as_fast(build())
        extend_tokenizer(made, build(), NEW[:-lost], 64)
    models = {name: SimpleNamespace(tokenizer=made) for name in ("resized", "adapter", "merged")}
    models["base"] = SimpleNamespace(tokenizer=base)
    probes = choose_probes(extended, TEXTS, tokens, 32)
    return SimpleNamespace(
        model=models.__getitem__, tokenizer=extended, tokens=tokens, probes=probes, trust_remote_code=False
    )


CHECKS = (segmentation, one_id_each, tokenizers_equal, tokenizer_reload, special_tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sound_tokenizer_of_every_family_passes(name: str) -> None:
    evidence = evidence_of(FAMILIES[name])
    assert {check.__name__: check(evidence).details for check in CHECKS if not check(evidence).holds} == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_lost_token_is_named_in_every_family(name: str) -> None:
    evidence = evidence_of(FAMILIES[name], lost=1)
    for check in (one_id_each, tokenizers_equal):
        assert any("<|IsA|>" in detail for detail in check(evidence).details)


@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_a_batch_makes_no_difference_and_another_flag_does(name: str, tmp_path: Path) -> None:
    extended = evidence_of(FAMILIES[name]).tokenizer
    extended.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    extended.backend_tokenizer.enable_padding()
    extended.backend_tokenizer.enable_truncation(8)
    assert differences(extended, again, list(UNICODE)) == []
    from tokenizers import AddedToken

    again.add_tokens([AddedToken("nephrolith", single_word=False, normalized=True)])
    assert any("added token" in found for found in differences(extended, again, TEXTS))
