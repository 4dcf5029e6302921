"""Results for each new token (neighbors, description, held-out queries), and a map of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.evaluation.evaluated_model import Subject
from vocabgraft.evaluation.metrics import Measurement, highest
from vocabgraft.evaluation.retention import cosines_of
from vocabgraft.evaluation.significance import LEAST_GROUPS, Array, compare_means, verdict_of
from vocabgraft.models.encode import encode, reading_with
from vocabgraft.tokens.tokenizer import ExtendedToken, new_ids_in

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Matrix = np.ndarray[Any, np.dtype[np.float32]]
NEAREST = 5
RECIPROCAL_RANK = "mrr"
OLD_ROWS_ON_MAP = 2000
# 32 MB of cosines at once.
NUMBERS_AT_ONCE = 2**23


def describe_tokens(
    subjects: Mapping[str, Subject], tokens: Sequence[ExtendedToken], measured: Sequence[Measurement], seed: int
) -> dict[str, Any]:
    """Results for each new token before and after training, and a map of new and old rows.

    Args:
        subjects: `base`, `resized` and `merged`.
        tokens: tokens whose rows were trained.
        measured: measurements; only the reciprocal ranks of held-out queries are used.
        seed: seed of the tests and of the sample of old rows on the map.

    Returns:
        `tokens`, with `token`, `kind` and `id` of each; `nearest_old` and `nearest_new`, each five of [token, cosine],
        and `before` with the same for the resized model; `description`, the cosine to the description before and after;
        and `held_out` from `judge_tokens`. `map`, with `explained`, the share of variance (0 to 1) of the two axes,
        `old` as [x, y] and `new` as [x, y, token].
    """
    before, after = (nearest_tokens(subjects[name].model, tokens) for name in ("resized", "merged"))
    similar = description_similarities(subjects, tokens)
    held_out = judge_tokens(subjects["merged"], tokens, measured, seed)
    new, old, _ = _rows(subjects["merged"].model, tokens)
    return {
        "tokens": [
            {
                "token": token.text,
                "kind": token.kind,
                "id": token.id,
                **after[row],
                "before": before[row],
                "description": similar[row],
                "held_out": held_out[row],
            }
            for row, token in enumerate(tokens)
        ],
        "map": _map(new, old, tokens, seed),
    }


def nearest_tokens(model: "SentenceTransformer", tokens: Sequence[ExtendedToken]) -> list[dict[str, Any]]:
    """The five nearest old and new tokens of each token, by the cosine of input embeddings."""
    new, old, names = _rows(model, tokens)
    near_old, near_new = nearest_rows(new, old, NEAREST), nearest_rows(new, new, NEAREST, themselves=True)
    return [
        {
            "nearest_old": [[names[place], cosine] for place, cosine in near_old[row]],
            "nearest_new": [[tokens[place].text, cosine] for place, cosine in near_new[row]],
        }
        for row in range(len(tokens))
    ]


def _rows(model: "SentenceTransformer", tokens: Sequence[ExtendedToken]) -> tuple[Matrix, Matrix, list[str]]:
    """The rows of the new tokens, those of the old ones, and the old ones' names."""
    weight = model[0].auto_model.get_input_embeddings().weight.detach().float().cpu().numpy()
    names = {token_id: text for text, token_id in model.tokenizer.get_vocab().items()}
    new_ids = [token.id for token in tokens]
    # Without the model's own special tokens and padding rows, which stand for no text.
    apart = {*new_ids, *model.tokenizer.all_special_ids}
    old_ids = [token_id for token_id in sorted(names) if token_id not in apart and token_id < len(weight)]
    return weight[new_ids], weight[old_ids], [names[token_id] for token_id in old_ids]


def description_similarities(
    subjects: Mapping[str, Subject], tokens: Sequence[ExtendedToken]
) -> list[dict[str, float] | None]:
    """The cosine of each token as a text to its description, `before` and `after` training; None without a description.

    Descriptions are read with the base's tokens, because one that contains the new token would always be similar to it.
    """
    described = [token for token in tokens if token.description.strip()]
    descriptions = [token.description for token in described]
    found: dict[str, Array] = {}
    for moment, name in (("before", "resized"), ("after", "merged")):
        subject = subjects[name]
        with reading_with(subject.model, subjects["base"].model.tokenizer):
            said = encode(subject.model, descriptions, subject.batch_size)
        found[moment] = cosines_of(subject.encode([token.text for token in described]), said)
    of_token = {
        token.id: {moment: round(float(cosines[row]), 4) for moment, cosines in found.items()}
        for row, token in enumerate(described)
    }
    return [of_token.get(token.id) for token in tokens]


