"""What changed from one version to another: parameters, words, rows of data, and metrics on the same held-out items."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.registry.champion import ITEMS
from tasks.registry.lookup import Client, Registered, store_errors
from tasks.registry.register import DIGEST_CHARACTERS, PARAM_CHARACTERS, DataSplit, artifact_of, rows_of_splits
from vocabgraft.config.benefits import SUBSETS, TOKENS
from vocabgraft.evaluation.metrics import Measurement
from vocabgraft.storage.artifacts import read_json

TOKENS_FILE = "tokens.json"
CHANGES_TAG = "changes"
# Not compared, because they follow the reciprocal rank.
LEFT_OUT = ("link_hits", "recall")
NOT_PERCENT = ("cosine", TOKENS)
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Snapshot:
    """The inputs and metrics of a version.

    Attributes:
        base: name of the base in `base.json`; a version of the registry if the model extends one.
        params: parameters by `SECTION.KEY`, as MLflow keeps them.
        words: text of each new token.
        rows: number of rows and their digest, by `DATASET.SPLIT`.
        items: columns of `items.parquet`; None if it was not recorded.
    """

    base: str
    params: Mapping[str, str]
    words: Sequence[str]
    rows: Mapping[str, tuple[int, str]]
    items: Columns | None


def recorded(client: Client, version: Registered) -> Snapshot:
    """The snapshot of a registered version, read from its MLflow run.

    Raises:
        VocabgraftError: if the run cannot be read.
    """
    with store_errors(f"the run of {version.name} version {version.version} cannot be read"):
        run = client.get_run(version.run_id)
    with artifact_of(client, version, ITEMS) as path:
        items = pq.read_table(path).to_pydict() if path else None
    return Snapshot(
        version.tags.get("base", ""), run.data.params, _recorded_words(client, version), rows_of_splits(run), items
    )


def _recorded_words(client: Client, version: Registered) -> list[str]:
    with (
        tempfile.TemporaryDirectory() as folder,
        store_errors(f"{TOKENS_FILE} of {version.name} version {version.version} cannot be read"),
    ):
        if TOKENS_FILE not in {entry.path for entry in client.list_artifacts(version.run_id)}:
            return []
        return _words_in(Path(client.download_artifacts(version.run_id, TOKENS_FILE, folder)))


def of_this_run(
    base: str, params: Mapping[str, Any], tokens: Path, splits: Sequence[DataSplit], evaluation: Path
) -> Snapshot:
    """The snapshot of the model to register, read from the outputs of the stages."""
    return Snapshot(
        base=base,
        params={key: str(value)[:PARAM_CHARACTERS] for key, value in params.items()},
        words=_words_in(tokens),
        rows={f"{split.name}.{split.split}": (split.rows, split.digest[:DIGEST_CHARACTERS]) for split in splits},
        items=pq.read_table(evaluation / ITEMS).to_pydict(),
    )


def _words_in(path: Path) -> list[str]:
    return [entry["text"] for entry in read_json(path)]


def changes(before: Snapshot, after: Snapshot, version: Registered, seed: int) -> dict[str, Any]:
    """The changes from a version to a later one.

    Args:
        before: the earlier version.
        after: the later version.
        version: the earlier version's entry in the registry.
        seed: seed of the intervals.

    Returns:
        `since`, the earlier version; `params`, the changed parameters as [before, after]; `words` that were `added` and
        `removed`; `rows`, the splits whose content differs, with their number of rows as [before, after]; `figures`,
        metrics of both on the same held-out items with the gain, its 95 % interval and its verdict; and `problems`,
        the reasons why metrics could not be compared.
    """
    figures, problems = _figures(before.items, after.items, seed)
    grown = after.base == f"models:/{version.name}/{version.version}"
    return {
        "since": version.version,
        "params": _differing(before.params, after.params),
        "words": {
            "added": [word for word in after.words if word not in set(before.words)],
            # If the model extends the earlier version, the base has that version's words.
            "removed": [] if grown else [word for word in before.words if word not in set(after.words)],
        },
        "rows": {
            name: [before.rows.get(name, (0, ""))[0], after.rows.get(name, (0, ""))[0]]
            for name in sorted({*before.rows, *after.rows})
            if before.rows.get(name, (0, ""))[1] != after.rows.get(name, (0, ""))[1]
        },
        "figures": figures,
        "problems": problems,
    }


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str | None]]:
    names = sorted({*before, *after})
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}


def _figures(before: Columns | None, after: Columns | None, seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    if before is None or after is None:
        return [], ["the held-out items of one of the versions were not recorded, so no metric is compared"]
    figures, problems = list[dict[str, Any]](), list[str]()
    old, new = _by_metric(before), _by_metric(after)
    for (dataset, metric), rows in new.items():
        if metric.startswith(LEFT_OUT):
            continue
        measured = _beside(dataset, metric, old.get((dataset, metric)), rows)
        if measured is None:
            problems.append(f"{dataset}, {metric}: not compared, because the held-out items differ")
            continue
        figures += [entry for subset in SUBSETS if (entry := _figure(measured, subset, seed)) is not None]
    return figures, problems


def _by_metric(items: Columns) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    names = ("dataset", "metric", "item", "answer", "group", "score", "new_word", "merged")
    for values in zip(*(items[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        found.setdefault((row["dataset"], row["metric"]), []).append(row)
    return found


def _beside(
    dataset: str, metric: str, before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]]
) -> Measurement | None:
    """The values of both versions; None if their items differ or one of them has no value."""
    asked = ("item", "answer", "group", "score")
    if before is None or [[row[name] for name in asked] for row in before] != [
        [row[name] for name in asked] for row in after
    ]:
        return None
    if any(row["merged"] is None for row in (*before, *after)):
        return None
    scores = np.array([row["score"] for row in after], dtype=np.float64) if after[0]["score"] is not None else None
    whole = 100 if scores is None and metric not in NOT_PERCENT else 1
    return Measurement(
        dataset=dataset,
        metric=metric,
        items=[row["item"] for row in after],
        groups=[row["group"] for row in after],
        new_word=np.array([row["new_word"] for row in after], dtype=bool),
        values={
            name: whole * np.array([row["merged"] for row in rows], dtype=np.float64)
            for name, rows in (("before", before), ("after", after))
        },
        scores=scores,
        lower_is_better=metric == TOKENS,
    )


def _figure(measured: Measurement, subset: str, seed: int) -> dict[str, Any] | None:
    found = measured.compare("before", "after", subset, seed)
    if found is None or (subset != "all" and measured.rows(subset).all()):
        return None
    return {
        "dataset": measured.dataset,
        "subset": subset,
        "metric": measured.metric,
        "before": measured.figure("before", subset),
        "after": measured.figure("after", subset),
        **asdict(found),
        "items": int(measured.rows(subset).sum()),
        "verdict": _verdict(found.gain, found.low, found.high),
    }


def _verdict(gain: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return "could be chance"
    return "better" if gain > 0 else "worse"


def summary(found: Mapping[str, Any]) -> str:
    """The changes in one line, for a tag."""
    words = found["words"]
    parts = [_counted(len(found["params"]), "parameter")]
    parts += [f"{_counted(len(words[kind]), 'word')} {kind}" for kind in ("added", "removed") if words[kind]]
    parts += [f"{name}: {before} to {after} rows" for name, (before, after) in found["rows"].items()]
    shown = [entry for entry in found["figures"] if entry["verdict"] != "could be chance" and entry["subset"] == "all"]
    parts += [
        f"{entry['dataset']} {entry['metric']} {entry['gain']:+.2f} ({entry['low']:+.2f} to {entry['high']:+.2f})"
        for entry in shown
    ]
    return f"since version {found['since']}: {'; '.join(parts)}"


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}" + "s" * (number != 1)
