"""Where new tokens lie among the old ones: the nearest of each, and a map of all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.evaluation.metrics import highest
from vocabgraft.tokens.tokenizer import ExtendedToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Matrix = np.ndarray[Any, np.dtype[np.float32]]
NEAREST = 5
OLD_ROWS_ON_MAP = 2000
# 32 MB of cosines at once.
NUMBERS_AT_ONCE = 2**23


def describe_tokens(model: "SentenceTransformer", tokens: Sequence[ExtendedToken], seed: int) -> dict[str, Any]:
    """The neighbours of each new token by the cosine of input embeddings, and a map of new among old rows.

    Args:
        model: whose rows are looked at.
        tokens: those whose rows trained.
        seed: of the sample of old rows on the map.

    Returns:
        `tokens`: of each `token`, `kind`, `id`, `nearest_old` and `nearest_new`, each five of [token, cosine]. `map`:
        `explained`, the share of variance (0 to 1) of the two axes, `old` as [x, y] and `new` as [x, y, token].
    """
    weight = model[0].auto_model.get_input_embeddings().weight.detach().float().cpu().numpy()
    names = {token_id: text for text, token_id in model.tokenizer.get_vocab().items()}
    new_ids = [token.id for token in tokens]
    # The model's own special tokens and rows that pad the matrix stand for no text.
    apart = {*new_ids, *model.tokenizer.all_special_ids}
    old_ids = [token_id for token_id in sorted(names) if token_id not in apart and token_id < len(weight)]
    new, old = weight[new_ids], weight[old_ids]
    near_old = nearest_rows(new, old, NEAREST)
    near_new = nearest_rows(new, new, NEAREST, themselves=True)
    return {
        "tokens": [
            {
                "token": token.text,
                "kind": token.kind,
                "id": token.id,
                "nearest_old": [[names[old_ids[place]], cosine] for place, cosine in near_old[row]],
                "nearest_new": [[tokens[place].text, cosine] for place, cosine in near_new[row]],
            }
            for row, token in enumerate(tokens)
        ],
        "map": _map(new, old, tokens, seed),
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
