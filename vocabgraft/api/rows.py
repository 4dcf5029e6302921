"""Converts datasets in memory, in any common form, to training sets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vocabgraft.config.datasets import COLUMNS, MORE_NEGATIVES, LossParams
from vocabgraft.config.losses import DEFAULT_LOSS, LOSSES, Format, check_loss
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.columns import rows_for_loss
from vocabgraft.training.fit import TrainingSet

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Any  # a datasets.Dataset, or a list of tuples or dicts; the library has no types
# The name of an unnamed dataset.
ONE = "data"
TARGETS = ("label", "labels", "score", "scores")
PAIRS = "a list of (anchor, positive), (anchor, positive, negative), (sentence1, sentence2, score) or of dicts"


def training_sets(
    train: Rows | Mapping[str, Rows],
    held_out: Rows | Mapping[str, Rows] | None,
    loss: Any,
    weights: Mapping[str, float] | None,
    seed: int,
) -> list[TrainingSet]:
    """One training set per dataset.

    Args:
        train: a dataset, or a mapping from names to datasets.
        held_out: rows for the evaluation loss, in the same form, for all or some of the names.
        loss: for all datasets, or a mapping from their names: the name of a loss, `LossParams`, or a loss instance;
            None uses the default for the format of the rows.
        weights: of the losses, by dataset name.
        seed: of random numbers that a format needs.

    Raises:
        VocabgraftError: for invalid rows, names that do not match, or a loss that does not fit the rows.
    """
    named, kept_out = _by_name(train), {} if held_out is None else _by_name(held_out)
    several = len(named) > 1 or ONE not in named
    _require_names("eval_dataset", kept_out, named)
    losses = dict(loss) if several and isinstance(loss, Mapping) and "name" not in loss else dict.fromkeys(named, loss)
    _require_names("loss", losses, named)
    _require_names("weights", weights or {}, named)
    sets = []
    for name, rows in named.items():
        table = as_dataset(rows, f"train_dataset {name}" if several else "train_dataset")
        place = f"eval_dataset {name}" if several else "eval_dataset"
        other = as_dataset(kept_out[name], place) if name in kept_out else None
        sets.append(_training_set(name, table, other, losses.get(name), (weights or {}).get(name, 1.0), seed))
    return sets


def _by_name(rows: Rows | Mapping[str, Rows]) -> dict[str, Rows]:
    return dict(rows) if isinstance(rows, Mapping) else {ONE: rows}


def _require_names(argument: str, given: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    if unknown := sorted(set(given) - set(allowed)):
        raise VocabgraftError(
            f"{argument} names the dataset {unknown[0]!r}, which train_dataset does not have; "
            f"allowed: {', '.join(allowed)}"
        )


def as_dataset(rows: Rows, place: str) -> "Dataset":
    """A `datasets.Dataset` unchanged, or one made from a list of tuples or dicts.

    Raises:
        VocabgraftError: for any other type, rows of different forms, or no rows.
    """
    from datasets import Dataset

    if isinstance(rows, Dataset):
        table = rows
    elif isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise VocabgraftError(f"{place} is a {type(rows).__name__}; allowed: a datasets.Dataset, or {PAIRS}")
    else:
        table = Dataset.from_list(_as_dicts(list(rows), place))
    if not len(table):
        raise VocabgraftError(f"{place} has no rows; give at least one")
    return table


def _as_dicts(rows: Sequence[Any], place: str) -> list[dict[str, Any]]:
    keys: Sequence[str] | None = None
    made = []
    for number, row in enumerate(rows):
        entry = _as_dict(row)
        if entry is None or (keys is not None and list(entry) != list(keys)):
            raise VocabgraftError(f"{place}: row {number} is {row!r}; allowed: {PAIRS}, all rows in the same form")
        keys = list(entry)
        made.append(entry)
    return made


def _as_dict(row: Any) -> dict[str, Any] | None:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, (tuple, list)) or not row or not all(isinstance(text, str) for text in row[:-1]):
        return None
    names = _names_of(len(row), row[-1])
    return dict(zip(names, row, strict=False)) if len(names) >= len(row) else None


def _names_of(width: int, last: Any) -> tuple[str, ...]:
    """Column names for tuples of texts whose last element is a text or a number."""
    if isinstance(last, str):
        return ("anchor", "positive", "negative", *MORE_NEGATIVES) if width > 1 else ("text",)
    if not isinstance(last, (int, float)):
        return ()
    return {2: ("text", "label"), 3: ("sentence1", "sentence2", "label")}.get(width, ())


def _training_set(
    name: str, train: "Dataset", held_out: "Dataset | None", loss: Any, weight: float, seed: int
) -> TrainingSet:
    if loss is not None and not isinstance(loss, (str, Mapping, LossParams)):
        # The caller made this loss for these columns.
        return TrainingSet(name, train, loss, held_out, weight)
    dataset_format, train = in_format(train, name)
    chosen = _chosen(loss, dataset_format)
    entry, scores_each = LOSSES[chosen.name], chosen.name == "DistillKLDivLoss"

    def read(rows: "Dataset") -> "Dataset":
        return rows_for_loss(rows, dataset_format, entry, seed=seed, scores_each=scores_each)

    validation = None
    if held_out is not None:
        other, held_out = in_format(held_out, f"{name} of eval_dataset")
        if other != dataset_format:
            raise VocabgraftError(f"eval_dataset holds {other} and train_dataset {dataset_format}; give both the same")
        validation = read(held_out)
    return TrainingSet(name, read(train), chosen, validation, weight)


def _chosen(loss: str | Mapping[str, Any] | LossParams | None, dataset_format: Format) -> LossParams:
    try:
        if isinstance(loss, LossParams):
            chosen = loss
        else:
            named = {"name": loss or DEFAULT_LOSS[dataset_format]} if loss is None or isinstance(loss, str) else loss
            chosen = LossParams.model_validate(dict(named))
        wrappers = [(entry.name, entry.arguments) for entry in chosen.wrappers]
        check_loss(dataset_format, chosen.name, chosen.arguments, wrappers)
    except ValueError as error:
        raise VocabgraftError(f"the loss does not fit rows of {dataset_format}: {error}") from error
    return chosen


def in_format(rows: "Dataset", name: str) -> tuple[Format, "Dataset"]:
    """The format of rows, and the rows with that format's columns.

    Known column names decide. Otherwise the number of text columns and the type of the label decide, as in
    sentence-transformers, where a loss reads columns in order.

    Raises:
        VocabgraftError: for columns that fit no format.
    """
    names = rows.column_names
    for dataset_format in ("triples", "margins", "teacher_embeddings"):
        if set(COLUMNS[dataset_format]) <= set(names):
            return dataset_format, rows.select_columns(list(COLUMNS[dataset_format]))
    target = next((column for column in names if column in TARGETS), None)
    texts = [column for column in names if column != target]
    if not all(isinstance(rows[0][column], str) for column in texts):
        target = None
        texts = []
    found = _format_of(len(texts), None if target is None else rows.features[target].dtype)
    if found is None:
        raise VocabgraftError(
            f"dataset {name} has the columns {', '.join(names)}; allowed: text columns (anchor, positive, negatives), "
            "one or two text columns with label or score, or head, relation and tail"
        )
    wanted = [*COLUMNS[found], *(MORE_NEGATIVES if found == "triplets" else ())]
    in_order = [column for column in wanted if column in texts] if set(texts) <= set(wanted) else texts
    given = [*in_order, *([target] if target else [])]
    ordered = rows.select_columns(given)
    renamed = {old: new for old, new in zip(given, wanted, strict=False) if old != new}
    return found, ordered.rename_columns(renamed)


def _format_of(texts: int, target: str | None) -> Format | None:
    if target is None:
        by_number: dict[int, Format] = {1: "texts", 2: "pairs"}
        return by_number.get(texts, "triplets" if 3 <= texts <= 2 + len(MORE_NEGATIVES) + 1 else None)
    is_class = target.startswith(("int", "uint", "bool"))
    kinds: dict[tuple[int, bool], Format] = {
        (1, True): "labelled_texts",
        (2, True): "labelled_pairs",
        (2, False): "scored_pairs",
    }
    return kinds.get((texts, is_class))
