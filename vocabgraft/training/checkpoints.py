"""Checkpoints of a training: written atomically, checked before use, deleted when the training succeeds."""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import MANIFEST, digest_of, hash_files, new_folder, read_json, write_json
from vocabgraft.training.adapters import trainable_parameters
from vocabgraft.training.embedding_cache import ConstantTable
from vocabgraft.training.losses import Losses, own_parameters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
CURVE = "curve.json"
SET_BACK = "set_back.json"
# If one is damaged, the one before is used.
KEPT = 2
STEP = re.compile(r"step-(\d{8})$")
CONSTANTS = re.compile(r"(\d{8})-(\d+)-([0-9a-f]{16})\.safetensors$")


@dataclass
class PhaseCheckpoints:
    """The checkpoints of one training phase, in a folder of its own.

    Attributes:
        folder: of the phase.
        every: steps between two checkpoints.
        rank: of this process in a distributed training.
        table: embeddings of texts that the training cannot change (`vocabgraft.training.embedding_cache`). An embedding
            depends by about 1e-7 on the other texts of its batch, so the table is saved too, each part once.
    """

    folder: Path
    every: int
    rank: int = 0
    table: ConstantTable = field(default_factory=ConstantTable)
    kept_of_table: int = 0

    @property
    def best(self) -> Path:
        """The folder in which the trainer keeps the weights of the best evaluation."""
        return self.folder / "best"

    @property
    def done(self) -> Path:
        """The file that a finished phase writes."""
        return self.folder / "done"

    def newest(self) -> Path | None:
        """The newest complete checkpoint; damaged newer ones are reported in a warning."""
        for step in sorted(self._steps(), reverse=True):
            found = self.path_of(step)
            if is_whole(found):
                return found
            logger.warning("the checkpoint %s is damaged; the one before it is used, or none", found)
        return None

    def path_of(self, step: int) -> Path:
        """The folder of the checkpoint of this step."""
        return self.folder / f"step-{step:08d}"

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """Yield an empty folder that becomes the checkpoint of `step` if the block succeeds; older ones are deleted."""
        with new_folder(self.path_of(step)) as work:
            yield work
        for old in sorted(self._steps(), reverse=True)[KEPT:]:
            shutil.rmtree(self.path_of(old))

    def keep_table(self, step: int) -> None:
        """Write the new entries of the table, to a file whose name contains its hash."""
        from safetensors.torch import save

        new = self.table.keys_from(self.kept_of_table)
        if not new:
            return
        data = save(
            {
                "keys": torch.frombuffer(bytearray(b"".join(new)), dtype=torch.uint8),
                "lengths": torch.tensor([len(key) for key in new]),
                "embeddings": self.table.take(new),
            }
        )
        folder = self.folder / "constants"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{step:08d}-{self.rank}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors").write_bytes(data)
        self.kept_of_table = len(self.table)

    def take_table(self, step: int) -> None:
        """Fill the table with the entries saved up to `step`; a damaged part is computed again without an error."""
        for path in sorted((self.folder / "constants").glob("*.safetensors")):
            found = CONSTANTS.search(path.name)
            if not found or int(found[2]) != self.rank:
                continue
            data = path.read_bytes()
            if int(found[1]) > step or hashlib.sha256(data).hexdigest()[:16] != found[3]:
                path.unlink()
                continue
            self.table.add(*_read_table(data))
        self.kept_of_table = len(self.table)

    def _steps(self) -> list[int]:
        return [int(found[1]) for path in self.folder.glob("step-*") if (found := STEP.search(path.name))]


def is_whole(folder: Path) -> bool:
    """Whether a folder matches its manifest."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (VocabgraftError, KeyError, TypeError):
        return False
    return bool(files == hash_files(folder))


def save_weights(model: "SentenceTransformer", losses: Losses, path: Path) -> None:
    """Write everything that a training may have changed: adapter, custom modules, buffers, parameters of the losses."""
    from safetensors.torch import save_file

    # Copies, since two names may share memory, which safetensors refuses.
    save_file({name: tensor.detach().cpu().clone() for name, tensor in _changing(model, losses).items()}, path)


def load_weights(model: "SentenceTransformer", losses: Losses, path: Path) -> None:
    """Load what `save_weights` wrote.

    Raises:
        VocabgraftError: when the file belongs to another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    wanted = _changing(model, losses)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VocabgraftError(f"{path} cannot be read: {error}; delete {path.parent} and run again") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in wanted.items()}:
        raise VocabgraftError(f"{path} belongs to another model; delete {path.parent} and run again")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def share_weights(model: "SentenceTransformer", losses: Losses) -> None:
    """Copy the weights of the first process to all other processes."""
    for tensor in _changing(model, losses).values():
        values = tensor.detach().contiguous()
        torch.distributed.broadcast(values, src=0)
        with torch.no_grad():
            tensor.copy_(values)


def save_done(
    model: "SentenceTransformer",
    losses: Losses,
    curve: Sequence[Any],
    set_back: Mapping[str, int],
    folder: Path,
) -> None:
    """Save the results of a finished phase for the next one."""
    with new_folder(folder) as work:
        save_weights(model, losses, work / WEIGHTS)
        write_json(work / CURVE, list(curve))
        write_json(work / SET_BACK, dict(set_back))


def key_of(value: Any) -> str:
    """The name of a training's folder: a digest of its inputs and of the libraries."""
    from importlib.metadata import version

    libraries = ("torch", "transformers", "sentence-transformers", "peft", "accelerate")
    return digest_of([value, {name: version(name) for name in libraries}])


def _changing(model: "SentenceTransformer", losses: Losses) -> dict[str, torch.Tensor]:
    state = model.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in state}
    of_model: dict[str, torch.Tensor] = trainable_parameters(model) | buffers
    named = {f"model.{name}": tensor for name, tensor in of_model.items()}
    return named | {f"loss.{name}": tensor for name, tensor in own_parameters(losses, model).items()}


def _read_table(data: bytes) -> tuple[list[bytes], torch.Tensor]:
    from safetensors.torch import load

    stored = load(data)
    joined, ends = stored["keys"].numpy().tobytes(), stored["lengths"].cumsum(0).tolist()
    keys = [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return keys, stored["embeddings"]
