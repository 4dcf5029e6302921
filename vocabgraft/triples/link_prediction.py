"""Link prediction: ranks every entity as the tail of (head, relation, ?) and as the head of (?, relation, tail).

Ranks are filtered (Bordes et al., 2013): other known answers do not count. Entities with the same score as the right
one share their ranks, so a model that scores all entities equally gets the middle rank.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

# A subclass needs its base at definition; users of this module need sentence-transformers anyway.
from sentence_transformers.base.evaluation import SentenceEvaluator

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.unnormalized import encode_pooled
from vocabgraft.triples.hashes import COLUMNS, hash_texts
from vocabgraft.triples.losses import Direction, Similarity
from vocabgraft.triples.ranking import HITS, SCORES_AT_ONCE, Figures, Ids, Ranks, rank_figures, rank_triples

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Scoring = Literal["translation", "text", "closed_form"]
Columns = Mapping[str, Sequence[str]]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
FIGURES = ("mr", "mrr", *(f"hits@{limit}" for limit in HITS))

logger = logging.getLogger(__name__)


class LinkPredictionEvaluator(SentenceEvaluator):  # type: ignore[misc]  # its types are not followed
    """Filtered link prediction with the interface of the evaluators of sentence-transformers.

    Attributes:
        primary_metric: `mrr`, over both directions, prefixed with the evaluator's name.
        by_relation: after a call, metrics by relation and direction (`both`, `tail`, `head`).
    """

    def __init__(  # noqa: PLR0913  # as many settings as other evaluators have, each by name
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
        """Map the texts to ids.

        Args:
            heads: of the triples to rank; one per triple, like the next two.
            relations: texts such as `<|IsA|>`; for a model without that token, its description.
            tails: of the triples to rank.
            known: columns head, relation and tail of all true triples, with or without those to rank; relations must be
                written as in `relations`.
            entities: additional candidates beside all heads and tails of these triples.
            scoring: `translation` looks near embed(head) + embed(relation), and near embed(tail) - embed(relation), all
                before Normalize; `closed_form` does the same with given vectors; `text` looks near the embedding of a
                text.
            template: for `text`, for (head, relation, ?).
            inverse_template: for `text`, for (?, relation, tail), such as `what {relation} {tail}`; None skips that
                direction.
            relation_vectors: for `closed_form`: (width,) by relation.
            similarity: by default `euclidean`, and the model's own for `text`.
            leave_out_query: whether to exclude the query's own entity from the candidates.
            batch_size: of the encoding.
            name: prefix of each metric.
            write_csv: whether to write the metrics if an output path is given.
            scores_at_once: bounds the memory.

        Raises:
            VocabgraftError: for columns that are empty or of different lengths, an unknown scoring or similarity, a
                template with other fields, or a relation without a vector.
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
        """Metrics over both directions (`mrr`), per direction (`tail_mrr`), and per relation (`relation_IsA_mrr`).

        Raises:
            VocabgraftError: when a score is NaN.
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
        """The settings of the evaluation, for the model card."""
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
        """(entities, width), in the order of `texts`; override it if their embeddings are known.

        Texts with the same tokens are encoded once, so that they score the same.
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
        """(relations, width); a relation without a query needs no vector."""
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


def _by_direction(ranks: Mapping[Direction, Ranks]) -> dict[str, Figures]:
    """Metrics over all ranks, and over those of each direction."""
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
            f"LinkPredictionEvaluator: relation_vectors has none for {', '.join(absent)}; compute closed_form from "
            "triples with these relations, or leave out their triples"
        )
