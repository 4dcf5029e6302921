"""The base model as a stage sees it: named in `params.yaml`, identified in `base.json`, found on this machine."""

from pathlib import Path

from vocabgraft.config.stages import BaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import PACKAGE_PREFIX, REGISTRY_PREFIX, BaseIdentity, identify_base, locate_base
from vocabgraft.storage.artifacts import read_json, require_artifact


def resolve_base(params: BaseParams) -> tuple[Path, BaseIdentity]:
    """Find the base and say what it is; a registry alias is resolved to its version."""
    resolved = params.model
    if params.model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import resolve_version

        resolved = resolve_version(params.model)
    folder = _folder_of(resolved, params.revision, params.trust_remote_code)
    return folder, identify_base(folder, params, resolved)


def find_base(identity_file: Path, trust_remote_code: bool = False) -> Path:
    """The folder of the base that `validate_data` identified.

    Args:
        identity_file: base.json.
        trust_remote_code: whether the caller is to run the base's own code.

    Raises:
        VocabgraftError: when its weights are others by now, or the code that is to run.
    """
    identity = BaseIdentity(**read_json(require_artifact(identity_file)))
    folder = _folder_of(identity.model, identity.revision, trust_remote_code)
    known = BaseParams(model=identity.model, sha256=identity.sha256, trust_remote_code=trust_remote_code)
    seen = identify_base(folder, known, identity.model).code
    if trust_remote_code and seen != identity.code:
        before = identity.code or {}
        changed = sorted(name for name in {*before, *(seen or {})} if before.get(name) != (seen or {}).get(name))
        raise VocabgraftError(
            f"the code of {identity.model} is not what validate_data saw ({', '.join(changed) or 'none was allowed'}), "
            "so it is not run; run validate_data again"
        )
    return folder


def _folder_of(model: str, revision: str | None, trust_remote_code: bool) -> Path:
    if model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import download_model

        return download_model(model)
    return locate_base(model, revision, trust_remote_code)


def model_folder(option: str, model: str) -> Path:
    """The folder of a model given as a folder, `package:MODULE/FOLDER` or `models:/NAME@ALIAS`.

    Raises:
        VocabgraftError: when it is not there.
    """
    if model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import download_model, resolve_version

        return download_model(resolve_version(model))
    if model.startswith(PACKAGE_PREFIX):
        return locate_base(model)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise VocabgraftError(
            f"{option} is {model!r}, which is no folder; allowed: a model's folder, package:MODULE/FOLDER, "
            "models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    return folder
