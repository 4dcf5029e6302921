"""Makes pairs from the vocabulary: a word or a sentence that contains it, and the word's description."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vocabgraft.config.datasets import JOINING, DatasetParams
from vocabgraft.data.splits import LargeGroup, group_rows, is_held_out
from vocabgraft.data.texts import fold
from vocabgraft.data.uses import tokens_in
from vocabgraft.data.validation import assign_splits, new_tokens
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Sentences per word; with more, frequent words would fill the batches and crowd out rare ones.
SENTENCES_PER_WORD = 8
COLUMNS = ["anchor", "positive", "group", "word", "file", "row"]


@dataclass(frozen=True)
class OtherRows:
    """Texts of the datasets that are read from files, folded by `texts.fold`.

    Attributes:
        texts: texts that can leak an answer, from the columns of `config.datasets.JOINING`.
        pairs: head and tail of triples; a tail leaks an answer only together with its head.
    """

    texts: Set[str]
    pairs: Set[frozenset[str]]

    def hold(self, word: NewToken) -> bool:
        """Whether one of the rows leaks the description of a word."""
        description = fold(word.description)
        return description in self.texts or frozenset((fold(word.text), description)) in self.pairs


def other_rows(examples: Sequence[tuple[DatasetParams, pd.DataFrame]], held_out: bool) -> OtherRows:
    """The held-out rows, or the training rows.

    Args:
        examples: each dataset that is read from files, with its accepted rows, which have a `split`.
        held_out: whether to return the held-out rows or the training rows.
    """
    texts, pairs = set[str](), set[frozenset[str]]()
    for dataset, frame in examples:
        rows = frame[(frame["split"] != "train") == held_out]
        for column in JOINING[dataset.format]:
            texts.update(map(fold, rows[column]))
        if dataset.format == "triples":
            pairs.update(
                frozenset((fold(head), fold(tail))) for head, tail in zip(rows["head"], rows["tail"], strict=True)
            )
    return OtherRows(texts, pairs)


def description_pairs(
    vocabulary: pd.DataFrame,
    contexts: pd.DataFrame,
    base: "Tokenizer",
    held_out_contexts: float,
    held_out: OtherRows,
) -> pd.DataFrame:
    """One pair for each word with a description, and one for each of the word's first sentences.

    No pair is made from

    - special tokens, because the base reads their description instead of them;
    - sentences with several words of the vocabulary, because several descriptions would be correct;
    - sentences that distillation holds out, because fidelity is measured on them;
    - descriptions and sentences in a held-out row of another dataset.

    Args:
        vocabulary: accepted rows, with `token`, `kind`, `description`, `row`, `file`; words of earlier runs too.
        contexts: accepted rows, with `text`, `row`, `file`.
        base: the base's tokenizer, not extended.
        held_out_contexts: share of the contexts that distillation holds out.
        held_out: rows that other datasets hold out.

    Returns:
        `anchor`, `positive`, `group`, the `word`, and the `file` and `row` of the anchor. The group is the word, or
        one of the words that share a description. Empty if no pair can be made.
    """
    words = new_tokens(vocabulary)
    usable = {place: word for place, word in enumerate(words) if is_described(word) and not held_out.hold(word)}
    # Words that share texts are held out together, by the same rule as rows of files.
    names = group_rows([None] * len(usable), [(word.text, word.description) for word in usable.values()]).names
    groups = dict(zip(usable, names, strict=True))
    origins = list(zip(vocabulary["file"], vocabulary["row"], strict=True))
    rows = [(word.text, word.description, groups[at], word.text, *origins[at]) for at, word in usable.items()]
    seen = {frozenset((fold(word.text), fold(word.description))) for word in usable.values()}
    left = dict.fromkeys(usable, SENTENCES_PER_WORD)
    found = tokens_in(base, words, list(contexts["text"]))
    for text, file, row, places in zip(contexts["text"], contexts["file"], contexts["row"], found, strict=True):
        if len(places) != 1 or not left.get(places[0]) or is_held_out(text, held_out_contexts):
            continue
        word = usable[places[0]]
        pair = frozenset((fold(text), fold(word.description)))
        # A sentence that equals the word or its description adds nothing.
        if len(pair) == 2 and pair not in seen and fold(text) not in held_out.texts:
            left[places[0]] -= 1
            seen.add(pair)
            rows.append((text, word.description, groups[places[0]], word.text, file, row))
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def split_pairs(
    pairs: pd.DataFrame, dataset: DatasetParams, trained: OtherRows
) -> tuple[pd.DataFrame, tuple[LargeGroup, ...]]:
    """Split the pairs by word, and keep held-out texts out of the training rows of other datasets.

    If another dataset trains on a description, its group is trained on here too. From held-out groups, sentences that
    another dataset trains on are dropped.

    Args:
        pairs: result of `description_pairs`.
        dataset: the dataset's settings.
        trained: rows that other datasets train on.

    Returns:
        The pairs with the columns that `validation.assign_splits` adds, and the groups that were cut.
    """
    rows, large = assign_splits(pairs.assign(given_for="train"), dataset)
    words = (NewToken(row.word, "word", row.positive) for row in rows.itertuples())
    known = rows["joined"].isin({name for name, word in zip(rows["joined"], words, strict=True) if trained.hold(word)})
    rows = rows.assign(split=rows["split"].mask(known & rows["joined"].notna(), "train"))
    repeats = [
        text != word and fold(text) in trained.texts for text, word in zip(rows["anchor"], rows["word"], strict=True)
    ]
    dropped = (rows["split"] != "train") & pd.Series(repeats, index=rows.index, dtype=bool)
    return rows[~dropped].reset_index(drop=True), large


def is_described(token: NewToken) -> bool:
    """Whether pairs can be made from a token: a word or symbol with a description that differs from it."""
    return token.kind != "special" and fold(token.description) not in ("", fold(token.text))
