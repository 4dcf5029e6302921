"""Packs carried between all-MiniLM-L6-v2 and a small base of another family, and what each method is good for."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.vocabgraft.carrying_samples import CONTEXTS, WORDS, build_small_base, minilm, pack_of
from tests.vocabgraft.conftest import Graft, load
from vocabgraft.config.stages import DistillationParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import encode
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.pack import PackAdapter, PackToken, adapter_from, identify
from vocabgraft.packs.transfer import (
    METHODS,
    Carried,
    Method,
    carry_over,
    least_squares,
    matching_pursuit,
    measure,
    prepare,
    rotation,
    source_goals,
    with_rows,
)
from vocabgraft.token_embeddings.distill import is_held_out
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SETTINGS = DistillationParams(least_steps=60, learning_rate=2e-2, held_out=0.3, precision="float32")


@pytest.fixture(scope="module")
def large() -> "SentenceTransformer":
    return minilm()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> "SentenceTransformer":
    return load(build_small_base(tmp_path_factory.mktemp("small") / "small"))


@pytest.fixture(scope="module")
def carried(large: "SentenceTransformer", small: "SentenceTransformer") -> dict[Method, Carried]:
    pack = pack_of(large)
    return {method: carry_over(pack, small, "small", method, SETTINGS, 0, large) for method in METHODS}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_matching_pursuit_finds_a_sparse_mixture_and_gives_the_same_one() -> None:
    source, target = drawn(200, 32), drawn(200, 20, seed=1)
    weights = torch.zeros(3, 200)
    for row, places in enumerate([[5], [17, 90], [3, 44, 150]]):
        weights[row, places] = torch.tensor([1.5, -0.7, 0.4][: len(places)])
    found = matching_pursuit(weights @ source, source, target, atoms=12)
    assert torch.allclose(found.float(), weights @ target, atol=1e-5)


def test_matching_pursuit_takes_as_many_as_there_are_and_as_the_source_is_wide() -> None:
    source, target, rows = drawn(5, 32), drawn(5, 20, seed=1), drawn(2, 32, seed=2)
    exact = torch.linalg.lstsq(source.T, rows.T).solution.T @ target
    assert torch.allclose(matching_pursuit(rows, source, target).float(), exact, atol=1e-4)
    assert torch.isfinite(matching_pursuit(drawn(2, 8), drawn(90, 8), drawn(90, 4))).all()


def test_least_squares_finds_the_map_between_two_spaces() -> None:
    source, rows = drawn(300, 16), drawn(4, 16, seed=1)
    matrix, moved = drawn(16, 24, seed=2), drawn(24, seed=3)
    found = least_squares(rows, source, source @ matrix + moved)
    assert torch.allclose(found.float(), rows @ matrix + moved, atol=1e-4)
    assert torch.isfinite(least_squares(rows, source[:9], (source @ matrix)[:9])).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_carried_pack_is_one_of_the_new_base(
    carried: dict[Method, Carried], small: "SentenceTransformer", large: "SentenceTransformer", method: Method
) -> None:
    done = carried[method]
    assert done.pack.base == identify(small, "small")
    assert done.pack.texts == tuple(word.text for word in WORDS)
    assert done.pack.rows.shape == (3, 24) and torch.isfinite(done.pack.rows).all()
    assert (done.shared is None) == method.endswith("distillation")
    assert done.pack.figures["carried_over"]["carried_from"]["weights_sha256"] == pack_of(large).base.weights_sha256
    assert done.pack.contexts == CONTEXTS and done.seconds > 0
    bank = VocabularyBank(small)
    bank.put(done.pack)
    merged = with_rows(prepare(done.pack, small), done.pack.rows)
    from_bank = bank.encode(list(CONTEXTS), vocabulary="clinic", batch_size=8)
    assert np.allclose(from_bank, encode(merged, CONTEXTS, 8), atol=1e-6)


def test_distillation_reads_as_the_new_base_did_where_the_start_does_not(
    carried: dict[Method, Carried], small: "SentenceTransformer", large: "SentenceTransformer"
) -> None:
    """Fidelity on texts that no row was trained on, beside the mean of the pieces and beside random rows."""
    pack = pack_of(large)
    short = SETTINGS.model_copy(update={"least_steps": 1, "epochs": 1, "learning_rate": 1e-9})
    start = carry_over(pack, small, "small", "distillation", short, 0)
    assert carried["distillation"].quality.mean > max(start.quality.mean, 0.9)
    target = prepare(pack, small)
    contexts = _contexts_of(target)
    random = measure(with_rows(target, drawn(3, 24, seed=5)), small, contexts, 8)
    assert random.mean < carried["distillation"].quality.mean - 0.05


def _contexts_of(target: Any) -> Any:
    from vocabgraft.token_embeddings.distill import find_contexts

    return find_contexts(CONTEXTS, target.tokenizer, target.tokens, target.tokenizer.unk_token_id)


def test_a_rotation_is_found_between_spaces_of_other_widths() -> None:
    turn = torch.linalg.qr(drawn(24, 16)).Q
    source, moved = drawn(200, 24, seed=1), drawn(16, seed=2)
    assert torch.allclose(rotation(source @ turn @ turn.T, source @ turn + moved), turn, atol=1e-4)
    back = rotation(source @ turn, source @ turn @ turn.T)
    assert torch.allclose(back, turn.T, atol=1e-4)


def test_goals_of_the_pack_at_home_are_what_it_reads_there(small: "SentenceTransformer") -> None:
    """Over the same base the rotation is none, so the new base's reading is moved to the very reading of the pack."""
    pack = pack_of(small)
    target = prepare(pack, small)
    contexts = _contexts_of(target)
    goals = source_goals(pack, target, contexts, small, SETTINGS)
    at_home = encode(with_rows(target, pack.rows), [context.text for context in contexts], 8)
    at_home /= np.linalg.norm(at_home, axis=1, keepdims=True)
    assert np.allclose(goals, at_home, atol=1e-4)
    own = encode(small, [context.teacher_text for context in contexts], 8)
    assert not np.allclose(goals, own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-2)


