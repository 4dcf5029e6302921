"""Checks that new tokens mean what their descriptions and texts say, and relations what their triples say.

Each check is a test against chance with the false alarm rate `check_consistency.meaning_alpha`, however many tokens
there are. A vocabulary fails as a whole if it is no better than chance. A single token fails only if it is worse than
chance: it points away from its description, or scores another token's texts higher than its own. A token that is no
better than chance is only listed in a warning, because one in a thousand sound tokens is no better either.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from vocabgraft.checks.chance import PLAUSIBLE_RANK, Booleans, Matching, Swaps, find_swaps, matching, relative_ranks
from vocabgraft.checks.conditions import every_text_moves, trained_relations
from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.result import SHOWN, Finding, TooFew, at_least, at_most, shown
from vocabgraft.checks.rows import count_rows, rows_of
from vocabgraft.models.encode import Embeddings, encode, reading_with
from vocabgraft.token_embeddings.sinks import own_words
from vocabgraft.tokens.new_token import relation_token
from vocabgraft.tokens.tokenizer import ExtendedToken
from vocabgraft.triples.relation_ranks import HeldOutTriples, Triple, held_out_sample, known_sample, relation_scores

Floats = np.ndarray[Any, np.dtype[np.float64]]
NEAREST = 5
# Number of the base's own words among which a token's meaning is ranked.
OWN_WORDS = 500
# Fewest pairs of unrelated texts that show the cosine by chance.
LEAST_PAIRS = 30
# A cosine above that of this share of unrelated pairs is not chance.
ORDINARY = 0.95
CHANCE_RANK = 0.5
# If a test would find fewer than this share of faults, finding none shows nothing.
LEAST_POWER = 0.5


def meaning_kept(evidence: Evidence) -> Finding | TooFew:
    """The worst rank of a token's nearest meaning among the meanings of others.

    A token has three meanings: the base's embedding of its text, its description, and the texts that use it. The
    others are the base's embeddings of the other tokens and of its own words, so that ranks are comparable for 3 tokens
    and for 3,000. A code whose text meant nothing may leave that meaning; a destroyed row is near none of the three. If
    most tokens are near none, both before and after training, the base does not distinguish meanings.
    """
    tokens, limit = evidence.tokens, evidence.params.max_meaning_rank
    if not tokens:
        return TooFew("no new token")
    ranks, cosines = _meaning_ranks(evidence, "merged")
    if np.median(ranks) > limit and np.median(_meaning_ranks(evidence, "resized")[0]) > limit:
        return TooFew("most tokens were near none of their meanings before training, so ranks show nothing here")
    order = np.argsort(-ranks).tolist()
    named = [f"{tokens[place].text}: rank {ranks[place]:.3f}, cosine {cosines[place]:.2f}" for place in order]
    lost = [line for line, place in zip(named, order, strict=True) if not ranks[place] <= limit]
    return at_most(float(ranks.max()), limit, lost or named[:3])


def _meaning_ranks(evidence: Evidence, artifact: Artifact) -> tuple[Floats, Floats]:
    """For each token the relative rank of its nearest meaning (1 for an embedding with NaN), and the cosine to it."""
    tokens = evidence.tokens
    readings = [_reading(evidence, token) for token in tokens]
    _, own_texts = own_words(evidence.model("base"), set(evidence.new_ids), OWN_WORDS)
    alone = _unit(evidence.encode(artifact, [token.text for token in tokens]))
    pool = alone @ _read(evidence, [*readings, *own_texts]).T
    # Two tokens with the same text for the base are one meaning.
    others = np.array([[text != own for text in (*readings, *own_texts)] for own in readings])
    nearest = np.stack(
        [(alone * meaning).sum(axis=1) for meaning in (_read(evidence, readings), *_other_meanings(evidence))]
    ).max(axis=0)
    ranks = ((pool >= nearest[:, None]) & others).sum(axis=1) / np.maximum(1, others.sum(axis=1))
    return np.where(np.isfinite(alone).all(axis=1), ranks, 1.0), nearest


def _reading(evidence: Evidence, token: ExtendedToken) -> str:
    """The token's text, or its description for special tokens and for texts that the base cannot read."""
    unknown = evidence.model("base").tokenizer.unk_token_id
    readable = token.kind != "special" and any(piece != unknown for piece in token.pieces)
    return token.text if readable else token.description or token.text


