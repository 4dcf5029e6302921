"""A separate program that encodes as a service would: with a model's folder and without the project.

Run as `python -P isolated_worker.py REQUEST RESULT`; it imports only stock sentence-transformers. REQUEST is JSON with
`base`, `folder`, `moved` (a copy of `folder`), `lists` of texts, `batch_size`, `threads`, `trust_remote_code` for the
base, `trust_model_code` for the model, and `others`, the folders of the base and the other artifacts. RESULT gets the
encodings of each list by the base (`base`), by the model in its folder (`folder`), by the copy (`moved`), and by the
copy while none of the other folders can be opened (`alone`). If one fails, its error is written instead.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def hide(folders: list[str]) -> None:
    """From now on, opening or listing anything in these folders fails."""
    hidden = {Path(folder).resolve() for folder in folders}

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir") or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = Path(os.fsdecode(arguments[0]))
        # A hub's cache contains links to files elsewhere, so check both the link and its target.
        for found in (path.parent.resolve() / path.name, path.resolve()):
            if hidden & {found, *found.parents}:
                raise FileNotFoundError(2, "opened a folder that a service would not have", str(path))

    sys.addaudithook(look)


def encode(folder: str, request: dict[str, Any], trusted: bool) -> list["np.ndarray[Any, Any]"]:
    """The encodings of each list, by the model as stock sentence-transformers loads it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", local_files_only=True, trust_remote_code=trusted)
    options = {"batch_size": request["batch_size"], "show_progress_bar": False, "convert_to_numpy": True}
    return [np.asarray(model.encode(texts, **options), dtype=np.float32) for texts in request["lists"]]


def main(request_file: Path, result: Path) -> None:
    """Encode with the base, and with the model in place, moved, and moved with everything else hidden."""
    request = json.loads(request_file.read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(request["threads"])
    arrays: dict[str, Any] = {}
    for place, folder in (("base", "base"), ("folder", "folder"), ("moved", "moved"), ("alone", "moved")):
        if place == "alone":
            hide(request["others"])
        try:
            trusted = request["trust_remote_code" if place == "base" else "trust_model_code"]
            found = encode(request[folder], request, trusted)
        except Exception as error:  # noqa: BLE001  # report any error that a service would get
            arrays[f"{place}_error"] = np.array(f"{type(error).__name__}: {error}")
        else:
            arrays.update({f"{place}_{number}": values for number, values in enumerate(found)})
    np.savez(result, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
