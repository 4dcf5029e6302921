"""Decides the split of each row by the hash of its group. Rows that share a text are one group."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from vocabgraft.config.datasets import Split
from vocabgraft.data.texts import fold

if TYPE_CHECKING:
    import numpy as np

SPLITS: tuple[Split, ...] = get_args(Split)
# A group with more than this share of the rows is cut, because it would dominate a split.
LARGEST_SHARE = 0.05
# Groups of so few rows are never cut: in a small file they exceed the share.
NEVER_CUT = 10


@dataclass(frozen=True)
class LargeGroup:
    """A group of rows that was larger than `LARGEST_SHARE` of all rows.

    Attributes:
        rows: number of rows before the cut.
        hubs: texts that no longer join rows, the most shared one first.
        largest: number of rows in its largest part after the cut.
        largest_key: the `group` or first text that most rows of that part have.
    """

    rows: int
    hubs: tuple[str, ...]
    largest: int
    largest_key: str


@dataclass(frozen=True)
class Groups:
    """The group of each row, named by a key of one of its rows, and the groups that were too large."""

    names: list[str]
    large: tuple[LargeGroup, ...] = ()


def split_of(group: str, validation: float, test: float) -> Split:
    """The split of a group: a pure function of its case-folded text and the two shares.

    The test share takes the lowest hashes and the validation share the next, so raising the validation share
    moves no item into or out of the test split.
    """
    position = int.from_bytes(_digest(group)[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"


def is_held_out(text: str, share: float) -> bool:
    """Whether a context is held out of training to measure fidelity; its hash decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < share


def group_rows(groups: Sequence[str | None], texts: Sequence[Sequence[str]]) -> Groups:
    """Join rows that share a group or a text: the connected components of rows and texts.

    A row's own key is its `group`, or its first text. Rows with the same own key are never separated. A component
    larger than `LARGEST_SHARE` of the rows (and than `NEVER_CUT` rows) is cut: the most shared texts stop joining rows,
    as few of them as necessary.

    A group's name is the own key with the lowest hash, so the name and the split do not depend on the order of rows.
    The name stays the same when rows are added, unless a row brings a new own key into the group or joins two groups.

    Args:
        groups: the user's group of each row; None or "" if it has none.
        texts: the texts of each row that may join it to others, at least one per row.
    """
    if not texts:
        return Groups([])
    own = [group or row[0] for group, row in zip(groups, texts, strict=True)]
    graph = _graph(groups, texts)
    labels = graph.components(graph.everything())
    limit = max(NEVER_CUT, int(LARGEST_SHARE * len(texts)))
    large = []
    for label in _larger_than(limit, labels):
        rows = labels == label
        parts, hubs = graph.cut(rows, limit)
        labels[rows] = labels.max() + 1 + parts[rows]
        large.append(_large_group(graph, own, labels, rows, hubs))
    return Groups(_names(labels.tolist(), own), tuple(large))


def split_rows(
    groups: Sequence[str | None], texts: Sequence[Sequence[str]], validation: float, test: float
) -> tuple[Groups, list[Split]]:
    """The groups of rows (`group_rows`), and the split of each row, which is that of its group (`split_of`)."""
    found = group_rows(groups, texts)
    return found, [split_of(name, validation, test) for name in found.names]


def _digest(text: str) -> bytes:
    return hashlib.sha256(fold(text).encode()).digest()


def _names(labels: Sequence[int], own: Sequence[str]) -> list[str]:
    # By bytes that `split_of` does not read: with the same bytes, the lowest would be in the test split too often.
    order = {key: (_digest(key)[8:], key) for key in set(own)}
    names: dict[int, str] = {}
    for label, key in zip(labels, own, strict=True):
        names[label] = min(names.get(label, key), key, key=order.__getitem__)
    return [names[label] for label in labels]


def _larger_than(limit: int, labels: "np.ndarray[Any, Any]") -> list[int]:
    import numpy as np

    found, counts = np.unique(labels, return_counts=True)
    return [int(label) for label in found[counts > limit]]


