"""Checks of the rows of the input embeddings, and of all other weights."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.result import Finding, at_most, none_of
from vocabgraft.models.absent_weights import absent_weights
from vocabgraft.models.extra_modules import custom_weight
from vocabgraft.token_embeddings.sinks import ALONE_AND_IN_SENTENCE, SinkProbe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# 2**15 rows of width 1,024 take 128 MB.
ROWS_AT_ONCE = 2**15


def old_rows_resized(evidence: Evidence) -> Finding:
    """Old rows that resizing changed."""
    return _changed_rows(evidence, "resized")


def old_rows_adapter(evidence: Evidence) -> Finding:
    """Old rows that differ with the adapter over the resized base."""
    return _changed_rows(evidence, "adapter")


def old_rows_merged(evidence: Evidence) -> Finding:
    """Old rows that differ after the merge."""
    return _changed_rows(evidence, "merged")


def new_rows_finite(evidence: Evidence) -> Finding:
    """New rows with NaN or infinity."""
    rows = rows_of(evidence.model("merged"), evidence.new_ids)
    broken = (~rows.isfinite()).any(dim=1).tolist()
    return none_of([token.text for token, is_broken in zip(evidence.tokens, broken, strict=True) if is_broken])


def new_row_norms(evidence: Evidence) -> Finding:
    """The ratio by which norms of new rows leave the range of the old norms: 1 is the edge of the range.

    A row outside is over- or underweighted: the layer norm adds it to position and type embeddings, which were trained
    together with rows of the old norms.
    """
    old = rows_of(evidence.model("base"), _kept_ids(evidence, used_only=True)).norm(dim=1)
    # The padding token's row may be zeros, which is not the norm of a word.
    low, high = float(old[old > 0].min()), float(old.max())
    norms = rows_of(evidence.model("merged"), evidence.new_ids).norm(dim=1)
    ratios = torch.maximum(norms / high, low / norms)
    limit = evidence.params.max_norm_ratio
    outside = [
        f"{token.text}: norm {norm:.4g}, old rows {low:.4g} to {high:.4g}"
        for token, norm, ratio in zip(evidence.tokens, norms.tolist(), ratios.tolist(), strict=True)
        if not ratio <= limit
    ]
    return at_most(float(ratios.max()), limit, outside)


def new_rows_apart(evidence: Evidence) -> Finding:
    """The largest cosine of two new rows."""
    unit = torch.nn.functional.normalize(rows_of(evidence.model("merged"), evidence.new_ids), dim=1)
    limit = evidence.params.max_row_cosine
    largest, near = 0.0, []
    for place in range(len(unit) - 1):
        cosines = unit[place + 1 :] @ unit[place]
        largest = max(largest, float(cosines.max()))
        # In float32 the cosine of a row with itself may exceed 1 by 1e-7.
        for other in (~(cosines <= limit)).nonzero()[:, 0].tolist():
            pair = evidence.tokens[place].text, evidence.tokens[place + 1 + other].text
            near.append(f"{pair[0]} and {pair[1]}: cosine {float(cosines[other]):.7f}")
    return at_most(float("nan") if bool(unit.isnan().any()) else largest, limit, near)


def new_rows_trained(evidence: Evidence) -> Finding:
    """New rows that training did not change, except those that no training text holds or that were reset."""
    trained = [token for token in evidence.tokens if token.text not in evidence.may_stay]
    ids = [token.id for token in trained]
    start, end = (rows_of(evidence.model(artifact), ids) for artifact in ("resized", "merged"))
    same = (start == end).all(dim=1).tolist()
    left = [token.text for token, is_same in zip(trained, same, strict=True) if is_same]
    return none_of(left, _remark(evidence))


def attention_sinks(evidence: Evidence) -> Finding:
    """The largest ratio of a new token's hidden activation to the first token's, alone and in a sentence."""
    tokens, limits = evidence.tokens, evidence.sink_limits
    probe = SinkProbe.of(
        evidence.model("merged"), evidence.new_ids, [token.text for token in tokens], ALONE_AND_IN_SENTENCE
    )
    ratios = np.nan_to_num(probe.ratios(evidence.model("merged")), nan=0.0)
    order = np.argsort(-ratios).tolist()
    named = [f"{tokens[place].text}: {ratios[place]:.2f}" for place in order]
    sinks = [line for line, place in zip(named, order, strict=True) if ratios[place] > limits.sink]
    unusual = [
        f"{line}, larger than for any of the base's own words"
        for line, place in zip(named, order, strict=True)
        if limits.usual < ratios[place] <= limits.sink
    ]
    usual = f"largest of the base's own words: {limits.usual:.2f}"
    found = at_most(float(ratios.max(initial=0.0)), limits.sink, [*(sinks or named[:3]), usual], unusual)
    by_token = {
        token.text: (float(ratio), bool(ratio <= limits.sink)) for token, ratio in zip(tokens, ratios, strict=True)
    }
    return replace(found, by_token=by_token)


def other_weights(evidence: Evidence) -> Finding:
    """Weights other than the input embeddings that differ after merging.

    Custom modules are not part of the base, nor are weights that the base's file does not hold.
    """
    base, merged = (evidence.model(artifact).state_dict() for artifact in ("base", "merged"))
    rows = count_rows(evidence.model("merged"))
    embeddings = {name for name, tensor in merged.items() if tensor.shape[:1] == (rows,)}
    # Each load draws them again, so they differ between any two loads of the base itself.
    drawn = absent_weights(evidence.model("base"))
    return none_of(
        [
            name
            for name in sorted((set(base) | set(merged)) - embeddings - drawn)
            if not custom_weight(name)
            and (name not in base or name not in merged or not torch.equal(base[name], merged[name]))
        ]
    )


def rows_of(model: "SentenceTransformer", ids: Sequence[int]) -> torch.Tensor:
    """The model's input embedding of each id, with the rows of an adapter: (ids, width) in float32."""
    embeddings = model[0].auto_model.get_input_embeddings()
    with torch.no_grad():
        found: torch.Tensor = embeddings(torch.tensor(list(ids), dtype=torch.long))
    return found.float()


