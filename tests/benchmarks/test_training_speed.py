"""Both sides learn the same from the same batches, and the figures are those of their runs."""

from typing import Any

import pytest
import torch

from benchmarks.row_bounds import bounded
from benchmarks.training_speed import (
    OURS,
    ROWS_ALONE,
    SIDES,
    STOCK,
    Case,
    Trained,
    _train_ours,
    _train_stock,
    gains,
    in_turn,
    speedups,
)
from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of, train_params
from vocabgraft.training.adapters import adapter_parameters
from vocabgraft.training.embedding_cache import ConstantTable

HEADS = ("big", "old", "new", "red", "own", "sad", "dry", "wet")


@pytest.fixture
def case(graft: Graft, write_dataset: WriteDataset) -> Case:
    """Pairs and triples over the tiny base."""
    pairs = [(f"{head} nephrolith", f"{head} stone") for head in HEADS]
    triples = [(f"{head} dog", "IsA", f"{head} animal") for head in HEADS]
    datasets = [
        write_dataset("terms", "pairs", ("anchor", "positive"), train=pairs, validation=pairs[:2]),
        write_dataset("relations", "triples", ("head", "relation", "tail"), train=triples),
    ]
    return Case("tiny", str(graft.resized), graft.new_ids, datasets, [])


@pytest.mark.parametrize("steps", [None, 3])
def test_without_constants_both_sides_learn_the_same_rows(graft: Graft, case: Case, steps: int | None) -> None:
    arguments = {"max_steps": steps} if steps else {}
    params = train_params(batch_size=4, epochs=2, precision="float32", rows_learning_rate=0.05, arguments=arguments)
    ours, stock = load(graft.resized), load(graft.resized)
    # The guard apart: a stock optimizer's momentum also moves rows that no text of a step holds.
    with bounded("none"):
        _train_ours(ours, case, params, constants=False)
    _train_stock(stock, case, params, "float32", steps)
    (learnt,), (expected,) = (_trained(model) for model in (ours, stock))
    assert (expected - rows_of(load(graft.resized))[graft.new_ids]).abs().max() > 0.05
    torch.testing.assert_close(learnt, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("constants", [True, False])
def test_texts_are_embedded_once_only_where_it_is_told(
    graft: Graft, case: Case, monkeypatch: pytest.MonkeyPatch, constants: bool
) -> None:
    tables: list[int] = []
    own = ConstantTable.add

    def add(self: ConstantTable, keys: Any, embeddings: torch.Tensor) -> None:
        own(self, keys, embeddings)
        tables.append(len(self))

    monkeypatch.setattr(ConstantTable, "add", add)
    _train_ours(load(graft.resized), case, train_params(batch_size=4), constants)
    assert bool(tables) == constants


def test_sides_take_turns_and_ratios_are_of_the_same_round() -> None:
    first, second = in_turn(2)
    assert (first, second) == (SIDES, SIDES[::-1])
    runs = {STOCK: [_run(10.0, 40.0), _run(20.0, 60.0)], OURS: [_run(5.0, 10.0), _run(4.0, 10.0)], ROWS_ALONE: []}
    assert speedups(runs, OURS, "seconds") == [2.0, 5.0]
    assert speedups(runs, OURS, "cpu_seconds") == [4.0, 6.0]


def test_a_gain_is_in_points_of_mrr_over_the_same_queries() -> None:
    gain, low, high = gains(_run(1, 1, [1.0, 2.0, 1.0]), _run(1, 1, [2.0, 2.0, 1.0]))["terms"]
    assert gain == pytest.approx(50 / 3)
    assert 0 <= low < gain < high <= 50


def _run(seconds: float, cpu_seconds: float, ranks: Any = ()) -> Trained:
    return Trained(seconds, cpu_seconds, 100, 0, {"terms": list(ranks)} if ranks else {})


def _trained(model: Any) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in adapter_parameters(model).values()]
