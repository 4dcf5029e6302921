"""The impact on an index: the streamed report equals the one of the whole."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import build_wordpiece
from vocabgraft.index.impact import IndexImpact, measure_impact, without_new_tokens
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.segmentation import segmentation_report
from vocabgraft.tokens.tokenizer import ExtendedToken, extend_tokenizer

NEW = [NewToken("hepatoma", "word", ""), NewToken("stent", "word", ""), NewToken("<|IsA|>", "special", "is a kind of")]
PIECES = st.sampled_from(["dog", "hepatoma", "Stent", "stents", "<|IsA|>", "<|isa|>", "xyz", "hepatoma,", "-"])


@pytest.fixture(scope="module")
def extension() -> tuple[Any, Any, list[ExtendedToken]]:
    from transformers import BertTokenizerFast

    base, extended = build_wordpiece(), BertTokenizerFast(tokenizer_object=build_wordpiece())
    return base, extended, extend_tokenizer(extended, base, NEW, 64)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(PIECES, min_size=1, max_size=6).map(" ".join), max_size=12), size=st.integers(1, 5))
def test_reading_in_blocks_gives_the_report_of_the_whole(extension: Any, texts: list[str], size: int) -> None:
    base, extended, tokens = extension
    blocks = (texts[start : start + size] for start in range(0, len(texts), size))
    impact = measure_impact(base, extended.backend_tokenizer, tokens, blocks)
    report = segmentation_report(base, extended, tokens, texts)
    assert (impact.texts, impact.texts_with_new_token, impact.uses) == (report.texts, report.texts_changed, report.uses)
    assert impact.tokens_before == pytest.approx(report.tokens_per_text_before * len(texts), abs=1e-3 * len(texts))
    assert impact.tokens_after == pytest.approx(report.tokens_per_text_after * len(texts), abs=1e-3 * len(texts))


def test_the_base_is_what_is_left_without_the_new_tokens(extension: Any) -> None:
    base, extended, tokens = extension
    stripped = without_new_tokens(extended.backend_tokenizer, tokens)
    text = "a hepatoma <|IsA|> stents, dog [MASK]"
    assert stripped.encode(text, add_special_tokens=False).ids == base.encode(text, add_special_tokens=False).ids


def test_the_share_that_stays_valid_is_of_texts_without_a_new_token() -> None:
    assert IndexImpact(4, 1, 0, 0, {}).share_valid == 0.75
    assert IndexImpact(0, 0, 0, 0, {}).share_valid == 1.0