def _other_meanings(evidence: Evidence) -> Iterator[Floats]:
    """Embeddings of the descriptions, and mean embeddings of the texts that use a token: (tokens, width), no NaN."""
    tokens = evidence.tokens
    yield _read(evidence, [token.description.strip() or _reading(evidence, token) for token in tokens])
    uses = [[use.teacher_text for use in evidence.uses[token.id]] or [_reading(evidence, token)] for token in tokens]
    ends = np.cumsum([len(texts) for texts in uses])[:-1]
    embedded = np.split(_read(evidence, [text for texts in uses for text in texts]), ends)
    yield _unit(np.stack([texts.mean(axis=0) for texts in embedded]).astype(np.float32))


def description_cosine(evidence: Evidence) -> Finding | TooFew:
    """The lowest cosine between a token's embedding, alone, and its description's.

    The limit comes from unrelated texts of the run. It is the mean of their cosines minus the number of standard
    deviations by which one of so many tokens falls below the mean with probability alpha.
    """
    tokens = _described(evidence)
    cosines = (_unit(evidence.encode("merged", [token.text for token in tokens])) * _descriptions(evidence)).sum(axis=1)
    unrelated = _unrelated_cosines(evidence)
    if unrelated.size < LEAST_PAIRS:
        return TooFew(
            f"{unrelated.size} pairs of a description and a text without a new word; {LEAST_PAIRS} are needed",
            float(np.min(cosines)),
        )
    limit = float(unrelated.mean() + norm.ppf(evidence.params.meaning_alpha / len(tokens)) * unrelated.std())
    ordinary = float(np.quantile(unrelated, ORDINARY))
    order = np.argsort(cosines).tolist()
    named = {place: f"{tokens[place].text}: {cosines[place]:.3f} to {tokens[place].description!r}" for place in order}
    low = [f"{named[place]}; {_nearest(evidence, tokens[place])}" for place in order if not cosines[place] >= limit]
    weak = [named[place] for place in order if limit <= cosines[place] <= ordinary]
    return at_least(
        float(np.min(cosines)), limit, low, [f"{line}, no higher than for unrelated texts" for line in weak]
    )


def descriptions_told_apart(evidence: Evidence) -> Finding | TooFew:
    """The mean rank of a token's own description among all; shuffled or shifted rows make it no better than chance."""
    tokens = _described(evidence)
    # Synonyms may share their description.
    distinct, first, own = np.unique([token.description for token in tokens], return_index=True, return_inverse=True)
    if len(distinct) < 2:
        return TooFew(f"{len(distinct)} description; ranks need 2")
    alone = _unit(evidence.encode("merged", [token.text for token in tokens]))
    ranks = relative_ranks(alone @ _descriptions(evidence)[first].T)
    at = ranks[np.arange(len(tokens)), own]
    weak = [
        f"{tokens[place].text}: rank {at[place]:.2f} (0 first, 0.5 chance) of {tokens[place].description!r}; "
        f"{_nearest(evidence, tokens[place])}"
        for place in np.argsort(-at)[:SHOWN].tolist()
        if at[place] > PLAUSIBLE_RANK
    ]
    return _judged(matching(ranks, own, evidence.params.meaning_alpha), f"{len(tokens)} tokens", weak)


def swapped_tokens(evidence: Evidence) -> Finding | TooFew:
    """Standard errors by which a token, alone, is nearer to another token's texts than to its own.

    Two tokens in training rows of one group are not compared: training brings such tokens near each other, and an
    acronym near the words that explain it. Relations with triples are left out, because their triples show more.
    """
    alpha = evidence.params.meaning_alpha
    relations = {relation_token(name) for triples in evidence.triples for name in triples.relations}
    tokens = [token for token in evidence.tokens if evidence.uses[token.id] and token.text not in relations]
    uses = [use.teacher_text for token in tokens for use in evidence.uses[token.id]]
    ends = np.cumsum([len(evidence.uses[token.id]) for token in tokens])[:-1]
    alone = _unit(evidence.encode("merged", [token.text for token in tokens]))
    blocks = [texts @ alone.T for texts in np.split(_read(evidence, uses), ends)] if tokens else []
    scores = dict(zip([token.text for token in tokens], blocks, strict=True))
    chosen = [evidence.new_ids.index(token.id) for token in tokens]
    return _none_swapped(scores, "texts", alpha, lambda: evidence.taught_together[np.ix_(chosen, chosen)])


