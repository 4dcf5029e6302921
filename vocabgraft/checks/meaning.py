"""Checks that a new token means what its description and its texts say, and a relation's token what its triples say.

Each check is a test against chance whose false alarm rate is `check_consistency.meaning_alpha`, however many tokens
there are. A vocabulary fails as a whole where it is no better than chance. A single token fails only where it is worse
than chance: it points away from its description, or scores another token's texts higher than its own. A token that is
no better than chance is named in a warning, since one in a thousand sound tokens is, too.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from vocabgraft.checks.chance import PLAUSIBLE_RANK, Matching, find_swaps, matching, relative_ranks
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
# Meanings of the base's own words that a token's is ranked among.
OWN_WORDS = 500
# Pairs of unrelated texts, to tell what cosine chance gives.
LEAST_PAIRS = 30
# A cosine that so many unrelated pairs stay under is no chance.
ORDINARY = 0.95
CHANCE_RANK = 0.5
# A test that would find fewer of the faults than this says nothing by finding none.
LEAST_POWER = 0.5


def meaning_kept(evidence: Evidence) -> Finding | TooFew:
    """The highest rank of the meaning that a token, alone, is nearest to, among the meanings of others.

    A token may mean what the base read in its text, what its description says, or what the texts that use it say. The
    others are the readings of the other tokens and of the base's own words, so that ranks say the same for 3 tokens as
    for 3,000. A code whose reading meant nothing may leave it; a destroyed row is near none of the three. Where most
    tokens are near none, and were not before training either, the base does not tell meanings apart.
    """
    tokens, limit = evidence.tokens, evidence.params.max_meaning_rank
    if not tokens:
        return TooFew("no new token")
    ranks, cosines = _meaning_ranks(evidence, "merged")
    if np.median(ranks) > limit and np.median(_meaning_ranks(evidence, "resized")[0]) > limit:
        return TooFew("most tokens were near none of their meanings before training, so ranks say nothing here")
    order = np.argsort(-ranks).tolist()
    named = [f"{tokens[place].text}: rank {ranks[place]:.3f}, cosine {cosines[place]:.2f}" for place in order]
    lost = [line for line, place in zip(named, order, strict=True) if not ranks[place] <= limit]
    return at_most(float(ranks.max()), limit, lost or named[:3])


def _meaning_ranks(evidence: Evidence, artifact: Artifact) -> tuple[Floats, Floats]:
    """By token, the relative rank of its nearest meaning (1 for an embedding with NaN), and the cosine to it."""
    tokens = evidence.tokens
    readings = [_reading(evidence, token) for token in tokens]
    _, own_texts = own_words(evidence.model("base"), set(evidence.new_ids), OWN_WORDS)
    alone = _unit(evidence.encode(artifact, [token.text for token in tokens]))
    pool = alone @ _read(evidence, [*readings, *own_texts]).T
    # Two tokens that the base reads alike are one meaning to it.
    others = np.array([[text != own for text in (*readings, *own_texts)] for own in readings])
    nearest = np.stack(
        [(alone * meaning).sum(axis=1) for meaning in (_read(evidence, readings), *_other_meanings(evidence))]
    ).max(axis=0)
    ranks = ((pool >= nearest[:, None]) & others).sum(axis=1) / np.maximum(1, others.sum(axis=1))
    return np.where(np.isfinite(alone).all(axis=1), ranks, 1.0), nearest


def _reading(evidence: Evidence, token: ExtendedToken) -> str:
    """The token's text, or its description: for a special token, and where the base cannot read the text."""
    unknown = evidence.model("base").tokenizer.unk_token_id
    readable = token.kind != "special" and any(piece != unknown for piece in token.pieces)
    return token.text if readable else token.description or token.text


def _other_meanings(evidence: Evidence) -> Iterator[Floats]:
    """What the descriptions say, and the mean of what the texts that use a token say; NaN-free, (tokens, width)."""
    tokens = evidence.tokens
    yield _read(evidence, [token.description.strip() or _reading(evidence, token) for token in tokens])
    uses = [[use.teacher_text for use in evidence.uses[token.id]] or [_reading(evidence, token)] for token in tokens]
    ends = np.cumsum([len(texts) for texts in uses])[:-1]
    embedded = np.split(_read(evidence, [text for texts in uses for text in texts]), ends)
    yield _unit(np.stack([texts.mean(axis=0) for texts in embedded]).astype(np.float32))