def judge_tokens(
    merged: Subject, tokens: Sequence[ExtendedToken], measured: Sequence[Measurement], seed: int
) -> list[dict[str, Any]]:
    """The effect of training on the held-out queries that contain each token.

    Each token is judged separately, at 95 % confidence: even without any effect, one token in forty is called worse and
    one in forty better. Equal queries count as one.

    Returns:
        For each token `queries`, their number; if there are any, `base` and `merged`, their mean reciprocal ranks in
        percent, `gain` in points and `p_value`; `verdict` (better, worse, could be chance, too few to judge); and
        `worst`, the query whose rank fell by the largest factor, with its ranks, or None if none fell.
    """
    found: dict[int, list[_Search]] = {token.id: [] for token in tokens}
    for entry in measured:
        if entry.metric == RECIPROCAL_RANK and entry.answers is not None:
            encoded = merged.model.tokenizer(list(entry.items), add_special_tokens=False, verbose=False)["input_ids"]
            for row, held in enumerate(new_ids_in(encoded, found)):
                values = float(entry.values["base"][row]), float(entry.values["merged"][row])
                for token_id in held:
                    found[token_id].append(_Search(entry.dataset, entry.items[row], *values))
    return [_judged(found[token.id], seed) for token in tokens]


@dataclass(frozen=True)
class _Search:
    """A held-out query with its reciprocal ranks, in percent, for base and merged model."""

    dataset: str
    query: str
    base: float
    merged: float


def _judged(searches: Sequence[_Search], seed: int) -> dict[str, Any]:
    if not searches:
        return {"queries": 0, "verdict": "too few to judge", "worst": None}
    base, merged = (np.array([getattr(search, model) for search in searches]) for model in ("base", "merged"))
    groups = [search.query for search in searches]
    comparison = compare_means(base, merged, groups, seed)
    enough = len(set(groups)) >= LEAST_GROUPS
    worst = min(searches, key=lambda search: search.merged / search.base)
    ranks = {model: round(100 / getattr(worst, model), 1) for model in ("base", "merged")}
    return {
        "queries": len(searches),
        "base": round(float(base.mean()), 4),
        "merged": round(float(merged.mean()), 4),
        "gain": comparison.gain,
        "p_value": comparison.p_value,
        "verdict": verdict_of(comparison, len(searches), 0) if enough else "too few to judge",
        "worst": {"dataset": worst.dataset, "query": worst.query, "rank": ranks} if worst.merged < worst.base else None,
    }


def nearest_rows(rows: Matrix, others: Matrix, count: int, themselves: bool = False) -> list[list[tuple[int, float]]]:
    """For each row, index and cosine of its `count` nearest others; ties go to the first.

    Args:
        rows: (rows, width).
        others: (others, width).
        count: number of neighbors, or of others if there are fewer.
        themselves: whether `others` are the rows; then no row is its own neighbor.
    """
    count = min(count, len(others) - themselves)
    found: list[list[tuple[int, float]]] = []
    step, units = max(1, NUMBERS_AT_ONCE // max(1, len(others))), _units(others)
    for start in range(0, len(rows), step):
        cosines = (_units(rows[start : start + step]) @ units.T).astype(np.float64).round(4)
        if themselves:
            own = np.arange(len(cosines))
            cosines[own, start + own] = -np.inf
        found += [[(place, float(row[place])) for place in highest(row, count)] for row in cosines]
    return found


def principal_axes(rows: Matrix, axes: int = 2) -> tuple[Matrix, Matrix, list[float]]:
    """Center (width,), axes (axes, width) and share of variance of each axis, by a singular value decomposition.

    The largest component of an axis is positive, so that equal rows always give the same map, not its mirror image.
    """
    centre = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd((rows - centre).astype(np.float64), full_matrices=False)
    chosen = directions[:axes]
    signs = np.sign(chosen[np.arange(len(chosen)), np.abs(chosen).argmax(axis=1)])
    variance = singular**2
    shares = variance[:axes] / max(float(variance.sum()), 1e-30)
    return centre, (chosen * signs[:, None]).astype(np.float32), [round(float(share), 4) for share in shares]


def _map(new: Matrix, old: Matrix, tokens: Sequence[ExtendedToken], seed: int) -> dict[str, Any]:
    sample = np.random.default_rng(seed).permutation(len(old))[:OLD_ROWS_ON_MAP]
    shown = old[np.sort(sample)]
    centre, axes, explained = principal_axes(np.concatenate([shown, new]))
    return {
        "explained": explained,
        "old": _points((shown - centre) @ axes.T),
        "new": [[*point, token.text] for point, token in zip(_points((new - centre) @ axes.T), tokens, strict=True)],
    }


def _points(values: "np.ndarray[Any, Any]") -> list[list[float]]:
    return [[round(float(number), 4) for number in row] for row in values]


def _units(rows: Matrix) -> Matrix:
    units: Matrix = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return units
