"""Losses for triples: embed(head) + embed(relation) should be near embed(tail).

The score is that of TransE (Bordes et al., 2013, "Translating Embeddings for Modeling Multi-relational Data"), with
embeddings of texts instead of one free vector per entity. A dataset has the columns `head`, `relation` and `tail`, in
this order; a relation is the text of its token, such as `<|IsA|>`. All three are embedded before Normalize.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings
from vocabgraft.models.unnormalized import Features, embed_pooled, trailing_normalize, unwrapped
from vocabgraft.token_embeddings.trainable import ROWS, TokenRows
from vocabgraft.triples.hashes import Hashes, are_known, combine, hash_features, hash_triples

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

Similarity = Literal["euclidean", "manhattan", "cosine", "dot"]
Direction = Literal["tail", "head"]
# With this scale, scores of all-MiniLM-L6-v2 between random texts (pooled vectors of length 7) span a few units.
SCALES: dict[str, float] = {"euclidean": 2.0, "manhattan": 0.1, "cosine": 20.0, "dot": 0.2}
SHOWN_NAMES = 3


class TranslationLoss(nn.Module):
    """The mean of the distance |embed(head) + embed(relation) - embed(tail)|, or its margin against corrupted tails.

    With a margin it is TransE's mean of max(0, margin + distance - distance of a corrupted triple). A corrupted tail is
    another tail of the batch, unless it makes a triple of the batch. The draw depends only on the seed and the batch,
    so a resumed run draws the same tails.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        p: int = 2,
        squared: bool = False,
        margin: float | None = None,
        negatives: int = 0,
        seed: int = 0,
    ) -> None:
        """Check the settings and the model.

        Args:
            model: with its adapter; weights that do not train must be frozen.
            p: of the norm: 1 or 2.
            squared: whether to square the norm; with p = 2 the optimal vector of a relation is that of `closed_form`.
            margin: by which a corrupted triple must be farther; together with `negatives`.
            negatives: corrupted tails per triple.
            seed: of the draw.

        Raises:
            VocabgraftError: for an unsupported norm or margin, a model with a Router, or, without negatives, a model in
                which more than rows trains.
        """
        super().__init__()
        if p not in (1, 2):
            raise VocabgraftError(f"TranslationLoss: p is {p!r}; allowed: 1, 2")
        _require_margin(margin, negatives)
        trailing_normalize(model)
        if not negatives:
            _require_rows_alone(model)
        self.model = model
        self.p, self.squared, self.margin, self.negatives, self.seed = p, squared, margin, negatives, seed

    def forward(self, sentence_features: Iterable[Features], labels: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of a batch: three columns of features; labels are ignored."""
        columns = _three(sentence_features)
        heads, relations, tails = embed_triples(self.model, columns)
        expected = heads + relations
        distances = self._norm(expected - tails)
        if self.margin is None:
            return distances.mean()
        drawn, is_false = self._corrupted(columns)
        corrupted = self._norm(expected.unsqueeze(1) - tails[drawn.to(tails.device)])
        terms = (self.margin + distances.unsqueeze(1) - corrupted).clamp(min=0)
        weights = is_false.to(terms)
        return (terms * weights).sum() / weights.sum().clamp(min=1)

    def _norm(self, differences: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(differences, ord=self.p, dim=-1)
        return norms.square() if self.squared else norms

    def _corrupted(self, columns: Sequence[Features]) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of other rows' tails, and whether each makes a triple that is not in the batch: (rows, negatives)."""
        heads, relations, tails = (hash_features(column) for column in columns)
        rows = len(heads)
        own = combine(heads, relations, tails)
        generator = _generator(self.seed, own)
        steps = torch.randint(1, max(rows, 2), (rows, self.negatives), generator=generator)
        drawn = (torch.arange(rows).unsqueeze(1) + steps) % rows
        triples = combine(heads[:, None], relations[:, None], tails[drawn.numpy()])
        return drawn, torch.from_numpy(~are_known(triples, np.sort(own)))

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments of the loss, for the model card."""
        names = ("p", "squared", "margin", "negatives", "seed")
        return {name: getattr(self, name) for name in names}


class TranslationRankingLoss(nn.Module):
    """Softmax cross-entropy of the right tail (and head) among those of the batch and drawn ones.

    A triple's query for its tail is embed(head) + embed(relation), for its head embed(tail) - embed(relation). A
    candidate that makes a known triple, or one of the batch, is masked.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        similarity: Similarity = "euclidean",
        scale: float | None = None,
        directions: Sequence[Direction] = ("tail", "head"),
        known: "Hashes | Mapping[str, Sequence[str]] | Dataset | None" = None,
        candidates: Sequence[str] = (),
        negatives: int = 0,
        prompts: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        """Hash the known triples.

        Args:
            model: with its adapter.
            similarity: `euclidean` and `manhattan` are negative distances.
            scale: of the similarity before the softmax; the default depends on the similarity.
            directions: to predict; the loss is the mean over them.
            known: triples of the train split, as text columns head, relation and tail, or hashed by `hash_triples`. Do
                not include held-out triples.
            candidates: texts from which further negatives are drawn, the same for all triples of a batch.
            negatives: number of drawn candidates per batch.
            prompts: the trainer's prompts by column.
            seed: of the draw, which depends only on it and the batch.

        Raises:
            VocabgraftError: for an unknown similarity or direction, negatives without candidates or more than their
                number, missing columns, or a model with a Router.
        """
        super().__init__()
        _require_names(similarity, directions)
        if negatives < 0 or negatives > len(candidates):
            raise VocabgraftError(
                f"TranslationRankingLoss: negatives is {negatives}, but there are {len(candidates)} candidates to draw "
                "from; give texts of entities as candidates, or lower negatives"
            )
        if scale is not None and scale <= 0:
            raise VocabgraftError(f"TranslationRankingLoss: scale is {scale}; allowed: a number above 0")
        trailing_normalize(model)
        self.model = model
        self.similarity, self.directions = similarity, tuple(directions)
        self.scale = SCALES[similarity] if scale is None else scale
        self.prompts = dict(prompts or {})
        self.known = _as_hashes(model, known, self.prompts)
        self.candidates, self.negatives, self.seed = candidates, negatives, seed

    def forward(self, sentence_features: Iterable[Features], labels: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of a batch: three columns of features; labels are ignored."""
        columns = _three(sentence_features)
        heads, relations, tails = embed_triples(self.model, columns)
        texts = [hash_features(column) for column in columns]
        drawn, drawn_texts = self._drawn(combine(*texts), tails)
        losses = []
        for direction in self.directions:
            to_tail = direction == "tail"
            queries = heads + relations if to_tail else tails - relations
            answers = torch.cat([tails if to_tail else heads, drawn])
            scores = self.scale * similarities(queries, answers, self.similarity)
            blocked = torch.from_numpy(self._true_otherwise(texts, drawn_texts, direction)).to(scores.device)
            right = torch.arange(len(queries), device=scores.device)
            losses.append(nn.functional.cross_entropy(scores.masked_fill(blocked, -torch.inf), right))
        return torch.stack(losses).mean()

    def _drawn(self, triples: Hashes, like: torch.Tensor) -> tuple[torch.Tensor, Hashes]:
        """Embeddings of drawn candidates, (negatives, width), and the hashes of their texts."""
        if not self.negatives:
            return like[:0], np.zeros(0, dtype=np.uint64)
        generator = _generator(self.seed, triples)
        # Drawn with replacement: a permutation of a million candidates would take longer than the batch.
        places = torch.randint(len(self.candidates), (self.negatives,), generator=generator).tolist()
        texts = [self.candidates[place] for place in places]
        features = unwrapped(self.model).preprocess(texts, prompt=self.prompts.get("tail"))
        hashes = hash_features(features)
        moved = {
            name: value.to(like.device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        return embed_pooled(self.model, [moved])[0], hashes

    def _true_otherwise(
        self, texts: Sequence[Hashes], drawn: Hashes, direction: Direction
    ) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Which candidates are other right answers of a row: (rows, rows + drawn)."""
        heads, relations, tails = texts
        if direction == "tail":
            triples = combine(heads[:, None], relations[:, None], np.concatenate([tails, drawn])[None])
        else:
            triples = combine(np.concatenate([heads, drawn])[None], relations[:, None], tails[:, None])
        blocked = are_known(triples, self.known) | are_known(triples, np.sort(combine(heads, relations, tails)))
        np.fill_diagonal(blocked, False)
        return blocked

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments of the loss, for the model card; known triples and candidates as their number."""
        names = ("similarity", "scale", "directions", "negatives", "prompts", "seed")
        counts = {"known": len(self.known), "candidates": len(self.candidates)}
        return {name: getattr(self, name) for name in names} | counts


def closed_form(
    head_embeddings: Embeddings, tail_embeddings: Embeddings, relations: Sequence[str]
) -> dict[str, Embeddings]:
    """The mean of tail - head for each relation: the vector with the least mean squared distance.

    `TranslationLoss(p=2, squared=True)` over free relation vectors converges to it, so it needs no training.

    Args:
        head_embeddings: (triples, width), before Normalize.
        tail_embeddings: (triples, width).
        relations: the relation of each triple.

    Returns:
        Vectors (width,) by relation, sorted by name.

    Raises:
        VocabgraftError: when the three differ in length.
    """
    sizes = (len(head_embeddings), len(tail_embeddings), len(relations))
    if len(set(sizes)) > 1:
        raise VocabgraftError(
            f"closed_form got {sizes[0]} heads, {sizes[1]} tails and {sizes[2]} relations; give each triple one of each"
        )
    names = np.asarray(relations, dtype=object)
    means: dict[str, Embeddings] = {}
    for name in sorted(set(relations)):
        places = np.flatnonzero(names == name)
        # Float64 sums: a relation may have a million triples.
        tail_mean = tail_embeddings[places].mean(axis=0, dtype=np.float64)
        head_mean = head_embeddings[places].mean(axis=0, dtype=np.float64)
        means[name] = (tail_mean - head_mean).astype(np.float32)
    return means


def embed_triples(model: nn.Module, columns: Sequence[Features]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads, relations and tails before Normalize, each (rows, width); each relation of the batch is embedded once."""
    heads, relations, tails = columns
    first, places = _distinct(hash_features(relations))
    rows = len(places)
    once = {name: value[first] if _is_by_row(value, rows) else value for name, value in relations.items()}
    embedded_heads, embedded_tails = embed_pooled(model, [heads, tails])
    (embedded,) = embed_pooled(model, [once])
    return embedded_heads, embedded[places], embedded_tails


def similarities(queries: torch.Tensor, candidates: torch.Tensor, name: Similarity) -> torch.Tensor:
    """The similarity of each query (n, width) to each candidate (m, width), higher is nearer: (n, m)."""
    if name == "cosine":
        queries, candidates = (nn.functional.normalize(values, dim=1) for values in (queries, candidates))
    if name in ("cosine", "dot"):
        return queries @ candidates.T
    # The faster way, a product of matrices, would lose near vectors in rounding.
    mode = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(queries, candidates, p=2.0 if name == "euclidean" else 1.0, compute_mode=mode)


def _distinct(hashes: Hashes) -> tuple[list[int], list[int]]:
    """The index of the first of each kind, and the kind of each."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first.tolist(), inverse.tolist()


def _is_by_row(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rows


def _generator(seed: int, batch: Hashes) -> torch.Generator:
    """A generator for one batch, so that the draw does not depend on earlier batches."""
    with np.errstate(over="ignore"):
        drawn_from = int(batch.sum(dtype=np.uint64))
    return torch.Generator().manual_seed((seed * 1_000_003 + drawn_from) % 2**63)


def _as_hashes(
    model: "SentenceTransformer",
    known: "Hashes | Mapping[str, Sequence[str]] | Dataset | None",
    prompts: Mapping[str, str],
) -> Hashes:
    if known is None:
        return np.zeros(0, dtype=np.uint64)
    if not isinstance(known, np.ndarray):
        return hash_triples(model, known, prompts)
    if known.ndim != 1 or known.dtype != np.uint64:
        raise VocabgraftError(
            f"known triples are an array of {known.dtype} with shape {known.shape}; allowed: the result of "
            "hash_triples (uint64, one per triple), or text columns head, relation and tail"
        )
    return np.unique(known)


def _three(sentence_features: Iterable[Features]) -> list[Features]:
    columns = list(sentence_features)
    if len(columns) != 3:
        raise VocabgraftError(
            f"a batch of triples has {len(columns)} columns of texts; needed: head, relation and tail, in this order"
        )
    return columns


def _require_margin(margin: float | None, negatives: int) -> None:
    if negatives < 0 or (margin is None) != (negatives == 0) or (margin is not None and margin <= 0):
        raise VocabgraftError(
            f"TranslationLoss: margin is {margin} with {negatives} negatives; allowed: neither, or a margin above 0 "
            "with at least 1 negative, such as margin=1.0, negatives=4"
        )


def _require_rows_alone(model: nn.Module) -> None:
    rows = {f"{name}.rows" for name, module in model.named_modules() if isinstance(module, TokenRows)}
    others = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in rows and not ROWS.search(name)
    ]
    if others:
        more = f" and {len(others) - SHOWN_NAMES} more" if len(others) > SHOWN_NAMES else ""
        raise VocabgraftError(
            "TranslationLoss without negatives is lowest if all texts have the same embedding, and this model can "
            f"reach that: {', '.join(others[:SHOWN_NAMES])}{more} train besides the rows of new tokens. Train only "
            "rows (method: tokens, or a phase with train: rows), give margin and negatives, or use "
            "TranslationRankingLoss"
        )


def _require_names(similarity: str, directions: Sequence[str]) -> None:
    if similarity not in get_args(Similarity):
        raise VocabgraftError(
            f"TranslationRankingLoss: similarity is {similarity!r}; allowed: {', '.join(get_args(Similarity))}"
        )
    if isinstance(directions, str) or not directions or not set(directions) <= set(get_args(Direction)):
        raise VocabgraftError(
            f"TranslationRankingLoss: directions is {directions!r}; allowed: a list of {', '.join(get_args(Direction))}"
        )
