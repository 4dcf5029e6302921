"""Checks that a new token means what its description says, and a relation's token what its triples say.

A place is (rank - 1) / (candidates - 1): 0 is first, 0.5 is chance, 1 is last. It means the same for 5 tokens and for
3,000.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vocabgraft.checks.conditions import every_text_moves
from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.result import Finding, at_least, at_most
from vocabgraft.checks.rows import count_rows, rows_of
from vocabgraft.models.encode import Embeddings
from vocabgraft.tokens.tokenizer import ExtendedToken
from vocabgraft.triples.relation_ranks import LEAST_TRIPLES

Floats = np.ndarray[Any, np.dtype[np.float64]]
NEAREST = 5
LOWEST = 3


def description_cosine(evidence: Evidence) -> Finding:
    """The lowest cosine of a token's embedding, alone, to its description's.

    Where a text without a new token keeps its embedding, the base encodes the description; otherwise the merged model
    does, since the two spaces are not one.
    """
    tokens, limit = _described(evidence), evidence.params.min_description_cosine
    cosines = np.diag(_cosines_to_descriptions(evidence, tokens))
    low = [
        f"{tokens[place].text}: {cosines[place]:.3f} to {tokens[place].description!r}; "
        f"{_nearest(evidence, tokens[place])}"
        for place in np.argsort(cosines).tolist()
        if not cosines[place] >= limit
    ]
    return at_least(float(np.min(cosines)), limit, low or [_lowest(tokens, cosines)])


def description_place(evidence: Evidence) -> Finding:
    """The worst place of a token's own description among all descriptions, nearest first."""
    tokens, limit = _described(evidence), evidence.params.max_description_place
    places = _description_places(evidence, tokens)
    bad = [
        f"{tokens[place].text}: place {places[place]:.2f} of {tokens[place].description!r}; "
        f"{_nearest(evidence, tokens[place])}"
        for place in np.argsort(-places).tolist()
        if not places[place] <= limit
    ]
    return at_most(float(np.max(places)), limit, bad or [_lowest(tokens, -places, "highest")])


def descriptions_told_apart(evidence: Evidence) -> Finding:
    """The mean place of a token's own description: rows that were swapped or shifted lose it all at once."""
    places = _description_places(evidence, _described(evidence))
    return at_most(float(np.mean(places)), evidence.params.max_mean_place, [f"{len(places)} tokens"])


def relation_place(evidence: Evidence) -> Finding:
    """The worst mean place of a relation's token among all relations, over its held-out triples."""
    limit, judged = evidence.params.max_relation_place, _places_by_relation(evidence, LEAST_TRIPLES)
    means = {token: float(np.mean(places)) for token, places in judged.items()}
    order = sorted(means, key=lambda token: -np.nan_to_num(means[token], nan=np.inf))
    told = [f"{token}: mean place {means[token]:.2f} over {len(judged[token])} triples" for token in order]
    over = [line for line, token in zip(told, order, strict=True) if not means[token] <= limit]
    unjudged = sorted(set(_places_by_relation(evidence, 1)) - set(judged))
    remark = [f"under {LEAST_TRIPLES} held-out triples, so not judged: {', '.join(unjudged)}"] if unjudged else []
    return at_most(float(np.max(list(means.values()))), limit, [*(over or told[:LOWEST]), *remark])


def relations_told_apart(evidence: Evidence) -> Finding:
    """The mean place of the right relation over all held-out triples."""
    places = [place for of_token in _places_by_relation(evidence, 1).values() for place in of_token]
    return at_most(float(np.mean(places)), evidence.params.max_mean_place, [f"{len(places)} held-out triples"])


def _described(evidence: Evidence) -> list[ExtendedToken]:
    return [token for token in evidence.tokens if token.description.strip()]


def _cosines_to_descriptions(evidence: Evidence, tokens: Sequence[ExtendedToken]) -> Floats:
    """Of each token's embedding to each description's: (tokens, tokens)."""
    reader: Artifact = "merged" if every_text_moves(evidence) else "base"
    alone = _unit(evidence.encode("merged", [token.text for token in tokens]))
    described = _unit(evidence.encode(reader, [token.description for token in tokens]))
    return np.asarray(alone @ described.T, dtype=np.float64)


def _unit(embeddings: Embeddings) -> Floats:
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(embeddings / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)


def _description_places(evidence: Evidence, tokens: Sequence[ExtendedToken]) -> Floats:
    cosines = _cosines_to_descriptions(evidence, tokens)
    descriptions = np.array([token.description for token in tokens])
    places = np.zeros(len(tokens))
    for row, found in enumerate(cosines):
        # Two words for one thing may share their description.
        others = found[descriptions != descriptions[row]]
        better = (others > found[row]).sum() + 0.5 * (others == found[row]).sum()
        places[row] = better / max(1, len(others)) if np.isfinite(found).all() else np.nan
    return places


def _places_by_relation(evidence: Evidence, least: int) -> dict[str, list[float]]:
    """Places by each relation's token that trains and has held-out triples enough."""
    found: dict[str, list[float]] = {token.text: [] for token in evidence.tokens}
    for entry in evidence.relation_places:
        if entry.token in found:
            found[entry.token].append(entry.place)
    return {token: places for token, places in found.items() if len(places) >= least}


def _lowest(tokens: Sequence[ExtendedToken], figures: Floats, word: str = "lowest") -> str:
    places = np.argsort(figures)[:LOWEST].tolist()
    return f"{word}: " + ", ".join(f"{tokens[place].text} {abs(figures[place]):.3f}" for place in places)


def _nearest(evidence: Evidence, token: ExtendedToken) -> str:
    """The old tokens whose rows are nearest to a new token's."""
    model, new = evidence.model("merged"), set(evidence.new_ids)
    old = [token_id for token_id in range(count_rows(model)) if token_id not in new]
    row = rows_of(model, [token.id])[0]
    cosines = torch.nn.functional.cosine_similarity(rows_of(model, old), row.unsqueeze(0))
    nearest = cosines.nan_to_num(-1).topk(min(NEAREST, len(old))).indices.tolist()
    names = model.tokenizer.convert_ids_to_tokens([old[place] for place in nearest])
    return f"nearest old tokens: {', '.join(str(name) for name in names)}"
