"""Stage merge_adapter: merges the adapter into the resized base, and writes the new words as a pack."""

import logging
from pathlib import Path

from tasks.support.models import find_base
from tasks.support.stage import run_stage
from vocabgraft.config.stages import BaseParams, MergeAdapterParams
from vocabgraft.data.accepted import read_contexts, read_datasets, training_texts
from vocabgraft.model_folder.remote_code import copy_code
from vocabgraft.models.base import carry_own_code, load_model
from vocabgraft.models.saving import PACK_FOLDER, save_model
from vocabgraft.packs.from_run import pack_run, why_no_pack
from vocabgraft.packs.pack_files import write_pack_inside
from vocabgraft.storage.artifacts import new_folder, read_json, require_artifact
from vocabgraft.tokens.tokenizer import read_tokens
from vocabgraft.training.adapters import merged_model

logger = logging.getLogger(__name__)


def merge_adapter(
    base_identity: Path,
    tokens: Path,
    resized: Path,
    adapter: Path,
    datasets: Path,
    contexts: Path,
    out: Path,
    params: MergeAdapterParams,
    base: BaseParams,
) -> None:
    """Merge on the CPU, so that the result does not depend on the hardware, and write the pack inside the model."""
    trusted = base.trust_remote_code
    new = read_tokens(tokens)
    gated = read_json(require_artifact(adapter) / "report.json")["method"] == "gated"
    merged = merged_model(require_artifact(resized), adapter, trusted, [token.id for token in new] if gated else ())
    reason = why_no_pack(merged, adapter, new)
    with new_folder(out) as work:
        save_model(merged, work)
        if trusted:
            copy_code(resized, work)
        carry_own_code(work)
        if reason is None:
            model = load_model(find_base(base_identity, trusted), device="cpu", trust_remote_code=trusted)
            texts = training_texts(read_datasets(datasets), read_contexts(contexts))
            name = read_json(base_identity)["model"]
            pack = pack_run(model, name, merged, new, resized, adapter, texts, params)
            write_pack_inside(pack, work / PACK_FOLDER)
    if reason is not None:
        logger.info("no vocabulary pack is written: %s", reason)


if __name__ == "__main__":
    raise SystemExit(run_stage(merge_adapter))
