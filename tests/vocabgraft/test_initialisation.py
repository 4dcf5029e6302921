"""Where new rows start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vocabgraft.errors import VocabgraftError
from vocabgraft.initialisation import subword_mean
from vocabgraft.tokenizer import ExtendedToken
from vocabgraft.vocabulary import Kind

WEIGHT = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
UNKNOWN = 1


def token(pieces: tuple[int, ...], described: tuple[int, ...] = (), kind: Kind = "word") -> ExtendedToken:
    """A token of these pieces."""
    return ExtendedToken("renal", kind, "", 12, pieces, described)


@given(pieces=st.lists(st.integers(2, 11), min_size=1, max_size=6))
def test_a_word_starts_at_the_mean_of_its_pieces(pieces: list[int]) -> None:
    row = subword_mean(WEIGHT, [token(tuple(pieces), (3,))], UNKNOWN)
    torch.testing.assert_close(row[0], WEIGHT[pieces].mean(dim=0))


def test_a_special_token_starts_from_its_description() -> None:
    row = subword_mean(WEIGHT, [token((2, 3), (4, 5), "special")], UNKNOWN)
    torch.testing.assert_close(row[0], WEIGHT[[4, 5]].mean(dim=0))


@pytest.mark.parametrize("kind", ["word", "symbol"])
def test_unknown_pieces_are_left_out_of_the_mean(kind: Kind) -> None:
    rows = subword_mean(WEIGHT, [token((2, UNKNOWN, 3), (4,), kind)], UNKNOWN)
    torch.testing.assert_close(rows[0], WEIGHT[[2, 3]].mean(dim=0))


def test_a_word_of_unknown_pieces_only_starts_from_its_description() -> None:
    row = subword_mean(WEIGHT, [token((UNKNOWN, UNKNOWN), (UNKNOWN, 4))], UNKNOWN)
    torch.testing.assert_close(row[0], WEIGHT[4])


def test_without_an_unknown_token_every_piece_counts() -> None:
    row = subword_mean(WEIGHT, [token((0, UNKNOWN))], None)
    torch.testing.assert_close(row[0], WEIGHT[:2].mean(dim=0))


@pytest.mark.parametrize(
    "unreadable", [token((UNKNOWN,)), token(()), token((UNKNOWN,), (UNKNOWN,)), token((2,), (), "special")]
)
def test_a_token_that_says_nothing_is_refused_by_name(unreadable: ExtendedToken) -> None:
    with pytest.raises(VocabgraftError, match=r"token 'renal' has no piece .* add a description"):
        subword_mean(WEIGHT, [token((2,)), unreadable], UNKNOWN)


def test_rows_come_in_order_and_in_the_type_of_the_weights() -> None:
    rows = subword_mean(WEIGHT.to(torch.bfloat16), [token((2,)), token((5,)), token((3,))], UNKNOWN)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, WEIGHT.to(torch.bfloat16)[[2, 5, 3]])


def test_a_mean_in_half_precision_is_not_summed_in_half_precision() -> None:
    # 4096 rows of 16 add up to 65536, which is infinite in float16.
    rows = subword_mean(torch.full((12, 2), 16.0, dtype=torch.float16), [token((2,) * 4096)], UNKNOWN)
    assert torch.equal(rows, torch.full((1, 2), 16.0, dtype=torch.float16))
