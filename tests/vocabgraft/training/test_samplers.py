"""Which rows make a batch."""

import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.sampler import GroupByLabelBatchSampler, NoDuplicatesBatchSampler

from vocabgraft.training.samplers import LengthGroupedBatchSampler, RandomBatches, batches_of


def sampler(dataset: Dataset, batch_size: int, *, by_length: bool = False, drop_last: bool = False, seed: int = 0):
    generator = torch.Generator()
    options = {"drop_last": drop_last, "valid_label_columns": ["label"], "generator": generator, "seed": seed}
    return batches_of(dataset, batch_size, by_length, **options)


def pairs(rows: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"anchor": [row[0] for row in rows], "positive": [row[1] for row in rows]})


words = st.text("ab", min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=40), st.integers(2, 8), st.integers(0, 3))
def test_batches_by_length_hold_every_row_once_and_no_text_twice(rows, batch_size, epoch):
    dataset = pairs(rows)
    batches = sampler(dataset, batch_size, by_length=True)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(row for batch in found for row in batch) == list(range(len(rows)))
    for batch in found:
        assert len(batch) <= batch_size
        texts = [text for row in batch for text in set(rows[row])]
        assert len(texts) == len(set(texts))


def test_batches_by_length_pad_less_than_random_ones():
    rows = [(f"{place} " + "word " * (1 if place % 2 else 40), f"answer {place}") for place in range(256)]
    dataset = pairs(rows)

    def padded(batches):
        return sum(len(batch) * max(len(rows[row][0]) for row in batch) for batch in batches)

    grouped, mixed = (list(sampler(dataset, 16, by_length=by_length)) for by_length in (True, False))
    assert padded(grouped) < 0.6 * padded(mixed)
    lengths = [len(rows[batch[0]][0]) for batch in grouped]
    assert lengths != sorted(lengths), "the batches come in random order"


def test_batches_by_length_are_the_same_for_a_seed_and_others_in_the_next_epoch():
    dataset = pairs([(f"anchor {place}", f"positive {place}") for place in range(64)])
    first, again, other = (sampler(dataset, 8, by_length=True) for _ in range(3))
    torch.rand(3)
    assert list(first) == list(again)
    other.set_epoch(1)
    assert list(other) != list(first)


def test_a_last_batch_that_is_not_full_is_dropped_where_asked():
    dataset = pairs([(f"anchor {place}", f"positive {place}") for place in range(10)])
    batches = sampler(dataset, 4, by_length=True, drop_last=True)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(batches) == 2
    assert len(sampler(dataset, 4, by_length=True)) == 3


def test_triples_of_one_relation_fill_whole_batches():
    rows = {"head": [f"h{place}" for place in range(64)], "relation": ["<|IsA|>"] * 64, "tail": ["thing"] * 64}
    dataset = Dataset.from_dict(rows)
    for by_length in (False, True):
        batches = list(sampler(dataset, 16, by_length=by_length))
        assert [len(batch) for batch in batches] == [16] * 4
        assert sorted(row for batch in batches for row in batch) == list(range(64))


def test_the_columns_choose_the_sampler():
    labelled = Dataset.from_dict({"text": list("abcdefgh"), "label": [0, 1] * 4})
    assert isinstance(sampler(labelled, 4), GroupByLabelBatchSampler)
    assert isinstance(sampler(labelled, 4, by_length=True), GroupByLabelBatchSampler)
    plain = pairs([("a", "b"), ("c", "d")])
    assert isinstance(sampler(plain, 2), NoDuplicatesBatchSampler)
    assert isinstance(sampler(plain, 2, by_length=True), LengthGroupedBatchSampler)
    triples = Dataset.from_dict({"head": ["a"], "relation": ["r"], "tail": ["b"]})
    assert isinstance(sampler(triples, 2), RandomBatches)
