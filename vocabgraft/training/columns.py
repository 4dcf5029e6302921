"""Converts accepted rows to the columns that a loss reads, memory-mapped from Arrow files."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.config.datasets import DEFAULT_TEMPLATE, MORE_NEGATIVES, Split
from vocabgraft.config.losses import Format, LossEntry, Reads
from vocabgraft.data.accepted import AcceptedDataset, fill_template
from vocabgraft.tokens.new_token import relation_token

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, list[Any]]
# As in TSDAE (Wang et al., 2021).
SHARE_OF_WORDS_KEPT = 0.4
# As in Contrastive Tension (Carlsson et al., 2021): one of this many pairs is a text with itself.
TEXTS_A_POSITIVE = 8
QUERY_COLUMNS = ("anchor", "query")
DOCUMENT_COLUMNS = ("positive", "negative", *MORE_NEGATIVES)
OTHER_COLUMNS = ("head", "relation", "tail", "sentence1", "sentence2", "text", "noisy", "other")
COLUMNS_READ: dict[Reads, tuple[str, ...]] = {
    "pair": ("anchor", "positive", "negative", *MORE_NEGATIVES),
    "triplet": ("anchor", "positive", "negative"),
    "triple": ("head", "relation", "tail"),
    "scored": ("sentence1", "sentence2", "label"),
    "labelled_pair": ("sentence1", "sentence2", "label"),
    "labelled_text": ("text", "label"),
    "single": ("text",),
    "noisy": ("noisy", "text"),
    "contrast": ("text", "other", "label"),
    "teacher": ("text", "label"),
    "margin": ("query", "positive", "negative", "label"),
}
# sentence-transformers reads the target of a row from a column of this name.
TARGETS = {"score": "label", "embedding": "label", "margin": "label"}


def load_rows(
    dataset: AcceptedDataset, split: Split, entry: LossEntry, cache: Path, seed: int = 0, scores_each: bool = False
) -> "Dataset":
    """A non-empty split, as the columns that a loss reads, in its order.

    Args:
        dataset: accepted by `validate_data`.
        split: the split to read.
        entry: of the loss.
        cache: folder for the Arrow files.
        seed: of the random numbers: words removed as noise, and texts paired at random.
        scores_each: give a margin as a score for the positive and one for the negative.
    """
    from datasets import Dataset

    rows = Dataset.from_parquet(str(dataset.path(split)), cache_dir=str(cache))
    return rows_for_loss(rows, dataset.format, entry, dataset.template, seed, scores_each)


def rows_for_loss(
    rows: "Dataset",
    dataset_format: Format,
    entry: LossEntry,
    template: str = DEFAULT_TEMPLATE,
    seed: int = 0,
    scores_each: bool = False,
) -> "Dataset":
    """Convert rows in the columns of their format (`vocabgraft.config.datasets.COLUMNS`) to those that a loss reads.

    Args:
        rows: at least one.
        dataset_format: of the rows.
        entry: of the loss.
        template: of a triple's query for its tail, for losses over pairs.
        seed: of the words removed as noise and of the texts paired at random.
        scores_each: give a margin as a score for the positive and one for the negative.
    """
    names = rows.column_names
    rows = rows.rename_columns({name: target for name, target in TARGETS.items() if name in names})
    if dataset_format == "triples":
        build = partial(_as_questions, template) if entry.reads == "pair" else _with_tokens
        rows = rows.map(build, batched=True, remove_columns=names)
    elif entry.reads == "noisy":
        rows = rows.map(partial(_with_noise, seed), batched=True, with_indices=True)
    elif entry.reads == "contrast":
        rows = _paired(rows, seed)
    elif dataset_format == "triplets" and entry.negatives == 1:
        rows = rows.map(_a_row_for_each_negative, batched=True, remove_columns=rows.column_names)
    if scores_each:
        rows = rows.map(_as_scores, batched=True, remove_columns=["label"])
    return rows.select_columns([name for name in COLUMNS_READ[entry.reads] if name in rows.column_names])


def _as_questions(template: str, batch: Batch) -> Batch:
    asked = [fill_template(template, head, name) for head, name in zip(batch["head"], batch["relation"], strict=True)]
    return {"anchor": asked, "positive": batch["tail"]}


def _with_tokens(batch: Batch) -> Batch:
    return {"head": batch["head"], "relation": list(map(relation_token, batch["relation"])), "tail": batch["tail"]}


def _with_noise(seed: int, batch: Batch, places: list[int]) -> Batch:
    return {"noisy": [_noisy(text, seed, place) for text, place in zip(batch["text"], places, strict=True)]}


def _noisy(text: str, seed: int, place: int) -> str:
    words = text.split()
    draws = np.random.default_rng([seed, place]).random(len(words))
    # At least one word is kept, the one with the lowest draw.
    kept = draws < max(SHARE_OF_WORDS_KEPT, float(draws.min()) + 1e-12)
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def _paired(rows: "Dataset", seed: int) -> "Dataset":
    order = np.random.default_rng(seed).permutation(len(rows))
    # The next text in a random order: another text for each, whatever the file's order.
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -1)
    same = np.arange(len(rows)) % TEXTS_A_POSITIVE == 0
    other = rows.select(np.where(same, np.arange(len(rows)), partner).tolist())["text"]
    return rows.add_column("other", list(other)).add_column("label", (same | (partner == np.arange(len(rows)))) * 1.0)


def _a_row_for_each_negative(batch: Batch) -> Batch:
    names = [name for name in ("negative", *MORE_NEGATIVES) if name in batch]
    return {
        "anchor": [text for text in batch["anchor"] for _ in names],
        "positive": [text for text in batch["positive"] for _ in names],
        "negative": [text for row in zip(*(batch[name] for name in names), strict=True) for text in row],
    }


def _as_scores(batch: Batch) -> Batch:
    # A softmax over scores depends only on their differences, so the negative's may be 0.
    return {"label": [[margin, 0.0] for margin in batch["label"]]}


def ids_without_text(tokenizer: Any, datasets: Sequence[AcceptedDataset], ids: Sequence[int]) -> list[int]:
    """Those `ids` that no text of a train split holds; training cannot change their rows."""
    return ids_not_in(tokenizer, (block for dataset in datasets for block in dataset.text_blocks("train")), ids)


def ids_not_in(tokenizer: Any, blocks: Iterable[Sequence[str]], ids: Sequence[int]) -> list[int]:
    """Those `ids` that no text of the blocks holds; reading stops once every id was seen."""
    lacking = set(ids)
    for block in blocks:
        encoded = tokenizer(list(dict.fromkeys(block)), add_special_tokens=False, verbose=False)["input_ids"]
        lacking.difference_update(token for text in encoded for token in text)
        if not lacking:
            return []
    return [token for token in ids if token in lacking]
