"""Results for each new token: its neighbors, its description, its held-out queries; and a map of all."""

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
    """What is known of each new token before and after training, and a map of new among old rows.

    Args:
        subjects: `base`, `resized` and `merged`.
        tokens: those whose rows trained.
        measured: of which the reciprocal ranks of held-out queries are used.
        seed: of the tests, and of the sample of old rows on the map.

    Returns:
        `tokens`: of each `token`, `kind`, `id`; `nearest_old` and `nearest_new`, each five of [token, cosine], and
        `before` with the same of the resized model; `description`, the cosine to the description before and after; and
        `held_out` of `judge_tokens`. `map`: `explained`, the share of variance (0 to 1) of the two axes, `old` as
        [x, y] and `new` as [x, y, token].
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
    # The model's own special tokens and rows that pad the matrix stand for no text.
    apart = {*new_ids, *model.tokenizer.all_special_ids}
    old_ids = [token_id for token_id in sorted(names) if token_id not in apart and token_id < len(weight)]
    return weight[new_ids], weight[old_ids], [names[token_id] for token_id in old_ids]


def description_similarities(
    subjects: Mapping[str, Subject], tokens: Sequence[ExtendedToken]
) -> list[dict[str, float] | None]:
    """The cosine of each token, alone, to its description `before` and `after` training; None without a description.

    A description is read with the base's tokens: one that holds the new token would be similar to it by itself.
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
    """What training did to the held-out queries that hold each token.

    Each token is judged by itself, at 95 % confidence: of tokens that training did not change, one in forty is called
    worse and one in forty better. Equal questions count as one.

    Returns:
        Of each token `queries`; with queries `base` and `merged`, their mean reciprocal ranks in percent, `gain` in
        points and `p_value`; `verdict` (better, worse, could be chance, too few to judge); and `worst`, the query whose
        rank fell by the largest factor with its ranks, or None where none fell.
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
    """A held-out query, with its reciprocal rank in percent by base and merged model."""

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
    """For each row the places of the `count` others with the highest cosines, and these; of equals the first.

    Args:
        rows: (rows, width).
        others: (others, width).
        count: of neighbours; fewer where there are fewer others.
        themselves: whether `others` are the rows, so that a row is none of its own neighbours.
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
    """Centre (width,), axes (axes, width) and the share of variance of each, by a singular value decomposition.

    The largest number of an axis is positive, so that equal rows give one map and not its mirror image.
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
