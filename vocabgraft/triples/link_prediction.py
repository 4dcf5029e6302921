"""Link prediction: every entity ranked as the tail of (head, relation, ?) and as the head of (?, relation, tail).

Ranks are filtered (Bordes et al., 2013): other answers that are known to be true do not stand in the way. Entities that
score the same as the right one share their ranks, so a model that scores everything alike gets the middle.
"""

import csv
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

# A subclass needs its base when it is made; what imports this module evaluates with sentence-transformers anyway.
from sentence_transformers.base.evaluation import SentenceEvaluator

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.unnormalized import encode_pooled
from vocabgraft.triples.hashes import COLUMNS, hash_texts
from vocabgraft.triples.losses import Direction, Similarity

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Scoring = Literal["translation", "text", "closed_form"]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Ranks = np.ndarray[Any, np.dtype[np.float64]]
Figures = dict[str, float]
Columns = Mapping[str, Sequence[str]]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
HITS = (1, 3, 10)
FIGURES = ("mr", "mrr", *(f"hits@{limit}" for limit in HITS))
# 32 MB of scores: 80 queries at a time over 100,000 entities.
SCORES_AT_ONCE = 2**23

logger = logging.getLogger(__name__)


def rank_triples(
    queries: Embeddings,
    entities: Embeddings,
    triples: Ids,
    known: Ids,
    direction: Direction,
    similarity: Similarity = "euclidean",
    leave_out_query: bool = False,
    scores_at_once: int = SCORES_AT_ONCE,
    device: torch.device | str = "cpu",
) -> Ranks:
    """The filtered rank, 1 is best, of each triple's tail (or head) among all entities.

    The rank is 1 + the entities that score higher + half of those that score the same. Entities with equal embeddings
    are scored once, so that rounding never tells them apart.

    Args:
        queries: (triples, width), what the answer of each triple is to be similar to.
        entities: (entities, width).
        triples: places of head, relation and tail: (triples, 3).
        known: all triples known to be true, (known, 3); for the usual filter those of `triples` are among them.
        direction: `tail` ranks the third column, `head` the first.
        similarity: `euclidean` and `manhattan` are negative distances.
        leave_out_query: whether the entity that the query is made of is no candidate, unless it is the answer.
        scores_at_once: bounds the memory; it does not change the ranks.
        device: where the scores are computed.

    Returns:
        (triples,)

    Raises:
        VocabgraftError: when sizes do not fit, or a score is no number.
    """
    _require_fit(queries, entities, triples, known)
    asked, answer = (0, 2) if direction == "tail" else (2, 0)
    true = _TrueAnswers(known, asked, answer)
    kinds, rows = _distinct_rows(entities)
    scorer = _Scorer(entities[rows], np.bincount(kinds, minlength=len(rows)), similarity, device)
    ranks = np.zeros(len(triples))
    step = max(1, scores_at_once // max(1, len(rows)))
    for start in range(0, len(triples), step):
        block = triples[start : start + step]
        aside = [true.beside(triple, leave_out_query) for triple in block]
        ranks[start : start + step] = scorer.ranks(queries[start : start + step], kinds, block[:, answer], aside)
    return ranks


def rank_figures(ranks: Ranks) -> Figures:
    """Mean rank, mean reciprocal rank and the shares of ranks up to 1, 3 and 10."""
    hits = {f"hits@{limit}": float((ranks <= limit).mean()) for limit in HITS}
    return {"mr": float(ranks.mean()), "mrr": float((1 / ranks).mean()), **hits}


class LinkPredictionEvaluator(SentenceEvaluator):  # type: ignore[misc]  # its types are not followed
    """Filtered link prediction in the interface of the evaluators of sentence-transformers.

    Attributes:
        primary_metric: `mrr`, over both directions, with the evaluator's name before it.
        by_relation: after a call, figures by relation and direction (`both`, `tail`, `head`).
    """

    def __init__(  # noqa: PLR0913  # as many settings as its kin have, each by name
        self,
        heads: Sequence[str],
        relations: Sequence[str],
        tails: Sequence[str],
        *,
        known: Columns | None = None,
        entities: Sequence[str] = (),
        scoring: Scoring = "translation",
        template: str = "{head} {relation}",
        inverse_template: str | None = None,
        relation_vectors: Mapping[str, Embeddings] | None = None,
        similarity: Similarity | None = None,
        leave_out_query: bool = False,
        batch_size: int = 64,
        name: str = "",
        write_csv: bool = True,
        scores_at_once: int = SCORES_AT_ONCE,
    ) -> None:
        """Number the texts.

        Args:
            heads: of the triples to rank; one each with the next two.
            relations: texts such as `<|IsA|>`; for a model without that token, what it says.
            tails: of the triples to rank.
            known: columns head, relation and tail of all triples that are true, those to rank included or not; the
                relations in the same words.
            entities: texts that are candidates besides all heads and tails of these triples.
            scoring: `translation` looks near embed(head) + embed(relation), and near embed(tail) - embed(relation), all
                before Normalize; `closed_form` the same with the vectors given; `text` near the embedding of a text.
            template: of `text`, for (head, relation, ?).
            inverse_template: of `text`, for (?, relation, tail), such as `what {relation} {tail}`; that direction is
                left out where it is None.
            relation_vectors: of `closed_form`: (width,) by relation.
            similarity: by default `euclidean`, and the model's own for `text`.
            leave_out_query: whether the entity of the query itself is no candidate.
            batch_size: of the encoding.
            name: put before each figure.
            write_csv: whether the figures are written where an output path is given.
            scores_at_once: bounds the memory.

        Raises:
            VocabgraftError: for columns that are empty or uneven, an unknown scoring or similarity, a template with
                other fields, or a relation without a vector.
        """
        super().__init__()
        known = known or {column: [] for column in COLUMNS}
        _require_columns("triples to rank", (heads, relations, tails))
        _require_columns("known triples", [known.get(column, ()) for column in COLUMNS])
        if not len(heads):
            raise VocabgraftError("LinkPredictionEvaluator has no triple to rank; give heads, relations and tails")
        _require_settings(scoring, similarity, template, inverse_template)
        _require_vectors(scoring, relations, relation_vectors)
        self.texts = list(dict.fromkeys([*entities, *known["head"], *known["tail"], *heads, *tails]))
        self.relations = list(dict.fromkeys([*known["relation"], *relations]))
        self.triples = self._numbered(heads, relations, tails)
        self.known = np.concatenate([self.triples, self._numbered(*(known[column] for column in COLUMNS))])
        self.scoring, self.similarity, self.leave_out_query = scoring, similarity, leave_out_query
        self.templates: dict[Direction, str | None] = {"tail": template, "head": inverse_template}
        self.relation_vectors = relation_vectors or {}
        self.batch_size, self.name, self.write_csv, self.scores_at_once = batch_size, name, write_csv, scores_at_once
        self.primary_metric: str = "mrr"
        self.by_relation: dict[str, dict[str, Figures]] = {}
        self.csv_file = f"link_prediction_evaluation{'_' + name if name else ''}_results.csv"
        self.csv_by_relation = self.csv_file.replace("_results.csv", "_by_relation.csv")

    def __call__(
        self, model: "SentenceTransformer", output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Figures over both directions (`mrr`), each (`tail_mrr`), and each relation (`relation_IsA_mrr`).

        Raises:
            VocabgraftError: when a score is no number.
        """
        ranks = self._ranks(model)
        overall = _by_direction(ranks)
        self.by_relation = {
            self.relations[place]: _by_direction({name: found[of] for name, found in ranks.items()})
            for place in np.unique(self.triples[:, 1]).tolist()
            for of in [self.triples[:, 1] == place]
        }
        if output_path is not None and self.write_csv:
            self._write(Path(output_path), overall, epoch, steps)
        metrics = dict(overall["both"])
        for direction in ranks:
            metrics |= {f"{direction}_{name}": value for name, value in overall[direction].items()}
        for relation, figures in self.by_relation.items():
            metrics |= {f"relation_{_bare(relation)}_{name}": value for name, value in figures["both"].items()}
        logger.info("link prediction %s: %s", self.name, overall["both"])
        prefixed: dict[str, float] = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, prefixed, epoch, steps)
        return prefixed

    def get_config_dict(self) -> dict[str, Any]:
        """What is ranked and how, for the model card."""
        return {
            "scoring": self.scoring,
            "similarity": self.similarity,
            "leave_out_query": self.leave_out_query,
            "template": self.templates["tail"],
            "inverse_template": self.templates["head"],
        }

    def _numbered(self, heads: Sequence[str], relations: Sequence[str], tails: Sequence[str]) -> Ids:
        entity = {text: place for place, text in enumerate(self.texts)}
        relation = {text: place for place, text in enumerate(self.relations)}
        columns = [[entity[text] for text in heads], [relation[text] for text in relations]]
        return np.array([*columns, [entity[text] for text in tails]], dtype=np.int64).T

    def _ranks(self, model: "SentenceTransformer") -> dict[Direction, Ranks]:
        entities = self.encode_entities(model)
        similarity = self.similarity or (model.similarity_fn_name if self.scoring == "text" else "euclidean")
        return {
            direction: rank_triples(
                queries,
                entities,
                self.triples,
                self.known,
                direction,
                similarity,
                self.leave_out_query,
                self.scores_at_once,
                model.device,
            )
            for direction, queries in self._queries(model, entities).items()
        }

    def encode_entities(self, model: "SentenceTransformer") -> Embeddings:
        """(entities, width), in the order of `texts`; replace it where their embeddings are known.

        Texts that the tokenizer reads alike are encoded once, so that they score the same.
        """
        first, kinds = np.arange(len(self.texts)), np.arange(len(self.texts))
        if "attention_mask" in model.preprocess(self.texts[:1]):
            _, first, kinds = np.unique(hash_texts(model, self.texts), return_index=True, return_inverse=True)
        texts = [self.texts[place] for place in first.tolist()]
        if self.scoring == "text":
            found = encode(model, texts, self.batch_size, "document")
        else:
            found = encode_pooled(model, texts, self.batch_size)
        return found if len(found) == len(kinds) and (kinds == np.arange(len(kinds))).all() else found[kinds]

    def _queries(self, model: "SentenceTransformer", entities: Embeddings) -> dict[Direction, Embeddings]:
        heads, relations, tails = self.triples.T
        if self.scoring == "text":
            asked = dict(zip(DIRECTIONS, (heads, tails), strict=True))
            return {
                direction: self._encode_asked(model, template, asked[direction], relations)
                for direction, template in self.templates.items()
                if template is not None
            }
        vectors = self._relation_vectors(model)[relations]
        return {"tail": entities[heads] + vectors, "head": entities[tails] - vectors}

    def _relation_vectors(self, model: "SentenceTransformer") -> Embeddings:
        """(relations, width); a relation that is not asked for needs no vector."""
        if self.scoring == "translation":
            return encode_pooled(model, self.relations, self.batch_size)
        width = next(iter(self.relation_vectors.values())).shape[0]
        missing = np.zeros(width, dtype=np.float32)
        return np.stack([self.relation_vectors.get(name, missing) for name in self.relations]).astype(np.float32)

    def _encode_asked(self, model: "SentenceTransformer", template: str, asked: Ids, relations: Ids) -> Embeddings:
        texts = [
            _filled(template, self.texts[place], self.relations[relation])
            for place, relation in zip(asked.tolist(), relations.tolist(), strict=True)
        ]
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return encode(model, list(distinct), self.batch_size, "query")[[distinct[text] for text in texts]]

    def _write(self, folder: Path, overall: dict[str, Figures], epoch: int, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{direction}_{name}" for direction in ("both", *DIRECTIONS) for name in FIGURES]
        row = [overall.get(direction, {}).get(name, "") for direction in ("both", *DIRECTIONS) for name in FIGURES]
        _append(folder / self.csv_file, ["epoch", "steps", *names], [[epoch, steps, *row]])
        rows = [
            [epoch, steps, relation, direction, *(figures[name] for name in FIGURES)]
            for relation, directions in self.by_relation.items()
            for direction, figures in directions.items()
        ]
        _append(folder / self.csv_by_relation, ["epoch", "steps", "relation", "direction", *FIGURES], rows)


class _TrueAnswers:
    """The known answers of each pair of an entity and a relation, as two sorted arrays."""

    def __init__(self, known: Ids, asked: int, answer: int) -> None:
        self.asked, self.answer = asked, answer
        self.relations = int(known[:, 1].max(initial=0)) + 1
        keys = known[:, asked] * self.relations + known[:, 1]
        order = np.argsort(keys, kind="stable")
        self.keys, self.answers = keys[order], known[order, answer]

    def beside(self, triple: Ids, leave_out_query: bool) -> Ids:
        """The entities that do not stand in the way of a triple's right answer."""
        found = self.answers[:0]
        if triple[1] < self.relations:
            key = triple[self.asked] * self.relations + triple[1]
            start, end = np.searchsorted(self.keys, (key, key + 1))
            found = self.answers[start:end]
        aside: Ids = np.unique(np.append(found, triple[self.asked]) if leave_out_query else found)
        beside: Ids = aside[aside != triple[self.answer]]
        return beside


class _Scorer:
    """Scores queries against distinct embeddings, each of which stands for one or more entities."""

    def __init__(self, rows: Embeddings, counts: Ids, similarity: Similarity, device: torch.device | str) -> None:
        self.similarity, self.device = similarity, device
        self.counts = torch.from_numpy(counts).to(device)
        self.rows = self._prepared(rows)
        # With half of the squared length taken off, the product falls as the distance grows.
        self.offsets = self.rows.square().sum(dim=1) / 2 if similarity == "euclidean" else None

    def ranks(self, queries: Embeddings, kinds: Ids, answers: Ids, aside: Sequence[Ids]) -> Ranks:
        """Ranks of a block: (queries,)."""
        scores = self._scores(self._prepared(queries))
        if not torch.isfinite(scores).all():
            raise VocabgraftError(
                "a score of link prediction is no number; the model's weights or the relation vectors are damaged, so "
                "train again with lower learning rates"
            )
        right = scores.gather(1, torch.from_numpy(kinds[answers]).to(self.device).unsqueeze(1))
        none = torch.zeros((), dtype=self.counts.dtype, device=self.device)
        higher = torch.where(scores > right, self.counts, none).sum(dim=1).cpu().numpy().astype(np.float64)
        same = torch.where(scores == right, self.counts, none).sum(dim=1).cpu().numpy().astype(np.float64)
        # Those that do not stand in the way were counted with the others; looking them up costs what they are.
        sizes = [len(places) for places in aside]
        owner = np.repeat(np.arange(len(aside)), sizes)
        places = kinds[np.concatenate(aside)] if len(aside) else kinds[:0]
        looked_up = scores[torch.from_numpy(owner), torch.from_numpy(places)].cpu().numpy()
        own = right.squeeze(1).cpu().numpy()[owner]
        higher -= np.bincount(owner, looked_up > own, minlength=len(aside))
        same -= np.bincount(owner, looked_up == own, minlength=len(aside))
        # The right answer itself scores the same.
        ranks: Ranks = 1 + higher + (same - 1) / 2
        return ranks

    def _prepared(self, values: Embeddings) -> torch.Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)
        return torch.nn.functional.normalize(rows, dim=1) if self.similarity == "cosine" else rows

    def _scores(self, queries: torch.Tensor) -> torch.Tensor:
        if self.similarity == "manhattan":
            return -torch.cdist(queries, self.rows, p=1.0)
        products = queries @ self.rows.T
        return products if self.offsets is None else products.sub_(self.offsets)


def _distinct_rows(entities: Embeddings) -> tuple[Ids, Ids]:
    """For each entity the number of its embedding, and for each distinct embedding its first entity."""
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    kinds = np.zeros(len(entities), dtype=np.int64)
    for place, row in enumerate(entities):
        # A negative zero equals zero and has other bytes.
        key = hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest()
        kinds[place] = numbers.setdefault(key, len(numbers))
        if len(numbers) > len(first):
            first.append(place)
    return kinds, np.array(first, dtype=np.int64)


def _by_direction(ranks: Mapping[Direction, Ranks]) -> dict[str, Figures]:
    """Figures over all ranks, and over those of each direction."""
    both = rank_figures(np.concatenate(list(ranks.values())))
    return {"both": both, **{direction: rank_figures(found) for direction, found in ranks.items()}}


def _filled(template: str, entity: str, relation: str) -> str:
    return template.format(head=entity, tail=entity, relation=relation)


def _bare(relation: str) -> str:
    return relation.removeprefix("<|").removesuffix("|>")


def _append(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([header, *rows] if is_new else rows)


def _require_columns(what: str, columns: Sequence[Sequence[str]]) -> None:
    sizes = [len(column) for column in columns]
    if len(set(sizes)) > 1:
        raise VocabgraftError(
            f"LinkPredictionEvaluator: the {what} have {sizes[0]} heads, {sizes[1]} relations and {sizes[2]} tails; "
            "give each triple one of each"
        )


def _require_settings(scoring: str, similarity: str | None, template: str, inverse: str | None) -> None:
    for name, value, allowed in (
        ("scoring", scoring, get_args(Scoring)),
        ("similarity", similarity or "euclidean", get_args(Similarity)),
    ):
        if value not in allowed:
            raise VocabgraftError(f"LinkPredictionEvaluator: {name} is {value!r}; allowed: {', '.join(allowed)}")
    for name, text, entity in (("template", template, "head"), ("inverse_template", inverse, "tail")):
        try:
            filled = "" if text is None else text.format(**{entity: "\0", "relation": "\1"})
        except (KeyError, IndexError, ValueError):
            filled = ""
        if text is not None and ("\0" not in filled or "\1" not in filled):
            raise VocabgraftError(
                f"LinkPredictionEvaluator: {name} is {text!r}; it must hold {{{entity}}} and {{relation}} and no other "
                f"field, such as '{{{entity}}} {{relation}}'"
            )


def _require_vectors(scoring: Scoring, relations: Sequence[str], vectors: Mapping[str, Embeddings] | None) -> None:
    if scoring != "closed_form":
        return
    if absent := sorted(set(relations) - set(vectors or {})):
        raise VocabgraftError(
            f"LinkPredictionEvaluator: relation_vectors has none for {', '.join(absent)}; give closed_form of triples "
            "with these relations, or leave their triples out"
        )


def _require_fit(queries: Embeddings, entities: Embeddings, triples: Ids, known: Ids) -> None:
    if len(queries) != len(triples) or queries.shape[1] != entities.shape[1]:
        raise VocabgraftError(
            f"link prediction has queries of shape {queries.shape} for {len(triples)} triples and entities of shape "
            f"{entities.shape}; give a query of the entities' width for each triple"
        )
    last = max((int(ids[:, [0, 2]].max(initial=0)) for ids in (triples, known)), default=0)
    if last >= len(entities) or min(triples.min(initial=0), known.min(initial=0)) < 0:
        raise VocabgraftError(
            f"triples name the entity {last} (or one below 0), and there are {len(entities)} entities; allowed: 0 to "
            f"{len(entities) - 1}"
        )
