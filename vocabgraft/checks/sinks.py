"""Checks that training destroyed no new token: none acts as an attention sink, and each kept what it meant."""

import numpy as np

from vocabgraft.checks.context import Evidence
from vocabgraft.checks.result import Finding, at_most
from vocabgraft.models.encode import Embeddings
from vocabgraft.token_embeddings.sinks import ALONE_AND_IN_SENTENCE, SinkProbe, own_words
from vocabgraft.tokens.new_token import NewToken, read_with_descriptions

# Own words of the base among which a token's meaning is looked for, so that a place says the same for 3 tokens as for
# 3,000.
DECOYS = 500
# Of 170 trained rows of the shipped example that were no sinks, the worst place was 0.002; the 4 sinks lay at 0.80 to
# 0.88, behind most of the base's own words.
MOST_PLACE = 0.1
SHOWN = 3


def attention_sinks(evidence: Evidence) -> Finding:
    """The largest ratio of a token's hidden activation to that of the first token, alone and in a sentence."""
    model, tokens, limits = evidence.model("merged"), evidence.tokens, evidence.sink_limits
    probe = SinkProbe.of(model, evidence.new_ids, [token.text for token in tokens], ALONE_AND_IN_SENTENCE)
    ratios = np.nan_to_num(probe.ratios(model), nan=0.0)
    order = np.argsort(-ratios).tolist()
    named = [f"{tokens[place].text}: {ratios[place]:.2f}" for place in order]
    over = [line for line, place in zip(named, order, strict=True) if ratios[place] > limits.sink]
    remark = f"largest of the base's own words: {limits.usual:.2f}"
    return at_most(float(ratios.max()), limits.sink, [*(over or named[:SHOWN]), remark])


def meaning_kept(evidence: Evidence) -> Finding:
    """The worst place of what the base read in a token's text, among what it reads in the others and in own words.

    A place is the share of the others that are nearer to the token's embedding: 0 is first, 0.5 is chance.
    """
    tokens = evidence.tokens
    _, decoys = own_words(evidence.model("base"), set(evidence.new_ids), DECOYS)
    read = [_as_the_base_reads(evidence, place) for place in range(len(tokens))]
    own = _unit(evidence.encode("merged", [token.text for token in tokens]))
    readings = _unit(evidence.encode("base", [*read, *decoys]))
    cosines = own @ readings.T
    # Two tokens that the base reads alike are one meaning to it.
    others = np.array([[text != mine for text in (*read, *decoys)] for mine in read])
    nearer = (cosines > np.diag(cosines)[:, None]) & others
    places = np.where(np.isfinite(cosines).all(axis=1), nearer.sum(axis=1) / np.maximum(1, others.sum(axis=1)), 1.0)
    order = np.argsort(-places).tolist()
    named = [
        f"{tokens[place].text}: {places[place]:.2f}, cosine {cosines[place, place]:.2f} to {read[place]!r} in the base"
        for place in order
    ]
    over = [line for line, place in zip(named, order, strict=True) if not places[place] <= MOST_PLACE]
    return at_most(float(places.max()), MOST_PLACE, over or named[:SHOWN])


def _as_the_base_reads(evidence: Evidence, place: int) -> str:
    """The token's text, or its description: for a special token, and where the base cannot read the text."""
    token, unknown = evidence.tokens[place], evidence.model("base").tokenizer.unk_token_id
    readable = token.kind != "special" and any(piece != unknown for piece in token.pieces)
    described = token.new_token if readable else NewToken(token.text, "special", token.description)
    return read_with_descriptions(token.text, [described])


def _unit(embeddings: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.where(lengths > 0, lengths, 1), dtype=np.float32)