def description_cosine(evidence: Evidence) -> Finding | TooFew:
    """The lowest cosine of a token's embedding, alone, to its description's.

    The limit is what unrelated texts of the run have: the mean of their cosines, less as many standard deviations as
    one of so many tokens falls below it with probability alpha.
    """
    tokens = _described(evidence)
    cosines = (_unit(evidence.encode("merged", [token.text for token in tokens])) * _descriptions(evidence)).sum(axis=1)
    unrelated = _unrelated_cosines(evidence)
    if unrelated.size < LEAST_PAIRS:
        return TooFew(
            f"{unrelated.size} pairs of a description and a text without a new word; {LEAST_PAIRS} tell what is chance",
            float(np.min(cosines)),
        )
    limit = float(unrelated.mean() + norm.ppf(evidence.params.meaning_alpha / len(tokens)) * unrelated.std())
    ordinary = float(np.quantile(unrelated, ORDINARY))
    order = np.argsort(cosines).tolist()
    named = {place: f"{tokens[place].text}: {cosines[place]:.3f} to {tokens[place].description!r}" for place in order}
    low = [f"{named[place]}; {_nearest(evidence, tokens[place])}" for place in order if not cosines[place] >= limit]
    weak = [named[place] for place in order if limit <= cosines[place] <= ordinary]
    return at_least(float(np.min(cosines)), limit, low, [f"{line}, which unrelated texts have too" for line in weak])


def descriptions_told_apart(evidence: Evidence) -> Finding | TooFew:
    """The mean rank of a token's own description among all: rows that were shuffled or shifted lose it all at once."""
    tokens = _described(evidence)
    # Two words for one thing may share their description.
    distinct, first, own = np.unique([token.description for token in tokens], return_index=True, return_inverse=True)
    if len(distinct) < 2:
        return TooFew(f"{len(distinct)} description; ranks take 2")
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
    """By how many standard errors a token, alone, is nearer to the texts that use another token than to its own.

    Relations with triples are left out: their triples say more.
    """
    alpha = evidence.params.meaning_alpha
    relations = {relation_token(name) for triples in evidence.triples for name in triples.relations}
    tokens = [token for token in evidence.tokens if evidence.uses[token.id] and token.text not in relations]
    uses = [use.teacher_text for token in tokens for use in evidence.uses[token.id]]
    ends = np.cumsum([len(evidence.uses[token.id]) for token in tokens])[:-1]
    alone = _unit(evidence.encode("merged", [token.text for token in tokens]))
    blocks = [texts @ alone.T for texts in np.split(_read(evidence, uses), ends)] if tokens else []
    return _none_swapped(dict(zip([token.text for token in tokens], blocks, strict=True)), "texts", alpha)


def relations_told_apart(evidence: Evidence) -> Finding | TooFew:
    """The mean rank of the right relation over its held-out triples; of several datasets, the worst."""
    datasets = _trained_triples(evidence)
    alpha = evidence.params.meaning_alpha / len(datasets)
    found = [_scores(evidence, triples, held_out_sample(triples)) for triples in datasets]
    return _worst([_relations_matched(scores, alpha) for scores in found])


def swapped_relations(evidence: Evidence) -> Finding | TooFew:
    """By how many standard errors a relation scores another's triples higher than its own; the worst dataset.

    Triples of all splits count: that a relation's row is another's shows in those that were trained, too.
    """
    datasets = _trained_triples(evidence)
    alpha = evidence.params.meaning_alpha / len(datasets)
    found = [_scores(evidence, triples, known_sample(triples)) for triples in datasets]
    return _worst([_none_swapped(scores, "triples", alpha) for scores in found])


def _trained_triples(evidence: Evidence) -> list[HeldOutTriples]:
    """The datasets of triples with a relation whose token trains."""
    return [triples for triples in evidence.triples if trained_relations(evidence, triples)]


def _scores(evidence: Evidence, triples: HeldOutTriples, chosen: Sequence[Triple]) -> dict[str, Floats]:
    """By relation whose token trains and that has triples: their scores by those relations, (triples, relations)."""
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
        return TooFew(f"{of}; ranks take 2 relations")
    with warnings.catch_warnings():
        # A relation may make a known triple with every pair of another's: then nothing ranks it there.
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
    """Better than chance passes; what rules out a plausible vocabulary, or is worse than chance, fails."""
    seen = f"mean rank {found.mean_rank:.3f} of {of}: p = {found.p_value:.2g}"
    is_better, is_worse = found.mean_rank <= found.low, found.mean_rank >= found.high
    # As far above a plausible mean rank as significance lies below chance: there, a plausible vocabulary is ruled out.
    implausible = found.mean_rank >= PLAUSIBLE_RANK + (CHANCE_RANK - found.low)
    if is_better or is_worse or implausible or math.isnan(found.mean_rank):
        return at_most(found.mean_rank, found.low, [seen], weak)
    return TooFew(
        f"{seen}; neither chance nor a plausible mean rank of {PLAUSIBLE_RANK} is ruled out",
        found.mean_rank,
        shown(weak),
    )


