"""One of several processes of test_distributed.py: trains and writes its gradients and weights."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tests.vocabgraft.conftest import load, train_params
from tests.vocabgraft.training.test_checkpoints import accepted
from vocabgraft.training import distributed as processes
from vocabgraft.training.fit import train_adapter
from vocabgraft.training.trainer import AdapterTrainer


def first_gradients(
    resized: Path,
    folder: Path,
    new_ids: list[int],
    changes: dict[str, Any],
    checkpoints: Path | None = None,
    dies_at: int | None = None,
) -> dict[str, Any]:
    """The gradients of the first step, and the weights after the training, which a kill may end at a step."""
    own, seen = AdapterTrainer.training_step, dict[str, torch.Tensor]()
    steps: list[int] = []

    def step(self: AdapterTrainer, *args: Any) -> torch.Tensor:
        steps.append(self.state.global_step)
        if self.state.global_step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = own(self, *args)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                seen.setdefault(name, parameter.grad.clone())
        return loss

    AdapterTrainer.training_step = step  # type: ignore[method-assign]
    model = load(resized)
    for module in model.modules():
        # Each process would drop other values.
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    try:
        result = train_adapter(model, accepted(folder), new_ids, train_params(**changes), 3, checkpoints=checkpoints)
    finally:
        AdapterTrainer.training_step = own  # type: ignore[method-assign]
    trained = {name: value.detach() for name, value in model.named_parameters() if "trainable_tokens" in name}
    return {
        "gradients": seen,
        "trained": trained,
        "steps": steps,
        "curve": [(e["phase"], e["step"], e.get("loss"), e.get("eval_terms_loss")) for e in result.curve],
    }


KEPT, DIES_AT = "SHARING_KEPT", "SHARING_DIES_AT"
CHANGES: dict[str, Any] = {
    # Not all of a dataset's batches are of one length then.
    "batch_size": 10,
    "epochs": 2,
    "method": "lora_and_tokens",
    # One of the dense layers is the pooler's, which gets no gradient.
    "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["query", "dense"]},
    "phases": [{"train": "rows", "epochs": 1}, {"train": "all", "epochs": 1}],
}


if __name__ == "__main__":
    processes.enter()
    resized, folder, out, *ids = sys.argv[1:]
    kept = Path(out) / "kept" if KEPT in os.environ else None
    # One process alone dies, as one machine of several would.
    dies_at = int(os.environ[DIES_AT]) if DIES_AT in os.environ and processes.rank() == 1 else None
    changes = CHANGES | ({"checkpoint_every": 2} if kept else {})
    found = first_gradients(Path(resized), Path(folder), [int(number) for number in ids], changes, kept, dies_at)
    torch.save(found, Path(out) / f"{processes.rank()}.pt")
    processes.leave()
