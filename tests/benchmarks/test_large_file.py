"""The generated triples, and what is read from the measurements."""

import re
from pathlib import Path

from benchmarks.large_file import HELD_OUT, RELATIONS, Measured, bytes_a_triple, generate, growth_over_steps, memory
from vocabgraft.data.accepted import AcceptedDataset


def test_triples_are_many_names_that_can_be_said_and_few_relations_the_same_each_time(tmp_path: Path) -> None:
    read = []
    for name in ("first", "second"):
        generate(tmp_path / name, 2_000)
        dataset = AcceptedDataset("relations", "triples", tmp_path / name)
        assert [dataset.rows(split) for split in ("train", "validation", "test")] == [2_000, HELD_OUT, 0]
        read.append(dataset.columns("train"))
    assert read[0] == read[1]
    entities = {*read[0]["head"], *read[0]["tail"]}
    assert 450 < len(entities) <= 500
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", name) for name in entities)
    assert len(set(read[0]["relation"])) == RELATIONS


def test_growth_is_reported_by_the_two_largest_sizes_and_by_the_second_half_of_the_steps() -> None:
    runs = [Measured(1_000_000, peak_anonymous=5_600), Measured(10_000, peak_anonymous=9_000)]
    runs.append(Measured(100_000, peak_anonymous=2_000))
    assert bytes_a_triple(runs) == 3_600 / 900_000
    assert growth_over_steps({10: 5, 20: 90, 30: 100, 40: 107}) == 7


def test_anonymous_memory_is_what_a_process_holds_itself() -> None:
    before = memory()["RssAnon"]
    held = bytearray(b"x" * (64 * 2**20))
    assert memory()["RssAnon"] - before > 60 * 2**20
    assert len(held) == 64 * 2**20