def _none_swapped(scores: Mapping[str, Floats], texts: str, alpha: float) -> Finding | TooFew:
    """No token scores another's texts significantly higher than its own.

    Args:
        scores: by token, of its texts by every token, in the same order: (texts, tokens).
        texts: what they are called.
        alpha: the false alarm rate.
    """
    tokens, blocks = list(scores), list(scores.values())
    of = f"{len(tokens)} tokens with {sum(map(len, blocks))} {texts}"
    if any(np.isnan(block[:, place]).any() for place, block in enumerate(blocks)):
        return at_most(math.nan, 0)
    found = find_swaps(blocks, alpha)
    if found is None:
        return TooFew(f"{of}; it takes 2 tokens, and one of them with 2 {texts}")
    weak = [
        f"{token}: scores its own {texts} no higher than those of others"
        for token, p_value in zip(tokens, found.own_p_values.tolist(), strict=True)
        if p_value > alpha
    ]
    power = f"of rows that were exchanged, {100 * found.power:.0f} % would be found"
    worst = float(found.excess.max())
    if worst < found.critical and found.power < LEAST_POWER:
        return TooFew(f"{of}: {power}", worst, shown(weak))
    swapped = [
        f"{tokens[place]} is nearer to the {texts} of {tokens[found.others[place]]} than to its own "
        f"by {found.excess[place]:.1f} standard errors"
        for place in np.argsort(-found.excess).tolist()
        if found.p_values[place] <= alpha
    ]
    judged = zip(tokens, found.excess.tolist(), found.p_values.tolist(), strict=True)
    by_token = {token: (excess, p_value > alpha) for token, excess, p_value in judged if math.isfinite(excess)}
    return replace(at_most(worst, found.critical, swapped or [f"{of}; {power}"], weak), by_token=by_token)


def _worst(found: Sequence[Finding | TooFew]) -> Finding | TooFew:
    """One that failed, else one that passed: what was too little to judge takes nothing from what was judged."""
    judged = sorted((entry for entry in found if isinstance(entry, Finding)), key=lambda entry: entry.holds)
    return judged[0] if judged else found[0]


def _described(evidence: Evidence) -> list[ExtendedToken]:
    return [token for token in evidence.tokens if token.description.strip()]


def _descriptions(evidence: Evidence) -> Floats:
    """Of each described token: (tokens, width), of length 1."""
    return _read(evidence, [token.description for token in _described(evidence)])


def _unrelated_cosines(evidence: Evidence) -> Floats:
    """Cosines of texts without a new token to the descriptions: (texts * descriptions,)."""
    return np.asarray((_read(evidence, evidence.probes.without_new) @ _descriptions(evidence).T).ravel())


def _read(evidence: Evidence, texts: Sequence[str]) -> Floats:
    """Embeddings of length 1 of texts as the base's tokens read them, in the merged model's space: (texts, width).

    Where a text without a new token keeps its embedding, those are the base's. Otherwise the merged model reads the
    texts with the base's tokenizer, since the two spaces differ.
    """
    if not every_text_moves(evidence):
        return _unit(evidence.encode("base", texts))
    with reading_with(evidence.model("merged"), evidence.base_tokenizer):
        return _unit(encode(evidence.model("merged"), texts, evidence.params.batch_size))


def _unit(embeddings: Embeddings) -> Floats:
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(embeddings / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)


def _nearest(evidence: Evidence, token: ExtendedToken) -> str:
    """The old tokens whose rows are nearest to a new token's."""
    model, new = evidence.model("merged"), set(evidence.new_ids)
    old = [token_id for token_id in range(count_rows(model)) if token_id not in new]
    row = rows_of(model, [token.id])[0]
    cosines = torch.nn.functional.cosine_similarity(rows_of(model, old), row.unsqueeze(0))
    nearest = cosines.nan_to_num(-1).topk(min(NEAREST, len(old))).indices.tolist()
    names = model.tokenizer.convert_ids_to_tokens([old[place] for place in nearest])
    return f"nearest old tokens: {', '.join(str(name) for name in names)}"
