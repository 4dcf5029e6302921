"""A training that was killed goes on to the very weights and curve that it would have had."""

import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.import_server import ImportServer
from tests.vocabgraft.conftest import Graft, WriteDataset, load, train_params
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.adapters import trainable_parameters
from vocabgraft.training.checkpoints import PhaseCheckpoints, is_whole, key_of
from vocabgraft.training.fit import TrainingResult, train_adapter
from vocabgraft.training.trainer import AdapterTrainer

HEADS = ("big", "old", "new", "red", "own", "sad", "dry", "wet")


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


@pytest.fixture
def datasets(write_dataset: WriteDataset) -> list[AcceptedDataset]:
    """Pairs with a validation split, and triples; some texts have no new word."""
    pairs: list[tuple[str | None, ...]] = [
        (f"{head} {word}", f"{head} {meaning}", word)
        for head in HEADS
        for word, meaning in (("nephrolith", "stone"), ("thrombopenia", "low blood"), ("dog", "animal"))
    ]
    triples: list[tuple[str | None, ...]] = [(f"{head} dog", "IsA", f"{head} animal") for head in HEADS]
    return [
        write_dataset("terms", "pairs", ("anchor", "positive", "group"), train=pairs, validation=pairs[:6]),
        write_dataset("relations", "triples", ("head", "relation", "tail"), train=triples),
    ]


def run(
    graft: Graft, datasets: list[AcceptedDataset], checkpoints: Path | None, **changes: Any
) -> tuple[dict[str, torch.Tensor], TrainingResult]:
    model = load(graft.resized)
    params = train_params(**{"batch_size": 4, "epochs": 2, "checkpoint_every": 3} | changes)
    result = train_adapter(model, datasets, graft.new_ids, params, 3, checkpoints=checkpoints)
    return {name: value.detach().clone() for name, value in trainable_parameters(model).items()}, result


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """End the training at its n-th batch, once; give the batches that were trained after it was started again."""
    own, calls = AdapterTrainer.training_step, []

    def step(self: AdapterTrainer, *args: Any) -> torch.Tensor:
        calls.append(self.state.global_step)
        if len(calls) == call:
            raise Killed
        return own(self, *args)

    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    return calls


SMALL = {"logging_steps": 2}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("in the first epoch", 5, {}),
    ("in the second epoch, between logged steps", 14, {"arguments": SMALL}),
    ("right after an epoch", 9, {"checkpoint_every": 8}),
    ("with dropout and an adapter", 11, {"method": "lora_and_tokens"}),
    ("in the second phase", 12, {"method": "lora_and_tokens", "phases": [{"train": "rows", "epochs": 1}, {}]}),
    ("with another method of PEFT", 11, {"method": "peft"}),
    (
        "in the second phase of a variant of LoRA",
        12,
        {"method": "peft_and_tokens", "phases": [{"train": "rows", "epochs": 1}, {}]},
    ),
    ("with every weight", 11, {"method": "full"}),
    ("in the second phase with every weight", 12, {"method": "full", "epochs": 1, "phases": [{}, {}]}),
    ("with batches that add up", 13, {"arguments": {"gradient_accumulation_steps": 2, "logging_steps": 3}}),
    (
        "with the best weights before it",
        15,
        {"best_metric": "eval_loss", "arguments": {"eval_strategy": "steps", "eval_steps": 2}},
    ),
]