def relations_told_apart(evidence: Evidence) -> Finding | TooFew:
    """The mean rank of the right relation over its held-out triples; the worst of several datasets."""
    datasets = _trained_triples(evidence)
    alpha = evidence.params.meaning_alpha / len(datasets)
    found = [_scores(evidence, triples, held_out_sample(triples)) for triples in datasets]
    return _worst([_relations_matched(scores, alpha) for scores in found])


def swapped_relations(evidence: Evidence) -> Finding | TooFew:
    """Standard errors by which a relation scores another's triples higher than its own; the worst dataset.

    Triples of all splits count, because swapped rows show in training triples too.
    """
    datasets = _trained_triples(evidence)
    alpha = evidence.params.meaning_alpha / len(datasets)
    found = [_scores(evidence, triples, known_sample(triples)) for triples in datasets]
    return _worst([_none_swapped(scores, "triples", alpha) for scores in found])


def _trained_triples(evidence: Evidence) -> list[HeldOutTriples]:
    """The datasets of triples with a relation whose token was trained."""
    return [triples for triples in evidence.triples if trained_relations(evidence, triples)]


def _scores(evidence: Evidence, triples: HeldOutTriples, chosen: Sequence[Triple]) -> dict[str, Floats]:
    """For each trained relation with triples: the scores of its triples by all of these, (triples, relations)."""
    names = trained_relations(evidence, triples)
    asked = [triple for triple in chosen if relation_token(triple[1]) in names]
    if not asked:
        return {}
    found = relation_scores(evidence.model("merged"), triples, asked, evidence.params.batch_size)
    columns: list[int] = np.unique(found.right).tolist()
    return {found.tokens[place]: found.scores[found.right == place][:, columns] for place in columns}


def _relations_matched(scores: Mapping[str, Floats], alpha: float) -> Finding | TooFew:
    count = sum(len(of_relation) for of_relation in scores.values())
    of = f"{len(scores)} relations with {count} held-out triples"
    if len(scores) < 2:
        return TooFew(f"{of}; ranks need 2 relations")
    with warnings.catch_warnings():
        # A relation may form a known triple with every pair of another relation; it then has no rank there.
        warnings.simplefilter("ignore", RuntimeWarning)
        ranks = np.stack([np.nanmean(relative_ranks(of_relation), axis=0) for of_relation in scores.values()])
    ranks = np.nan_to_num(ranks, nan=CHANCE_RANK)
    weak = [
        f"{token}: mean rank {ranks[place, place]:.2f} over {len(scores[token])} triples (0 first, 0.5 chance)"
        for place, token in enumerate(scores)
        if ranks[place, place] > PLAUSIBLE_RANK
    ]
    return _judged(matching(ranks, np.arange(len(scores)), alpha), of, weak)


def _judged(found: Matching, of: str, weak: Sequence[str]) -> Finding | TooFew:
    """Better than chance passes. Worse than chance, or too bad for a plausible vocabulary, fails."""
    seen = f"mean rank {found.mean_rank:.3f} of {of}: p = {found.p_value:.2g}"
    is_better, is_worse = found.mean_rank <= found.low, found.mean_rank >= found.high
    # As far above a plausible mean rank as significance is below chance: a plausible vocabulary is ruled out there.
    implausible = found.mean_rank >= PLAUSIBLE_RANK + (CHANCE_RANK - found.low)
    if is_better or is_worse or implausible or math.isnan(found.mean_rank):
        return at_most(found.mean_rank, found.low, [seen], weak)
    return TooFew(
        f"{seen}; neither chance nor a plausible mean rank of {PLAUSIBLE_RANK} is ruled out",
        found.mean_rank,
        shown(weak),
    )


