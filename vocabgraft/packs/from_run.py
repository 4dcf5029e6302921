"""Makes a pack from a run of the pipeline, or gives the reason why there is none."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.config.stages import MergeAdapterParams
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.models.gate import is_gated
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME
from vocabgraft.packs.pack import Pack, PackToken, adapter_from, choose_contexts, identify
from vocabgraft.storage.artifacts import read_json
from vocabgraft.tokens.tokenizer import ExtendedToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def why_no_pack(merged: "SentenceTransformer", adapter: Path, tokens: Sequence[ExtendedToken]) -> str | None:
    """A change of the run that a pack cannot hold, or None: a pack is new rows and an adapter over the base."""
    if not (adapter / ADAPTER_CONFIG_NAME).is_file():
        return "every weight was trained (train_adapter.method: full)"
    if custom_modules(merged):
        return f"the model has custom layers ({', '.join(custom_modules(merged))}, resize_base.modules)"
    if retrained := [token.text for token in tokens if token.retrained]:
        return f"rows of the base were trained again ({retrained[0]!r}, extend_tokenizer.retrain)"
    return None


def pack_run(
    base: "SentenceTransformer",
    base_name: str,
    merged: "SentenceTransformer",
    tokens: Sequence[ExtendedToken],
    resized: Path,
    adapter: Path,
    texts: Sequence[str],
    params: MergeAdapterParams,
) -> Pack:
    """The pack of a run for which `why_no_pack` returns None.

    Args:
        base: the model that was extended.
        base_name: its name in the run.
        merged: the run's model, from which the rows come.
        tokens: the new ones, in order of their ids.
        resized: the folder whose report has the distillation's fidelity.
        adapter: the folder of `train_adapter`.
        texts: training texts, from which the contexts are chosen.
        params: the section `merge_adapter`.
    """
    weight = merged[0].auto_model.get_input_embeddings().weight.detach()
    return Pack(
        name=params.name,
        base=identify(base, base_name),
        tokens=tuple(PackToken.of(token.new_token) for token in tokens),
        rows=weight[[token.id for token in tokens]].clone(),
        adapter=adapter_from(adapter),
        gate=tuple(token.text for token in tokens) if is_gated(merged) else None,
        contexts=choose_contexts(
            texts, merged.tokenizer, tokens, params.contexts_per_token, merged.tokenizer.unk_token_id
        ),
        figures=_figures(resized, adapter),
        licence=params.licence,
    )


def _figures(resized: Path, adapter: Path) -> dict[str, Any]:
    start, training = read_json(resized / "report.json"), read_json(adapter / "report.json")
    fidelity = (start.get("distillation") or {}).get("after", {}).get("all")
    learnt = {name: training[name] for name in ("method", "examples", "final_loss", "trainable_parameters")}
    return {"initialisation": start["initialisation"], "fidelity_before_training": fidelity, "training": learnt}
