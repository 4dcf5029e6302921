"""Gathers the files of a model and sends them to a model hub in one commit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.saving import PACK_FOLDER
from vocabgraft.storage.artifacts import MANIFEST

CARD = "README.md"
# Loading these runs code.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")


@dataclass(frozen=True)
class Publication:
    """A model as it goes to the hub.

    Attributes:
        repo: `OWNER/NAME` or `NAME`.
        public: whether a new repository is visible to everybody.
        card: the text of README.md.
        files: all other files by their path in the repository.
    """

    repo: str
    public: bool
    card: str
    files: Mapping[str, Path]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, the card included, in order of their paths."""
        sizes = {path: file.stat().st_size for path, file in self.files.items()}
        return dict(sorted({CARD: len(self.card.encode("utf-8")), **sizes}.items()))

    def as_json(self) -> dict[str, Any]:
        """The publication without the contents of its files."""
        return {"repo": self.repo, "public": self.public, "files": self.sizes, "card": self.card}


def require_repo_name(repo: str) -> None:
    """Raise VocabgraftError if no repository can have this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, yet not listed

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise VocabgraftError(f"--repo is {repo!r}: {error}") from error


def gather_files(folder: Path, pack: Path | None = None, onnx: Path | None = None) -> dict[str, Path]:
    """The files of a model by their path in the repository, without its card.

    Args:
        folder: a saved sentence-transformers model.
        pack: its vocabulary pack, which goes to `pack/`.
        onnx: an export by `vocabgraft export`; its graph goes to `onnx/`, and `export.json` beside it.

    Raises:
        VocabgraftError: when the model is incomplete or has a pickle.
    """
    if not (folder / "modules.json").is_file():
        raise VocabgraftError(f"{folder} has no modules.json, so it is not a sentence-transformers model; name one")
    files = _files(folder, "")
    if pack is not None:
        files |= _files(pack, f"{PACK_FOLDER}/", keep_manifest=True)
    if onnx is not None:
        files |= _files(onnx / "onnx", "onnx/") | {"export.json": onnx / "export.json"}
        if not (onnx / "onnx" / "model.onnx").is_file() or not (onnx / "export.json").is_file():
            raise VocabgraftError(f"--onnx is {onnx}, which is not an export; make it with `vocabgraft export`")
    if pickled := sorted(name for name in files if name.endswith(PICKLES)):
        raise VocabgraftError(f"{folder} has {', '.join(pickled)}; only safetensors are shared, so delete them")
    return files


def send(publication: Publication, message: str) -> str:
    """Create the repository if it is missing, send everything in one commit, and return the commit's URL.

    The variable HF_ENDPOINT names the server; HF_TOKEN or `hf auth login` gives the token.

    Raises:
        VocabgraftError: when there is no token, or the server refuses or cannot be reached. Nothing is committed then.
    """
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise VocabgraftError("there is no token for the hub; set HF_TOKEN, or run `hf auth login` once")
    api = HfApi(library_name="vocabgraft")
    additions = [CommitOperationAdd(CARD, publication.card.encode("utf-8"))]
    additions += [CommitOperationAdd(path, file) for path, file in sorted(publication.files.items())]
    try:
        api.create_repo(publication.repo, private=not publication.public, exist_ok=True)
        made = api.create_commit(publication.repo, additions, commit_message=message)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise VocabgraftError(f"{api.endpoint} refused {publication.repo}: {error}; nothing was committed") from error
    return str(made.commit_url)


def _files(folder: Path, prefix: str, keep_manifest: bool = False) -> dict[str, Path]:
    """Files below a folder by their path in the repository, without the bookkeeping of this project."""
    inside = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    dropped = {CARD} if keep_manifest else {CARD, MANIFEST}
    return {
        f"{prefix}{name}": path
        for name, path in sorted(inside.items())
        if name not in dropped and not any(part.startswith((".", "__pycache__")) for part in Path(name).parts)
    }
