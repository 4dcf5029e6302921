"""The base model as a stage sees it: named in `params.yaml`, identified in `base.json`, found on this machine."""

from pathlib import Path

from vocabgraft.artifacts import read_json, require_artifact
from vocabgraft.base_model import REGISTRY_PREFIX, BaseIdentity, identify_base, locate_base
from vocabgraft.params import BaseParams


def resolve_base(params: BaseParams) -> tuple[Path, BaseIdentity]:
    """Find the base and say what it is; a registry alias is resolved to its version."""
    resolved = params.model
    if params.model.startswith(REGISTRY_PREFIX):
        from tasks._registry import resolve_version

        resolved = resolve_version(params.model)
    folder = _folder_of(resolved, params.revision)
    return folder, identify_base(folder, params, resolved)


def find_base(identity_file: Path) -> Path:
    """The folder of the base that `validate_data` identified; refused when its weights are others by now."""
    identity = BaseIdentity(**read_json(require_artifact(identity_file)))
    folder = _folder_of(identity.model, identity.revision)
    identify_base(folder, BaseParams(model=identity.model, sha256=identity.sha256), identity.model)
    return folder


def _folder_of(model: str, revision: str | None) -> Path:
    if model.startswith(REGISTRY_PREFIX):
        from tasks._registry import download_model

        return download_model(model)
    return locate_base(model, revision)