def test_what_the_rows_say_is_reported_apart_from_what_an_adapter_says(tiny_base: Path, graft: Graft) -> None:
    base = load(tiny_base)
    pack = replace(pack_of(base), adapter=adapter_from(graft.adapters["lora_and_tokens"]))
    target = prepare(pack, base)
    bank = VocabularyBank(base)
    bank.put(pack)
    contexts = _contexts_of(target)
    words = bank.encode([context.text for context in contexts], vocabulary="clinic")
    pieces = bank.encode([context.teacher_text for context in contexts], vocabulary=None)
    goals = source_goals(pack, target, contexts, base, SETTINGS)
    moved = np.linalg.norm(goals.numpy() - pieces, axis=1)
    # The adapter moves the texts further than the rows do.
    assert (moved < np.linalg.norm(words - pieces, axis=1)).mean() > 0.8


def test_source_distillation_brings_what_the_rows_learnt_where_distillation_does_not(
    small: "SentenceTransformer",
) -> None:
    pack = pack_of(small)
    target = prepare(pack, small)
    contexts = [context for context in _contexts_of(target) if is_held_out(context.text, SETTINGS.held_out)]
    texts = [context.text for context in contexts]
    at_home = encode(with_rows(target, pack.rows), texts, 8)

    def nearness(method: Method) -> float:
        rows = carry_over(pack, small, "small", method, SETTINGS, 0, small).pack.rows
        found = encode(with_rows(target, rows), texts, 8)
        cosines = (found * at_home).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(at_home, axis=1)
        return float(cosines.mean())

    assert nearness("source_distillation") > nearness("distillation") + 0.05


def test_a_pack_goes_the_other_way_too(small: "SentenceTransformer", large: "SentenceTransformer") -> None:
    done = carry_over(pack_of(small), large, "large", "least_squares", SETTINGS, 0, small)
    assert done.pack.rows.shape == (3, 384) and done.shared is not None and done.shared > 50


def test_the_bases_stay_as_they_are(small: "SentenceTransformer", large: "SentenceTransformer") -> None:
    before = identify(small, "small"), identify(large, "large")
    required = [parameter.requires_grad for parameter in small.parameters()]
    carry_over(pack_of(large), small, "small", "distillation", SETTINGS, 0)
    assert (identify(small, "small"), identify(large, "large")) == before
    assert [parameter.requires_grad for parameter in small.parameters()] == required


def test_a_text_that_finds_itself_first_counts_whole_and_a_tie_counts_against(small: "SentenceTransformer") -> None:
    contexts = _contexts_of(prepare(pack_of(small), small))
    same = [replace(context, text=context.teacher_text) for context in contexts]
    quality = measure(small, small, same, 8)
    assert quality.mean == pytest.approx(1, abs=1e-5)
    assert measure(small, small, [same[0], same[0]], 8).reciprocal_rank == 50


def test_a_token_that_the_new_base_has_is_left_out_and_an_adapter_left_behind(
    small: "SentenceTransformer", large: "SentenceTransformer"
) -> None:
    tokens = (*(PackToken.of(word) for word in WORDS), PackToken.of(NewToken("kidney", "word", "")))
    adapter = PackAdapter({"peft_type": "LORA"}, {"x": torch.zeros(1)})
    pack = replace(pack_of(small), tokens=tokens, rows=drawn(4, 24), adapter=adapter)
    done = carry_over(pack, large, "large", "matching_pursuit", SETTINGS, 0, small)
    assert done.left_out == ("kidney",) and done.adapter_left and done.pack.adapter is None
    assert done.pack.texts == tuple(word.text for word in WORDS)


def test_bad_input_is_refused(small: "SentenceTransformer", large: "SentenceTransformer") -> None:
    pack = pack_of(large)

    def carry(method: Any = "distillation", source: Any = None, **changes: Any) -> None:
        carry_over(replace(pack, **changes), small, "small", method, SETTINGS, 0, source)

    with pytest.raises(VocabgraftError, match="no method 'guess'; allowed: distillation, source_dist"):
        carry("guess")
    with pytest.raises(VocabgraftError, match="least_squares needs the pack's own base"):
        carry("least_squares")
    with pytest.raises(VocabgraftError, match="the pack 'clinic' is for the base"):
        carry("least_squares", small)
    with pytest.raises(VocabgraftError, match="holds no texts with its tokens"):
        carry(contexts=())
    with pytest.raises(VocabgraftError, match="none of the 1 texts of the pack 'clinic' holds one of its tokens"):
        carry(contexts=("a dog",))
    kidney = (PackToken.of(NewToken("kidney", "word", "")),)
    with pytest.raises(VocabgraftError, match="reads each of the 1 tokens of 'clinic' as one token already"):
        carry_over(replace(pack_of(small), tokens=kidney), large, "large", "distillation", SETTINGS, 0)


def test_bases_that_share_too_little_are_refused(
    small: "SentenceTransformer", large: "SentenceTransformer", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vocabgraft.packs.transfer.shared_tokens", lambda first, second: [(1, 1)] * 15)
    with pytest.raises(VocabgraftError, match="the bases share 15 tokens, too few"):
        carry_over(pack_of(large), small, "small", "matching_pursuit", SETTINGS, 0, large)