def count_rows(model: "SentenceTransformer") -> int:
    """The number of rows of the model."""
    return int(model[0].auto_model.get_input_embeddings().weight.shape[0])


def _remark(evidence: Evidence) -> list[str]:
    return [
        f"{reason}: {', '.join(sorted(names)[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}"
        for reason, names in (
            ("without a training text, so at their initial values", evidence.without_training_text),
            ("reset as attention sinks, some to their initial values", evidence.set_back),
        )
        if names
    ]


def _changed_rows(evidence: Evidence, artifact: Artifact) -> Finding:
    base, model = evidence.model("base"), evidence.model(artifact)
    ids, rows = _kept_ids(evidence), count_rows(model)
    lost = [token_id for token_id in ids if token_id >= rows]
    changed = [f"{_piece(base, token_id)}: no row" for token_id in lost]
    for block in _blocks(ids[: len(ids) - len(lost)]):
        before, after = rows_of(base, block), rows_of(model, block)
        if before.shape[1] != after.shape[1]:
            changed += [f"{_piece(base, token_id)}: width {after.shape[1]}" for token_id in block]
            continue
        moved = (before != after).any(dim=1)
        largest = (before - after).abs().amax(dim=1)
        changed += [
            f"{_piece(base, block[place])}: by up to {float(largest[place]):.3g}"
            for place in moved.nonzero()[:, 0].tolist()
        ]
    return none_of(changed)


def _kept_ids(evidence: Evidence, used_only: bool = False) -> list[int]:
    """The base's ids in order, without those that train (tokens of an earlier run, or former padding rows)."""
    base = evidence.model("base")
    rows = min(count_rows(base), len(base.tokenizer)) if used_only else count_rows(base)
    new = set(evidence.new_ids)
    return [token_id for token_id in range(rows) if token_id not in new]


def _piece(model: "SentenceTransformer", token_id: int) -> str:
    return f"{model.tokenizer.convert_ids_to_tokens(token_id)} ({token_id})"


def _blocks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + ROWS_AT_ONCE] for start in range(0, len(ids), ROWS_AT_ONCE))
