"""Choosing words: what is dropped, what is ranked first, where returns diminish."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import WORDS as BASE_WORDS
from tests.conftest import build_wordpiece
from tests.tokenizer_families import FAMILIES
from vocabgraft.errors import VocabgraftError
from vocabgraft.planning import ranking
from vocabgraft.planning.corpus import Block
from vocabgraft.planning.counts import CountingJob, FormCounter, count_blocks
from vocabgraft.planning.ranking import (
    PlanParams,
    contrast,
    knee,
    least_special_count,
    plan_vocabulary,
    segmentations,
    typos,
    within_one_edit,
)

WORDS = st.text("abc", max_size=5)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_wordpiece()


def planned(tokenizer: Any, counts: dict[str, int], **limits: Any) -> list[str]:
    return [word.text for word in plan_vocabulary(tokenizer, counts, PlanParams(**limits)).words]


def test_words_are_ranked_by_the_tokens_that_they_save(tokenizer: Any) -> None:
    plan = plan_vocabulary(tokenizer, {"hepatoma": 12, "stent": 40, "thrombopenia": 10}, PlanParams())
    assert [word.text for word in plan.words] == ["stent", "thrombopenia", "hepatoma"]
    assert [word.saved for word in plan.words] == [4 * 40, 11 * 10, 7 * 12]
    assert plan.cumulative_saved == [160, 270, 354]


def test_what_the_plan_says_is_saved_is_what_the_extension_saves(tokenizer: Any) -> None:
    from tokenizers import AddedToken, Tokenizer

    texts = ["Hepatoma of the dog", "a hepatoma, a stent", "(stent) stents hepatoma"]
    counts = {"hepatoma": 3, "stent": 2}
    plan = plan_vocabulary(tokenizer, counts, PlanParams(min_count=1))
    extended = Tokenizer.from_str(tokenizer.to_str())
    extended.add_tokens([AddedToken(word.text, single_word=True, normalized=True) for word in plan.words])
    before, after = (
        sum(len(encoded.ids) for encoded in each.encode_batch(texts, add_special_tokens=False))
        for each in (tokenizer, extended)
    )
    assert before - after == plan.cumulative_saved[-1]


COMPOUNDS = ("sars-cov-2", "5-ht2a", "tnf-alpha", "co-trimoxazole", "o'brien")


def test_a_compound_is_taken_in_place_of_the_words_that_are_used_in_it_alone(tokenizer: Any) -> None:
    counts = dict.fromkeys(COMPOUNDS, 20)
    counts |= {"sars": 20, "cov": 22, "ht2a": 20, "tnf": 39, "alpha": 25, "co": 20, "trimoxazole": 20, "brien": 20}
    plan = plan_vocabulary(tokenizer, counts, PlanParams())
    found = {word.text: word.count for word in plan.words}
    # What is left of the words is what they are used for elsewhere.
    assert found == {**dict.fromkeys(COMPOUNDS, 20), "tnf": 19, "alpha": 5}
    assert set(plan.dropped["used in compounds that are taken"].examples) == {
        "sars",
        "cov",
        "ht2a",
        "trimoxazole",
        "brien",
    }


def test_a_compound_whose_words_are_used_elsewhere_is_left_to_them(tokenizer: Any) -> None:
    counts = {"hepatoma": 100, "stent": 90, "hepatoma-stent": 10}
    plan = plan_vocabulary(tokenizer, counts, PlanParams())
    assert {word.text: word.count for word in plan.words} == {"hepatoma": 100, "stent": 90}
    assert plan.dropped["a compound whose words are used more often elsewhere"].examples == ("hepatoma-stent",)


def test_a_compound_of_words_that_the_base_has_must_be_special_or_a_name(tokenizer: Any) -> None:
    counts = {"dog-house": 50, "heart": 500, "hepatoma": 20, "dog'house": 6}
    assert planned(tokenizer, counts) == ["hepatoma", "dog'house"]
    background = {"heart": 500, "water": 500}
    plan = plan_vocabulary(tokenizer, counts, PlanParams(), background)
    assert {"dog-house", "hepatoma"} <= {word.text for word in plan.words}


def test_what_is_saved_by_compounds_is_what_the_extension_saves(tokenizer: Any) -> None:
    from tokenizers import AddedToken, Tokenizer

    texts = ["SARS-CoV-2 of the dog"] * 5 + ["a 5-HT2A, (TNF-alpha) TNF"] * 5 + ["O'Brien's co-trimoxazole."] * 5
    counted = count_blocks([Block(texts, 0)], FormCounter(tokenizer), CountingJob(tokenizer, (), 1000, 1))
    plan = plan_vocabulary(tokenizer, counted.counts, PlanParams(min_letters=1))
    assert set(COMPOUNDS) <= {word.text for word in plan.words}
    extended = Tokenizer.from_str(tokenizer.to_str())
    extended.add_tokens([AddedToken(word.text, single_word=True, normalized=True) for word in plan.words])
    before, after = (
        sum(len(encoded.ids) for encoded in each.encode_batch(texts, add_special_tokens=False))
        for each in (tokenizer, extended)
    )
    assert before - after == plan.cumulative_saved[-1]


def test_a_soft_hyphen_makes_no_words_of_the_parts(tokenizer: Any) -> None:
    texts = ["thrombo\u00adcytopenia was seen"] * 12
    counted = count_blocks([Block(texts, 0)], FormCounter(tokenizer), CountingJob(tokenizer, (), 1000, 1))
    plan = plan_vocabulary(tokenizer, counted.counts, PlanParams())
    assert {word.text: word.count for word in plan.words} == {"thrombocytopenia": 12, "seen": 12, "was": 12}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("dog", "one token in the base"),
        ("ab", "too few letters"),
        ("x1y2", "too few letters"),
        ("a" * 65, "too long"),
        ("中文字", "the base cannot read it"),
        ("abc.def", "the base reads it as several words"),
        ("dog-cat", "a compound of words that the base has"),
        ("straße", "the base cannot read it"),
        ("nephrolith", "in the vocabulary already"),
        ("hepatomaa", "typo of a frequent word"),
    ],
)
def test_what_cannot_or_need_not_be_added_is_dropped_with_its_reason(tokenizer: Any, word: str, reason: str) -> None:
    plan = plan_vocabulary(tokenizer, {"hepatoma": 500, word: 5}, PlanParams(), known=["Nephrolith"])
    assert [kept.text for kept in plan.words] == ["hepatoma"]
    assert plan.dropped[reason].examples == (word,)


def test_a_rare_word_is_dropped_and_counted(tokenizer: Any) -> None:
    plan = plan_vocabulary(tokenizer, {"hepatoma": 5, "stent": 4}, PlanParams())
    assert [word.text for word in plan.words] == ["hepatoma"]
    assert plan.dropped["below min_count"].words == 1


def test_of_two_casings_the_more_frequent_is_kept() -> None:
    from tokenizers import Tokenizer, models

    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    pieces = ["[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    cased = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    cased.pre_tokenizer = build_wordpiece().pre_tokenizer
    assert planned(cased, {"stent": 9, "sTent": 10, "sTENT": 8, "hepar": 7}) == ["sTent", "hepar"]


def test_with_a_background_only_words_that_are_special_are_kept(tokenizer: Any) -> None:
    counts, background = {"stent": 30, "morning": 30, "dog": 940}, {"morning": 30, "dog": 970}
    plan = plan_vocabulary(tokenizer, counts, PlanParams(), background)
    assert [(word.text, word.background_count) for word in plan.words] == [("stent", 0)]
    assert "morning" in plan.dropped["not special to the corpus"].examples


def test_the_best_candidates_are_looked_at_and_the_others_named(tokenizer: Any) -> None:
    assert planned(tokenizer, {"stent": 9, "hepar": 8, "colon": 7}, max_candidates=2) == ["stent", "hepar"]


@given(
    counts=st.dictionaries(st.text("adgos", min_size=3, max_size=9), st.integers(1, 9), min_size=1, max_size=40),
    limit=st.integers(1, 20),
    at_a_time=st.integers(1, 7),
)
def test_reading_only_what_promises_most_finds_the_same_best_words(
    tokenizer: Any, counts: dict[str, int], limit: int, at_a_time: int
) -> None:
    counts = {"sodagas": 1} | counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "ENCODED_AT_A_TIME", at_a_time)
        some = plan_vocabulary(tokenizer, counts, PlanParams(min_count=1, max_candidates=limit, typo_ratio=99)).words
    every = plan_vocabulary(tokenizer, counts, PlanParams(min_count=1, typo_ratio=99)).words
    assert [word.saved for word in some] == [word.saved for word in every[:limit]]


def test_nothing_worth_adding_is_reported_with_the_reasons(tokenizer: Any) -> None:
    with pytest.raises(VocabgraftError, match=r"no word of 2 .*below min_count: 1; one token in the base: 1"):
        plan_vocabulary(tokenizer, {"dog": 9, "stent": 1}, PlanParams())


def test_a_limit_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(VocabgraftError, match="min_count is 0; allowed: 1 or more"):
        PlanParams(min_count=0)


def test_byte_level_bases_read_a_word_after_a_space() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate("Ġabcdefghijklmnopqrstuvwxyz")}
    base = Tokenizer(models.BPE(letters | {"Ġs": 27}, [("Ġ", "s")]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plan = plan_vocabulary(base, {"stent": 9}, PlanParams())
    assert next(segmentations(base, ["stent"])) == ("Ġs", "t", "e", "n", "t")
    assert plan.words[0].pieces == 5


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=2))
def test_a_corpus_has_no_contrast_with_itself(counts: dict[str, int]) -> None:
    assert all(abs(score) < 1e-9 for score in contrast(counts, counts, counts).values())


@given(st.integers(1, 500), st.integers(0, 500))
def test_contrast_changes_its_sign_with_the_sides(here: int, there: int) -> None:
    left, right = {"w": here, "other": 1000}, {"w": there, "other": 1000}
    assert contrast(left, right, ["w"])["w"] == pytest.approx(-contrast(right, left, ["w"])["w"])


def test_contrast_equals_the_formula_worked_by_hand() -> None:
    # y = 30 of 1,000 here and 10 of 1,000 there; prior 4 of 200: log(34/1166) - log(14/1186), over sqrt(1/34 + 1/14).
    score = contrast({"w": 30, "o": 970}, {"w": 10, "o": 990}, ["w"])["w"]
    assert score == pytest.approx((-3.534919 + 4.439290) / 0.317543, abs=1e-3)


@pytest.mark.parametrize(("total", "background"), [(1000, 1000), (100_000, 1000), (1000, 100_000)])
def test_the_least_special_count_is_where_contrast_reaches_the_limit(total: int, background: int) -> None:
    def reached(count: int) -> bool:
        return contrast({"w": count, "o": total - count}, {"o": background}, ["w"])["w"] >= 1.645

    least = least_special_count(total, background, 1.645)
    assert reached(least) and not reached(least - 1)


def test_a_small_background_does_not_drop_what_it_should_have_had() -> None:
    # At one rate, the background would have 10 of them.
    assert contrast({"w": 1000, "o": 99_000}, {"o": 1000}, ["w"])["w"] > 2


@given(left=WORDS, right=WORDS)
def test_one_edit_is_what_the_definition_says(left: str, right: str) -> None:
    swaps = {left[:i] + left[i + 1 : i + 2] + left[i : i + 1] + left[i + 2 :] for i in range(len(left))}
    gaps = {left[:i] + left[i + 1 :] for i in range(len(left))}
    others = {left[:i] + letter + left[i + 1 :] for i in range(len(left)) for letter in "abc"}
    more = {left[:i] + letter + left[i:] for i in range(len(left) + 1) for letter in "abc"}
    assert within_one_edit(left, right) == (right in {left} | swaps | gaps | others | more)


@given(st.dictionaries(st.text("ab", min_size=1, max_size=4), st.integers(1, 300)), st.integers(2, 60))
def test_typos_are_those_that_a_comparison_of_all_pairs_finds(counts: dict[str, int], ratio: int) -> None:
    expected = {
        word
        for word in counts
        for meant in counts
        if counts[meant] >= ratio * counts[word] and within_one_edit(word, meant)
    }
    assert typos(list(counts), counts, ratio) == expected


def test_inflections_in_use_are_no_typos() -> None:
    counts = {"fistula": 900, "fistulas": 90, "fistual": 9, "fistla": 9}
    assert typos(list(counts), counts, 50) == {"fistual", "fistla"}


@pytest.mark.parametrize(
    ("saved", "words"),
    [([], 0), ([5], 0), ([3, 3, 3], 0), ([100, 100, 1, 1, 1, 1], 2), ([50, 20, 5, 1, 1, 1, 1, 1], 2)],
)
def test_returns_diminish_where_the_curve_leaves_its_chord_most(saved: list[int], words: int) -> None:
    assert knee(saved) == words


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_the_knee_lies_on_the_curve_and_does_not_depend_on_the_scale(saved: list[int]) -> None:
    ordered = sorted(saved, reverse=True)
    assert 0 <= knee(ordered) < len(ordered)
    assert knee(ordered) == knee([4 * figure for figure in ordered])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_promise_counts_the_space_that_a_base_keeps_before_an_added_word(family: str) -> None:
    from tokenizers import AddedToken, Tokenizer

    base, new = FAMILIES[family](), ["nephrolith", "thrombopenia", "hepatoma", "gastrodyn"]
    word = BASE_WORDS.__getitem__
    texts = [f"{word(i % 40)} {new[i % 4]} {word(i % 37)} of the {new[i % 3]} {word(i % 31)}." for i in range(200)]
    counts = count_blocks([Block(texts, 0)], FormCounter(base), CountingJob(base, (), 1000, 1)).counts
    plan = plan_vocabulary(base, counts, PlanParams(min_count=5))
    assert set(new) <= {word.text for word in plan.words}
    extended = Tokenizer.from_str(base.to_str())
    extended.add_tokens([AddedToken(word.text, single_word=True) for word in plan.words])
    before, after = (
        sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
        for tokenizer in (base, extended)
    )
    # The start of a text has no space before it, and some bases put one behind an added word.
    assert plan.cumulative_saved[-1] == pytest.approx(before - after, rel=0.02)


def test_a_word_of_two_subword_tokens_saves_nothing_where_the_space_stays() -> None:
    base = FAMILIES["unigram"]()
    plan = plan_vocabulary(base, {"dogx": 50, "nephrolith": 50}, PlanParams(min_count=5))
    assert [word.text for word in plan.words] == ["nephrolith"]
    assert plan.dropped["saves nothing"].examples == ("dogx",)