def _large_group(
    graph: "_Graph",
    own: Sequence[str],
    labels: "np.ndarray[Any, Any]",
    rows: "np.ndarray[Any, Any]",
    hubs: Sequence[int],
) -> LargeGroup:
    import numpy as np

    found, counts = np.unique(labels[rows], return_counts=True)
    keys: dict[str, int] = {}
    for place in np.flatnonzero(labels == found[counts.argmax()]).tolist():
        keys[own[place]] = keys.get(own[place], 0) + 1
    most = max(keys, key=lambda key: (keys[key], key))
    return LargeGroup(int(rows.sum()), tuple(graph.texts[hub] for hub in hubs), int(counts.max()), most)


@dataclass(frozen=True)
class _Graph:
    """Edges from rows to their keys and texts. Edges to own keys are never removed.

    Attributes:
        rows: number of rows.
        row, node: both ends of each edge.
        is_own: whether the edge leads to the row's own key.
        degree: number of edges to each node, without those of own keys.
        texts: text of each node.
    """

    rows: int
    row: "np.ndarray[Any, Any]"
    node: "np.ndarray[Any, Any]"
    is_own: "np.ndarray[Any, Any]"
    degree: "np.ndarray[Any, Any]"
    texts: Sequence[str]

    def everything(self) -> "np.ndarray[Any, Any]":
        import numpy as np

        return np.ones(len(self.row), dtype=bool)

    def components(self, edges: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """The component of each row in the graph of only these edges: shape (rows,)."""
        import numpy as np
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        size = self.rows + len(self.texts)
        ends = (self.row[edges], self.rows + self.node[edges])
        matrix = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(size, size))
        return np.asarray(connected_components(matrix, directed=False)[1][: self.rows])

    def cut(self, rows: "np.ndarray[Any, Any]", limit: int) -> tuple["np.ndarray[Any, Any]", list[int]]:
        """Cut a component into parts of at most `limit` rows, if own keys allow it; also returns the removed texts.

        The most shared texts are removed first. Bisection finds the largest number of rows that a text may still join:
        a lower number makes parts smaller, never larger.
        """
        import numpy as np

        inside = rows[self.row]
        nodes = np.unique(self.node[inside & ~self.is_own])
        degrees = np.array([0, *np.unique(self.degree[nodes])])

        def parts(most: int) -> "np.ndarray[Any, Any]":
            return self.components(inside & (self.is_own | (self.degree[self.node] <= most)))

        # At least the texts of the highest degree are removed.
        low, high = 0, len(degrees) - 2
        while low < high:
            middle = (low + high + 1) // 2
            fits = not _larger_than(limit, parts(int(degrees[middle]))[rows])
            low, high = (middle, high) if fits else (low, middle - 1)
        found, most = parts(int(degrees[low])), int(degrees[low])
        # Own keys alone may connect a component; a text in only one row connects nothing.
        is_cut = len(np.unique(found[rows])) > 1
        given_up = [int(node) for node in nodes if self.degree[node] > max(most, 1)] if is_cut else []
        return found, sorted(given_up, key=lambda node: (-self.degree[node], self.texts[node]))


def _graph(groups: Sequence[str | None], texts: Sequence[Sequence[str]]) -> _Graph:
    import numpy as np

    # A group and a text are different nodes, even if they are the same string.
    places: dict[tuple[bool, str], int] = {}
    row, node, is_own = list[int](), list[int](), list[bool]()
    for place, (group, own_texts) in enumerate(zip(groups, texts, strict=True)):
        for found, own in _edges(group, own_texts):
            row.append(place)
            node.append(places.setdefault(found, len(places)))
            is_own.append(own)
    nodes, owns = np.array(node), np.array(is_own)
    degree = np.bincount(nodes[~owns], minlength=len(places))
    return _Graph(len(texts), np.array(row), nodes, owns, degree, [text for _, text in places])


def _edges(group: str | None, texts: Sequence[str]) -> Iterable[tuple[tuple[bool, str], bool]]:
    yield ((True, fold(group)) if group else (False, fold(texts[0]))), True
    for text in dict.fromkeys(map(fold, texts)):
        yield (False, text), False
