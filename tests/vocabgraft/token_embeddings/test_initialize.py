"""Where new rows start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vocabgraft.errors import VocabgraftError
from vocabgraft.token_embeddings.initialize import METHODS, Start, initial_rows
from vocabgraft.tokens.new_token import Kind
from vocabgraft.tokens.tokenizer import ExtendedToken

WEIGHT = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
UNKNOWN = 1


def started(
    weight: torch.Tensor,
    tokens: list[ExtendedToken],
    method: str = "subword_mean",
    unknown: int | None = UNKNOWN,
    seed: int = 0,
) -> torch.Tensor:
    """Rows by a method."""
    return initial_rows(method, Start(weight, tuple(tokens), unknown, seed))


def token(pieces: tuple[int, ...], described: tuple[int, ...] = (), kind: Kind = "word") -> ExtendedToken:
    """A token of these pieces."""
    return ExtendedToken("renal", kind, "", 12, pieces, described)


# The first call of torch may take longer than a deadline on a busy machine.
@settings(deadline=None)
@given(pieces=st.lists(st.integers(2, 11), min_size=1, max_size=6))
def test_a_word_starts_at_the_mean_of_its_pieces_and_is_no_shorter_than_an_old_row(pieces: list[int]) -> None:
    (row,) = started(WEIGHT, [token(tuple(pieces), (3,))])
    mean, old = WEIGHT[pieces].mean(dim=0), WEIGHT.norm(dim=1)
    torch.testing.assert_close(row / row.norm(), mean / mean.norm())
    torch.testing.assert_close(row.norm(), mean.norm() if mean.norm() >= old.min() * (1 - 1e-5) else old.median())


@pytest.mark.parametrize("method", ["subword_mean", "description_mean", "similar_tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_mean_in_a_base_of_nearly_one_length_is_as_long_as_its_rows(method: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(50, 16, generator=generator), dim=1)
    weight = (unit * torch.linspace(0.97, 1.03, 50)[:, None]).to(dtype)
    weight[0] = 0
    rows = started(weight, [token((2, 3, 4, 5), (6, 7, 8)), token((9, 10), (11, 12))], method)
    old = weight[1:].float().norm(dim=1)
    assert (rows.float().norm(dim=1) >= old.min()).all() and (rows.float().norm(dim=1) <= old.max()).all()


def test_a_special_token_starts_from_its_description() -> None:
    row = started(WEIGHT, [token((2, 3), (4, 5), "special")])
    torch.testing.assert_close(row[0], WEIGHT[[4, 5]].mean(dim=0))


@pytest.mark.parametrize("kind", ["word", "symbol"])
def test_unknown_pieces_are_left_out_of_the_mean(kind: Kind) -> None:
    rows = started(WEIGHT, [token((2, UNKNOWN, 3), (4,), kind)])
    torch.testing.assert_close(rows[0], WEIGHT[[2, 3]].mean(dim=0))


def test_a_word_of_unknown_pieces_only_starts_from_its_description() -> None:
    row = started(WEIGHT, [token((UNKNOWN, UNKNOWN), (UNKNOWN, 4))])
    torch.testing.assert_close(row[0], WEIGHT[4])


def test_without_an_unknown_token_every_piece_counts() -> None:
    row = started(WEIGHT, [token((0, UNKNOWN))], unknown=None)
    torch.testing.assert_close(row[0], WEIGHT[:2].mean(dim=0))


@pytest.mark.parametrize(
    "unreadable", [token((UNKNOWN,)), token(()), token((UNKNOWN,), (UNKNOWN,)), token((2,), (), "special")]
)
def test_a_token_that_says_nothing_is_refused_by_name(unreadable: ExtendedToken) -> None:
    with pytest.raises(VocabgraftError, match=r"token 'renal' has no subword token .* add a description"):
        started(WEIGHT, [token((2,)), unreadable])


def test_rows_come_in_order_and_in_the_type_of_the_weights() -> None:
    rows = started(WEIGHT.to(torch.bfloat16), [token((2,)), token((5,)), token((3,))])
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, WEIGHT.to(torch.bfloat16)[[2, 5, 3]])


def test_a_mean_in_half_precision_is_not_summed_in_half_precision() -> None:
    # 4096 rows of 16 add up to 65536, which is infinite in float16.
    rows = started(torch.full((12, 2), 16.0, dtype=torch.float16), [token((2,) * 4096)])
    assert torch.equal(rows, torch.full((1, 2), 16.0, dtype=torch.float16))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_finite_rows_of_the_right_shape(method: str) -> None:
    rows = started(WEIGHT, [token((2, 3), (4,)), token((5,), (6,))], method)
    assert rows.shape == (2, WEIGHT.shape[1])
    assert rows.isfinite().all()


@pytest.mark.parametrize("method", ["random_normal", "vocabulary_mean"])
def test_methods_that_draw_depend_on_their_seed_alone(method: str) -> None:
    drawn = []
    for disturbance, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(disturbance)
        before = torch.random.get_rng_state()
        drawn.append(started(WEIGHT, [token((2,)), token((3,))], method, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_vocabularys_mean_is_what_transformers_resize_draws_rows_near() -> None:
    rows = started(WEIGHT.repeat(400, 1), [token((2,)) for _ in range(50)], "vocabulary_mean")
    torch.testing.assert_close(rows.mean(dim=0), WEIGHT.mean(dim=0), atol=0.01, rtol=0)


def test_a_described_word_starts_from_its_description_and_another_from_its_pieces() -> None:
    rows = started(WEIGHT, [token((2, 3), (4, 5)), token((2, 3))], "description_mean")
    torch.testing.assert_close(rows, torch.stack([WEIGHT[[4, 5]].mean(dim=0), WEIGHT[[2, 3]].mean(dim=0)]))


def test_a_token_of_one_piece_is_most_like_that_piece() -> None:
    row = started(WEIGHT, [token((7,))], "similar_tokens")
    cosines = torch.nn.functional.cosine_similarity(row, WEIGHT)
    assert cosines.argmax() == 7


def test_an_unknown_method_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(VocabgraftError, match="no initialisation 'mean'; allowed: random_normal, vocabulary_mean"):
        started(WEIGHT, [token((2,))], "mean")


def test_a_row_of_nan_is_refused_by_name() -> None:
    weight = WEIGHT.clone()
    weight[3] = torch.nan
    with pytest.raises(VocabgraftError, match=r"1 of 2 tokens.*'renal'.*finite"):
        started(weight, [token((2,)), token((2, 3))])
