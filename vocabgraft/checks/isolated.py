"""Encodes in another process that has only stock sentence-transformers and a model's folder."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from vocabgraft.checks import isolated_worker
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings
from vocabgraft.storage.artifacts import write_json

Place = Literal["base", "folder", "moved", "alone"]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# A base of several GB loads in a minute or two from a slow disk. A hanging process must not block the checks.
TIMEOUT_SECONDS = 900


class FreshProcess:
    """One process for all checks that need one, because its imports cost 3 to 8 s of CPU.

    It runs in an empty folder. It loads the base, the model in its folder, a copy in another folder, and then the copy
    again while the folders of the model, the base and the other artifacts cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        base: Path,
        others: Sequence[Path],
        lists: Sequence[Sequence[str]],
        batch_size: int,
        trust_remote_code: bool = False,
        trust_model_code: bool | None = None,
    ) -> None:
        """Prepare the process without starting it.

        Args:
            folder: folder of the model.
            base: folder of the base, which shows how much another process changes any model's encodings.
            others: other folders that a service does not have.
            lists: lists of texts, each encoded separately.
            batch_size: batch size of the encoding.
            trust_remote_code: whether code in the folders runs.
            trust_model_code: whether code in the model's folder runs; by default as `trust_remote_code`.
        """
        self.lists = tuple(tuple(texts) for texts in lists)
        self._folder, self._base, self._batch_size = folder.resolve(), base.resolve(), batch_size
        self._others = [path.resolve() for path in (base, *others)]
        self._trust_remote_code = trust_remote_code
        self._trust_model_code = trust_remote_code if trust_model_code is None else trust_model_code
        self._running: tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str]] | None = None
        self._found: dict[str, Embeddings | str] | None = None

    def start(self) -> None:
        """Start the process in the background."""
        if self._running or self._found is not None or not self.lists:
            return
        scratch = tempfile.TemporaryDirectory()
        root = Path(scratch.name)
        shutil.copytree(self._folder, root / "elsewhere" / "model")
        (root / "empty").mkdir()
        request = {
            "base": str(self._base),
            "folder": str(self._folder),
            "moved": str(root / "elsewhere" / "model"),
            "others": [str(path) for path in (self._folder, *self._others)],
            "lists": self.lists,
            "batch_size": self._batch_size,
            "threads": torch.get_num_threads(),
            "trust_remote_code": self._trust_remote_code,
            "trust_model_code": self._trust_model_code,
        }
        write_json(root / "request.json", request)
        script = str(Path(isolated_worker.__file__).resolve())
        process = subprocess.Popen(
            # -P: do not import from the script's own folder.
            [sys.executable, "-P", script, str(root / "request.json"), str(root / "result.npz")],
            cwd=root / "empty",
            # A separate cache for code, because the user's has the code of the other folders already.
            env=os.environ | OFFLINE | {"HF_MODULES_CACHE": str(root / "code")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running = process, scratch

    def encodings(self, place: Place) -> list[Embeddings]:
        """The encodings of each list by the base, or by the model in its folder, moved, or moved and alone.

        Raises:
            VocabgraftError: if there is no text, or the model does not load or encode there.
        """
        if not self.lists:
            raise VocabgraftError(
                "there are no probe texts of both kinds to encode in another process; add retention pairs with and "
                "without new words"
            )
        if self._found is None:
            self.start()
            self._found = self._finish()
        if f"{place}_error" in self._found:
            what = "base" if place == "base" else "model"
            raise VocabgraftError(f"in a separate process the {what} does not work: {self._found[f'{place}_error']}")
        return [np.asarray(self._found[f"{place}_{number}"]) for number in range(len(self.lists))]

    def _finish(self) -> "dict[str, Embeddings | str]":
        assert self._running is not None
        process, scratch = self._running
        self._running = None
        with scratch:
            try:
                _, output = process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return _failed(f"it took longer than {TIMEOUT_SECONDS} s and was stopped")
            result = Path(scratch.name) / "result.npz"
            if process.returncode or not result.is_file():
                why = (output.strip() or "it printed nothing").splitlines()[-1]
                return _failed(f"it ended with code {process.returncode}: {why}")
            with np.load(result, allow_pickle=False) as arrays:
                return {
                    name: str(values) if name.endswith("_error") else values for name, values in dict(arrays).items()
                }


def _failed(message: str) -> "dict[str, Embeddings | str]":
    return {f"{place}_error": message for place in get_args(Place)}
