"""The metrics that `register_model.gates.benefit` may name, and which of them the given datasets can measure.

The check of `params.yaml` uses these names, so nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vocabgraft.config.losses import Format

Subset = Literal["all", "new_word", "no_new_word"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)
# What a metric must show: a gain over the base, a value near the base's, or a small loss.
Rule = Literal["gain", "fidelity", "kept"]
RETENTION = "retention"
SPEARMAN, COSINE, TOKENS = "spearman", "cosine", "tokens"
LINK_HITS = (1, 3, 10)
LINK_METRICS = ("link_mrr", *(f"link_hits@{limit}" for limit in LINK_HITS))
BENCHMARK_METRICS = ("ndcg@10", "mrr@10", "recall@100")


@dataclass(frozen=True)
class Benefit:
    """A metric of a dataset, over all of its held-out items or a subset of them.

    Attributes:
        dataset: name of a dataset or benchmark, or one of `WITHOUT_LABELS`.
        subset: items with a new word, items without one, or all.
        metric: name of the metric, such as `mrr`.
        rule: what the metric must show.
    """

    dataset: str
    subset: str
    metric: str
    rule: Rule = "gain"

    def __str__(self) -> str:
        named = WITHOUT_LABELS.get(self.dataset) == self
        return self.dataset if named else f"{self.dataset}.{self.subset}.{self.metric}"

    @property
    def key(self) -> tuple[str, str, str]:
        """Its key in the evaluation's files."""
        return self.dataset, self.subset, self.metric

    @property
    def depends_on_documents(self) -> bool:
        """Whether an item's value depends on the other texts of its dataset, as a rank does."""
        return self.metric not in (SPEARMAN, COSINE, TOKENS)


FIDELITY = Benefit("fidelity", "all", COSINE, "fidelity")
TOKENS_PER_TEXT = Benefit("tokens_per_text", "all", TOKENS)
KEPT = Benefit(RETENTION, "all", SPEARMAN, "kept")
# The benefits that need no labeled data. `params.yaml` names each by one word.
WITHOUT_LABELS: Mapping[str, Benefit] = {entry.dataset: entry for entry in (FIDELITY, TOKENS_PER_TEXT, KEPT)}


def parse_benefit(text: str) -> Benefit:
    """Parse `DATASET.SUBSET.METRIC` or one of `WITHOUT_LABELS`.

    Raises:
        ValueError: for any other text, with the forms that are allowed.
    """
    if text in WITHOUT_LABELS:
        return WITHOUT_LABELS[text]
    dataset, subset, metric = [*text.split("."), "", "", ""][:3]
    known = subset in SUBSETS and dataset not in (FIDELITY.dataset, TOKENS_PER_TEXT.dataset)
    if not (dataset and metric and known and text.count(".") == 2):
        raise ValueError(
            f"{text!r} names no metric; allowed: null, {', '.join(WITHOUT_LABELS)}, or DATASET.SUBSET.METRIC with "
            f"SUBSET one of {', '.join(SUBSETS)}, such as terms.new_word.mrr"
        )
    return Benefit(dataset, subset, metric)


def metrics_of(dataset_format: Format, recall_at: int) -> tuple[str, ...]:
    """The metrics that `evaluate_model` computes item by item for a format; most formats have none."""
    retrieval = ("mrr", f"recall@{recall_at}")
    by_format: dict[str, tuple[str, ...]] = {
        "pairs": retrieval,
        "triplets": retrieval,
        "triples": (*retrieval, *LINK_METRICS),
        "scored_pairs": (SPEARMAN,),
    }
    return by_format.get(dataset_format, ())


def require_measured(benefit: Benefit, measured: Mapping[str, Sequence[str]]) -> None:
    """Refuse a metric that these datasets do not measure.

    Args:
        benefit: the metric.
        measured: the metrics by dataset, benchmark or word of `WITHOUT_LABELS`.

    Raises:
        ValueError: with every metric that can be measured.
    """
    if benefit.metric in measured.get(benefit.dataset, ()):
        return
    words = [name for name in WITHOUT_LABELS if name in measured]
    subsets = f"{{{','.join(SUBSETS)}}}"
    named = [
        f"{name}.{subsets}.{{{','.join(metrics)}}}"
        for name, metrics in measured.items()
        if name not in (FIDELITY.dataset, TOKENS_PER_TEXT.dataset)
    ]
    raise ValueError(
        f"register_model.gates.benefit names {benefit}, which evaluate_model never measures item by item with these "
        f"datasets; allowed: {'; '.join(['null', *words, *named])}"
    )