def _none_swapped(
    scores: Mapping[str, Floats], texts: str, alpha: float, taught: Callable[[], Booleans] | None = None
) -> Finding | TooFew:
    """Test that no token scores another's texts significantly higher than its own, as one with its row would.

    Args:
        scores: for each token the scores of its texts by every token, in the same order: (texts, tokens).
        texts: the word for texts in messages.
        alpha: the false alarm rate.
        taught: computes which pairs of tokens are in rows of one group, (tokens, tokens); only called if it matters.
    """
    tokens, blocks = list(scores), list(scores.values())
    of = f"{len(tokens)} tokens with {sum(map(len, blocks))} {texts}"
    if any(np.isnan(block[:, place]).any() for place, block in enumerate(blocks)):
        return at_most(math.nan, 0)
    found = find_swaps(blocks, alpha)
    if found is None:
        return TooFew(f"{of}; needed: 2 tokens, one of them with 2 {texts}")
    learned: list[str] = []
    if taught and (found.p_values <= alpha).any():
        seen, found = found, find_swaps(blocks, alpha, taught()) or found
        learned = [
            f"{line}; training rows of one group hold both"
            for place, line in _swapped(seen, tokens, texts, alpha).items()
            if found.p_values[place] > alpha
        ]
    weak = learned + [
        f"{token}: scores its own {texts} no higher than those of others"
        for token, p_value in zip(tokens, found.own_p_values.tolist(), strict=True)
        if p_value > alpha
    ]
    power = f"{100 * found.power:.0f} % of swapped rows would be found"
    worst = float(found.excess.max())
    if worst < found.critical and found.power < LEAST_POWER:
        return TooFew(f"{of}: {power}", worst, shown(weak))
    swapped = list(_swapped(found, tokens, texts, alpha).values())
    judged = zip(tokens, found.excess.tolist(), found.p_values.tolist(), strict=True)
    by_token = {token: (excess, p_value > alpha) for token, excess, p_value in judged if math.isfinite(excess)}
    return replace(at_most(worst, found.critical, swapped or [f"{of}; {power}"], weak), by_token=by_token)


def _swapped(found: Swaps, tokens: Sequence[str], texts: str, alpha: float) -> dict[int, str]:
    """A line for each significant token by its index, the largest excess first."""
    return {
        place: f"{tokens[place]} is nearer to the {texts} of {tokens[found.others[place]]} than to its own "
        f"by {found.excess[place]:.1f} standard errors"
        for place in np.argsort(-found.excess).tolist()
        if found.p_values[place] <= alpha
    }


def _worst(found: Sequence[Finding | TooFew]) -> Finding | TooFew:
    """A failed one, or else one that passed; datasets with too few items count only if there are no others."""
    judged = sorted((entry for entry in found if isinstance(entry, Finding)), key=lambda entry: entry.holds)
    return judged[0] if judged else found[0]


def _described(evidence: Evidence) -> list[ExtendedToken]:
    return [token for token in evidence.tokens if token.description.strip()]


def _descriptions(evidence: Evidence) -> Floats:
    """Unit embeddings of the descriptions: (tokens, width)."""
    return _read(evidence, [token.description for token in _described(evidence)])


def _unrelated_cosines(evidence: Evidence) -> Floats:
    """Cosines between texts without a new token and the descriptions: (texts * descriptions,)."""
    return np.asarray((_read(evidence, evidence.probes.without_new) @ _descriptions(evidence).T).ravel())


def _read(evidence: Evidence, texts: Sequence[str]) -> Floats:
    """Unit embeddings of texts with the base's tokens, in the merged model's space: (texts, width).

    If texts without a new token keep their embeddings, these are the base's. Otherwise the spaces differ, and the
    merged model encodes the texts with the base's tokenizer.
    """
    if not every_text_moves(evidence):
        return _unit(evidence.encode("base", texts))
    with reading_with(evidence.model("merged"), evidence.base_tokenizer):
        return _unit(encode(evidence.model("merged"), texts, evidence.params.batch_size))


def _unit(embeddings: Embeddings) -> Floats:
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(embeddings / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)


def _nearest(evidence: Evidence, token: ExtendedToken) -> str:
    """The old tokens whose rows are nearest to a new token's row."""
    model, new = evidence.model("merged"), set(evidence.new_ids)
    old = [token_id for token_id in range(count_rows(model)) if token_id not in new]
    row = rows_of(model, [token.id])[0]
    cosines = torch.nn.functional.cosine_similarity(rows_of(model, old), row.unsqueeze(0))
    nearest = cosines.nan_to_num(-1).topk(min(NEAREST, len(old))).indices.tolist()
    names = model.tokenizer.convert_ids_to_tokens([old[place] for place in nearest])
    return f"nearest old tokens: {', '.join(str(name) for name in names)}"
