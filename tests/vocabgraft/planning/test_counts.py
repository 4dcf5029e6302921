"""Counting words: in any number of processes, with bounded counters, names and numbers skipped."""

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import build_wordpiece, write_lines
from vocabgraft.errors import VocabgraftError
from vocabgraft.planning import counts as counting
from vocabgraft.planning.corpus import Block, Part, split_files
from vocabgraft.planning.counts import CountingJob, FormCounter, WordCounts, count_blocks, count_words, reason_to_skip
from vocabgraft.planning.word_forms import is_compound


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_wordpiece()


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def count(texts: list[str], tokenizer: Any, capacity: int = 10_000) -> WordCounts:
    job = CountingJob(tokenizer, (), capacity, 1)
    return count_blocks([Block(texts, 0)], FormCounter(tokenizer), job)


class Fatal(Part):
    """A part that ends the process that receives it, as the kernel does when memory runs out."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


def test_counting_in_several_processes_equals_counting_in_one(tmp_path: Path, tokenizer: Any) -> None:
    lines = [f"The dog{i % 50} and Cat{i % 33}, été{i % 7} of www.site{i}.org" for i in range(3000)]
    parts = split_files([write_lines(tmp_path / "corpus.txt", lines)], (), part_bytes=9_000)
    read: list[int] = []
    # Few counters: the merging of what is pruned must not depend on who finishes first either.
    for capacity in (100_000, 40):
        one = count_words(parts, tokenizer, (), 1, capacity, ignore)
        two = count_words(parts, tokenizer, (), 2, capacity, read.append)
        assert one == two
    assert (one.error > 0) and len(one.counts) <= 40
    assert sum(read) == 2 * sum(part.size for part in parts)


def test_parts_are_merged_in_their_order_however_long_each_takes(tmp_path: Path, tokenizer: Any) -> None:
    sizes = [40_000, *range(1, 12)]
    files = [write_lines(tmp_path / f"{size}.txt", ["dog cat"] * size) for size in sizes]
    job = CountingJob(tokenizer, (), 100, 1000)
    done = counting._in_processes(split_files(files, ()), job, 2, ignore)
    assert [counts.texts for counts in done] == sizes


def test_a_faulty_part_in_a_process_is_reported_as_in_this_one(tmp_path: Path, tokenizer: Any) -> None:
    content = b"word\n" * 30_000 + b"\xff\n"
    (tmp_path / "corpus.txt").write_bytes(content)
    parts = split_files([tmp_path / "corpus.txt"], (), part_bytes=50_000)
    for processes in (1, 2):
        with pytest.raises(VocabgraftError, match="line 30001 is not UTF-8"):
            count_words(parts, tokenizer, (), processes, 100, ignore)


def test_a_killed_process_is_reported_and_not_waited_for(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "corpus.txt", ["word"])
    with pytest.raises(VocabgraftError, match="ended with code 7"):
        count_words([Fatal(path, 0, 5, 5), Part(path, 0, 5, 5)], tokenizer, (), 2, 100, ignore)


def test_a_corpus_of_blank_lines_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    parts = split_files([write_lines(tmp_path / "corpus.txt", ["", "  "])], ())
    with pytest.raises(VocabgraftError, match="only blank texts"):
        count_words(parts, tokenizer, (), 1, 100, ignore)


@settings(max_examples=200, deadline=None)
@given(
    chunks=st.lists(st.lists(st.sampled_from("abcdefghijklmnop"), max_size=30), max_size=8),
    capacity=st.integers(1, 12),
    split=st.integers(0, 8),
)
def test_a_bounded_count_is_never_too_high_and_too_low_by_at_most_its_error(
    chunks: list[list[str]], capacity: int, split: int
) -> None:
    left, right = WordCounts(capacity), WordCounts(capacity)
    for number, chunk in enumerate(chunks):
        (left if number < split else right).add(Counter(chunk))
    left.merge(right)
    true = Counter(word for chunk in chunks for word in chunk)
    assert len(left.counts) <= capacity
    assert left.words == true.total()
    assert left.error * (capacity // 2 + 1) <= left.words
    for word, occurrences in true.items():
        assert occurrences - left.error <= left.counts.get(word, 0) <= occurrences


def test_counts_are_exact_while_all_words_fit(tokenizer: Any) -> None:
    counted = count(["dog cat dog", "Dog."], tokenizer, capacity=2)
    assert (counted.counts, counted.error) == ({"dog": 3, "cat": 1}, 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abzABZéÉ'-,.!?() ", max_size=15), min_size=1, max_size=8))
def test_words_of_prose_are_those_that_the_base_reads(texts: list[str]) -> None:
    tokenizer = build_wordpiece()
    # Without what would be a name or an identifier.
    texts = [re.sub(r"\.", ". ", text).casefold() for text in texts]
    expected: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        expected.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal) if word.isalpha())
    counted = count(texts, tokenizer)
    assert {word: uses for word, uses in counted.counts.items() if not is_compound(word)} == expected
    assert counted.words == expected.total()


@pytest.mark.parametrize(
    "name",
    "src/kidney.py kidney.txt (see:docs/kidney) https://kidney.org/stone www.kidney.org kidney@stone.de @kidney "
    "/kidney ./kidney ~/kidney C:\\kidney 550e8400-e29b-41d4-a716-446655440000".split(),
)
def test_parts_of_names_are_not_counted(tokenizer: Any, name: str) -> None:
    counted = count([f"dog {name} cat"], tokenizer)
    assert counted.counts == {"dog": 1, "cat": 1}
    assert counted.skipped == {"name": 1}


@pytest.mark.parametrize("word", ["snake_case", "getName", "parseHTML", "0xdeadbeef1", "a3f5c9e1"])
def test_identifiers_are_skipped(word: str) -> None:
    assert reason_to_skip(word) in ("identifier", "number")


@pytest.mark.parametrize("word", ["2024", "1980s", "b12", "p53"])
def test_numbers_are_skipped(word: str) -> None:
    assert reason_to_skip(word) == "number"


@pytest.mark.parametrize(
    "word", ["kidney", "Kidney", "MRI", "mRNA", "siRNA", "McDonald", "h1n1", "covid19", "facade", "été"]
)
def test_words_as_authors_write_them_are_kept(word: str) -> None:
    assert reason_to_skip(word) is None


def test_a_full_stop_a_quote_and_a_hyphen_do_not_hide_a_word(tokenizer: Any) -> None:
    assert count(['"Kidney." (kidney); kidney-stone, kidney\u2019s'], tokenizer).counts == {
        "kidney": 4, "stone": 1, "s": 1, "kidney-stone": 1,
    }  # fmt: skip


INVISIBLE = ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u200e", "\ue000", "\ufffd"]


@pytest.mark.parametrize("sign", INVISIBLE)
def test_what_the_base_takes_out_parts_no_word(tokenizer: Any, sign: str) -> None:
    assert tokenizer.normalizer.normalize_str(f"a{sign}b") == "ab"
    counted = count([f"Thrombo{sign}cytopenia was seen{sign}.", f"{sign}thrombocyto{sign}penia"], tokenizer)
    assert counted.counts == {"thrombocytopenia": 2, "was": 1, "seen": 1}
    assert counted.words == 4


def test_what_the_base_keeps_parts_words_as_its_tokenizer_does() -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    assert count(["thrombo\u00adcytopenia"], tokenizer).counts == {"thrombo": 1, "cytopenia": 1}
    # To the library these are parts of a word.
    assert count(["mi\u200ckha"], tokenizer).counts == {"mi\u200ckha": 1}


@pytest.mark.parametrize(
    ("text", "compounds"),
    [
        (
            "SARS-CoV-2, (5-HT2A) TNF-alpha. co\u2011trimoxazole",
            ["sars-cov-2", "5-ht2a", "tnf-alpha", "co\u2011trimoxazole"],
        ),
        ("O'Brien's Qur\u2019an's D'Amico, N'Djamena TNF-alpha's", ["tnf-alpha", "o'brien", "d'amico", "n'djamena"]),
        ("it's don't l'eau d'Alembert the dogs' 'quoted'", []),
        ("pre- and post-operative -x y- --long a--b end-stage- -end-stage x'a-b", ["post-operative"]),
        ("2020-01-01 12-15 1-2-3", []),
        ("getValue-x snake_case-y a3f5c9e1-b2", []),
        ("co-tri\u00admoxazole", ["co-trimoxazole"]),
        ("kidney-stone.txt", []),
    ],
)
def test_compounds_are_counted_as_wholes(tokenizer: Any, text: str, compounds: list[str]) -> None:
    counted = count([text], tokenizer)
    assert sorted(word for word in counted.counts if is_compound(word)) == sorted(compounds)


def test_the_words_of_a_compound_are_counted_too_and_no_word_twice(tokenizer: Any) -> None:
    counted = count(["co-trimoxazole", "trimoxazole"], tokenizer)
    assert counted.counts == {"co": 1, "trimoxazole": 2, "co-trimoxazole": 1}
    assert counted.words == 3


def test_scripts_without_spaces_are_segmented_by_icu_on_request(tokenizer: Any) -> None:
    pytest.importorskip("icu")
    texts = [
        "\u8840\u6db2\u900f\u6790\u6cbb\u7597\u3002dialysis\u7684",
        "\u0e1c\u0e39\u0e49\u0e1b\u0e48\u0e27\u0e22\u0e42\u0e23\u0e04\u0e44\u0e15",
        "\U00020000\u8840\u6db2",
    ]
    job = CountingJob(tokenizer, (), 100, 1, segment=True)
    counted = count_blocks([Block(texts, 0)], FormCounter(tokenizer, segment=True), job).counts
    assert {"\u8840\u6db2": 2, "\u900f\u6790": 1, "\u6cbb\u7597": 1, "dialysis": 1}.items() <= counted.items()
    assert counted["\u0e42\u0e23\u0e04"] == 1


def test_without_icu_segmenting_is_refused_with_what_to_install(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "icu", None)
    parts = split_files([write_lines(tmp_path / "corpus.txt", ["word"])], ())
    with pytest.raises(VocabgraftError, match="pip install PyICU"):
        count_words(parts, tokenizer, (), 1, 100, ignore, segment=True)


def test_a_decomposed_accent_is_part_of_its_word(tokenizer: Any) -> None:
    assert count(["me\u0301nage"], tokenizer).counts == {"menage": 1}


def test_a_cased_base_keeps_the_case() -> None:
    from tokenizers import normalizers

    cased = build_wordpiece()
    cased.normalizer = normalizers.BertNormalizer(lowercase=False)
    assert count(["Dog dog Été"], cased).counts == {"Dog": 1, "dog": 1, "Été": 1}


def test_a_base_that_changes_letters_is_queried_for_every_word() -> None:
    from tokenizers import normalizers

    odd = build_wordpiece()
    odd.normalizer = normalizers.Replace("o", "0")
    assert count(["dog"], odd).counts == {"d0g": 1}


def test_tokens_are_estimated_from_every_so_manieth_text(tokenizer: Any) -> None:
    job = CountingJob(tokenizer, (), 100, 3)
    # The first, fourth, seventh and tenth text: half of the characters, all of them tokens.
    blocks = [Block(["a", "xx", "xx", "a"], 0), Block(["xx", "xx", "a b", "x", "", "a b"], 0)]
    counted = count_blocks(blocks, FormCounter(tokenizer), job)
    assert (counted.sampled_texts, counted.sampled_tokens, counted.sampled_characters) == (4, 6, 8)
    assert counted.tokens == 6 / 8 * 17
