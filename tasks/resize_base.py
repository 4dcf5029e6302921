"""Stage resize_base: adds an initialized row for each new token to the base."""

from pathlib import Path
from typing import Any

import torch

from tasks.support.models import find_base
from tasks.support.stage import run_stage
from vocabgraft.config.stages import BaseParams, ResizeBaseParams
from vocabgraft.data.accepted import read_contexts, read_datasets, training_texts
from vocabgraft.model_folder.embedding_tensor import find_embedding, read_rows
from vocabgraft.models.base import carry_own_code
from vocabgraft.models.extra_modules import add_modules
from vocabgraft.models.resize import write_resized
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.token_embeddings.build import make_rows
from vocabgraft.tokens.tokenizer import added_tokens, load_tokenizer, read_tokens


def resize_base(
    base_identity: Path,
    tokenizer: Path,
    tokens: Path,
    datasets: Path,
    contexts: Path,
    out: Path,
    params: ResizeBaseParams,
    base: BaseParams,
    seed: int,
) -> None:
    """Initialize, resize and save: an adapter trained on an unsaved resized model cannot be loaded again."""
    trusted = base.trust_remote_code
    folder = find_base(base_identity, trusted)
    extended = load_tokenizer(tokenizer, trusted)
    added = added_tokens(read_tokens(tokens))
    texts = training_texts(read_datasets(datasets), read_contexts(contexts))
    rows, distillation = make_rows(folder, extended, added, texts, params, base.prompts, seed, trusted)
    with new_folder(out) as work:
        write_resized(folder, extended, rows, base.prompts, params.pad_to_multiple_of, work, trusted)
        add_modules(work, params.modules, seed, trusted)
        # Later stages and the preflight check detect edits of an own class by this copy.
        carry_own_code(work)
        report = _report(folder, work, rows, params, trusted)
        # evaluate_model measures fidelity on the contexts that were held out of distillation.
        held_out = params.distillation.held_out if distillation else 1.0
        write_json(work / "report.json", {**report, "distillation": distillation, "held_out_contexts": held_out})


def _report(
    base: Path, resized: Path, rows: torch.Tensor, params: ResizeBaseParams, trust_remote_code: bool
) -> dict[str, Any]:
    old = read_rows(base, range(find_embedding(base, trust_remote_code).shape[0]), trust_remote_code)
    return {
        "initialisation": params.initialisation,
        "rows": find_embedding(resized, trust_remote_code).shape[0],
        "new_rows": len(rows),
        "mean_norm_of_old_rows": _mean_norm(old),
        "mean_norm_of_new_rows": _mean_norm(rows),
    }


def _mean_norm(rows: torch.Tensor) -> float:
    return round(float(rows.float().norm(dim=1).mean()), 6) if len(rows) else 0.0


if __name__ == "__main__":
    raise SystemExit(run_stage(resize_base))