@pytest.mark.parametrize(("call", "changes"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_training_goes_on_to_the_same_weights_and_curve(
    call: int,
    changes: dict[str, Any],
    graft: Graft,
    datasets: list[AcceptedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed, expected = run(graft, datasets, None, **changes)
    calls = kill_at(monkeypatch, call)
    with pytest.raises(Killed):
        run(graft, datasets, tmp_path / "kept", **changes)
    # Another process has drawn other numbers by then.
    torch.rand(7)
    resumed, result = run(graft, datasets, tmp_path / "kept", **changes)
    assert result == expected
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    batches = len(calls) - call
    assert 0 < batches < 17 if "phases" in changes else calls[call] > 0, "it went on, and not from the start"


def test_a_process_that_is_killed_loses_nothing(
    graft: Graft, datasets: list[AcceptedDataset], tmp_path: Path, import_server: ImportServer
) -> None:
    undisturbed, expected = run(graft, datasets, None)
    code = """
import os, signal, sys
from pathlib import Path
from tests.vocabgraft.conftest import load, train_params
from vocabgraft.training.trainer import AdapterTrainer
from vocabgraft.training.fit import train_adapter
from tests.vocabgraft.training.test_checkpoints import accepted
resized, folder, kept, *ids = sys.argv[1:]
own = AdapterTrainer.training_step
def step(self, *args):
    if self.state.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return own(self, *args)
AdapterTrainer.training_step = step
params = train_params(batch_size=4, epochs=2, checkpoint_every=3)
train_adapter(load(Path(resized)), accepted(Path(folder)), [int(i) for i in ids], params, 3, checkpoints=Path(kept))
"""
    kept = tmp_path / "kept"
    arguments = [str(graft.resized), str(datasets[0].folder.parent), str(kept), *map(str, graft.new_ids)]
    script = tmp_path / "killed.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", encoding="utf-8")
    request = {"script": str(script), "arguments": arguments, "cwd": str(ROOT), "env": {}}
    ended, errors = import_server.run(request)
    assert ended == -signal.SIGKILL, errors
    assert (kept / "phase-1" / "step-00000006").is_dir()
    resumed, result = run(graft, datasets, kept)
    assert result == expected
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def accepted(folder: Path) -> list[AcceptedDataset]:
    """The fixture's datasets, in another process."""
    return [
        AcceptedDataset("terms", "pairs", folder / "terms"),
        AcceptedDataset("relations", "triples", folder / "relations"),
    ]


def test_a_damaged_checkpoint_is_named_and_left_out(
    graft: Graft,
    datasets: list[AcceptedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    undisturbed, expected = run(graft, datasets, None)
    calls = kill_at(monkeypatch, 8)
    with pytest.raises(Killed):
        run(graft, datasets, tmp_path)
    newest = tmp_path / "phase-1" / "step-00000006" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, logger="vocabgraft"):
        resumed, result = run(graft, datasets, tmp_path)
    assert f"the checkpoint {newest.parent} is damaged" in caplog.text
    assert calls[8] == 3
    assert result == expected
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_a_lost_loss_names_the_last_checkpoint(
    graft: Graft, datasets: list[AcceptedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = AdapterTrainer.compute_loss

    def lost(self: AdapterTrainer, *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = own(self, *args, **options)
        return loss * float("nan") if self.state.global_step == 7 else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", lost)
    last = tmp_path / "phase-1" / "step-00000006"
    with pytest.raises(VocabgraftError, match=r"NaN or infinite at step 8; .* the last checkpoint is ") as caught:
        run(graft, datasets, tmp_path)
    assert str(last) in str(caught.value)
    assert is_whole(last)


def test_without_checkpoint_every_nothing_is_written(
    graft: Graft, datasets: list[AcceptedDataset], tmp_path: Path
) -> None:
    run(graft, datasets, tmp_path / "kept", checkpoint_every=None)
    assert not (tmp_path / "kept").exists()


def test_few_checkpoints_are_kept_and_a_phase_that_ended_is_not_trained_again(
    graft: Graft, datasets: list[AcceptedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, expected = run(graft, datasets, tmp_path)
    assert sorted(path.name for path in (tmp_path / "phase-1").glob("step-*")) == ["step-00000012", "step-00000015"]
    monkeypatch.setattr(AdapterTrainer, "train", lambda *args, **options: pytest.fail("trained again"))
    again, result = run(graft, datasets, tmp_path)
    assert result == expected
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_table_of_constant_texts_is_kept_in_parts_and_a_damaged_part_is_left_out(tmp_path: Path) -> None:
    kept = PhaseCheckpoints(tmp_path, 3)
    kept.table.add([b"one", b"seven"], torch.tensor([[1.0, 1.0], [7.0, 7.0]]))
    kept.keep_table(3)
    kept.table.add([b"two"], torch.full((1, 2), 2.0))
    kept.keep_table(6)
    kept.keep_table(9)
    parts = sorted((tmp_path / "constants").iterdir())
    assert len(parts) == 2
    taken = PhaseCheckpoints(tmp_path, 3)
    taken.take_table(6)
    assert taken.table.keys_from(0) == [b"one", b"seven", b"two"]
    assert taken.table.take([b"one", b"seven", b"two"]).tolist() == [[1.0, 1.0], [7.0, 7.0], [2.0, 2.0]]
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    damaged = PhaseCheckpoints(tmp_path, 3)
    damaged.take_table(6)
    assert damaged.table.keys_from(0) == [b"two"]


def test_the_key_depends_on_all_that_it_is_made_of() -> None:
    assert key_of({"seed": 1}) == key_of({"seed": 1})
    assert key_of({"seed": 1}) != key_of({"seed": 2})
