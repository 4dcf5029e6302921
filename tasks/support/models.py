"""The base model of a stage: its name in `params.yaml`, its identity in `base.json`, its folder here."""

from collections.abc import Mapping
from pathlib import Path

from vocabgraft.config.stages import BaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.model_files import check_files
from vocabgraft.models.base import PACKAGE_PREFIX, REGISTRY_PREFIX, BaseIdentity, identify_base, locate_base
from vocabgraft.models.gate import refuse_gated_base
from vocabgraft.storage.artifacts import read_json, require_artifact


def resolve_base(params: BaseParams) -> tuple[Path, BaseIdentity]:
    """The base's folder and identity; a registry alias is resolved to its version."""
    resolved = params.model
    if params.model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import resolve_version

        resolved = resolve_version(params.model)
    folder = _folder_of(resolved, params.revision, params.trust_remote_code)
    check_files(folder)
    refuse_gated_base(folder)
    return folder, identify_base(folder, params, resolved)


def find_base(identity_file: Path, trust_remote_code: bool = False) -> Path:
    """The folder of the base that `validate_data` identified.

    Args:
        identity_file: base.json.
        trust_remote_code: whether the base's own code may run.

    Raises:
        VocabgraftError: if a file that loading reads, or the code to run, has changed since.
    """
    identity = BaseIdentity(**read_json(require_artifact(identity_file)))
    folder = _folder_of(identity.model, identity.revision, trust_remote_code)
    known = BaseParams(model=identity.model, sha256=identity.sha256, trust_remote_code=trust_remote_code)
    seen = identify_base(folder, known, identity.model)
    if trust_remote_code and seen.code != identity.code:
        changed = _changed(identity.code or {}, seen.code or {})
        raise VocabgraftError(
            f"the code of {identity.model} has changed since validate_data "
            f"({', '.join(changed) or 'none was allowed'}), so it is not run; run validate_data again"
        )
    if changed := _changed(identity.files, seen.files):
        raise VocabgraftError(
            f"{identity.model} has changed since validate_data ({', '.join(changed)}); run validate_data again, "
            "or restore the model"
        )
    return folder


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _folder_of(model: str, revision: str | None, trust_remote_code: bool) -> Path:
    if model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import download_model

        return download_model(model)
    return locate_base(model, revision, trust_remote_code)


def model_folder(option: str, model: str) -> Path:
    """The folder of a model given as a folder, a Hub id, `package:MODULE/FOLDER` or `models:/NAME@ALIAS`.

    Args:
        option: name of the option in error messages, such as `--base`.
        model: the model.

    Raises:
        VocabgraftError: if the model is not found.
    """
    if model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import download_model, resolve_version

        return download_model(resolve_version(model))
    return locate_base(model, setting=option)


def pack_folder(option: str, pack: str) -> Path:
    """The folder of a vocabulary pack, given in the same ways as a model.

    Raises:
        VocabgraftError: if the pack is not found.
    """
    if pack.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import download_pack

        return download_pack(pack)
    # The reader of the pack checks its folder.
    return locate_base(pack, setting=option) if _is_elsewhere(pack) else Path(pack).expanduser()


def _is_elsewhere(pack: str) -> bool:
    # A Hub id has one slash. A missing path is reported as missing, not looked up on the Hub.
    is_hub_id = pack.count("/") == 1 and not pack.startswith((".", "/", "~")) and not Path(pack).parent.exists()
    return pack.startswith(PACKAGE_PREFIX) or is_hub_id
