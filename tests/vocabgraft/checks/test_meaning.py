"""Meaning is judged by tests that hold for 3 tokens and for 300; embeddings are given, so that the truth is known."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.vocabgraft.checks.test_runner import changed, gather, params_of, put, result
from tests.vocabgraft.conftest import Graft
from vocabgraft.checks import meaning as meaning_checks
from vocabgraft.checks.context import Evidence, Probes
from vocabgraft.errors import VocabgraftError
from vocabgraft.token_embeddings.distill import Context
from vocabgraft.tokens.tokenizer import ExtendedToken
from vocabgraft.triples.relation_ranks import HeldOutTriples

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WIDTH = 96
# Of each number of an embedding, over what a direction of length 1 has: cosines of about 0.5, as in a real model.
NOISE = 0.1
USES = 8
UNRELATED = tuple(f"unrelated {number}" for number in range(40))
SIZES = (3, 30, 300)


@pytest.fixture(scope="module")
def plain(graft: Graft) -> Evidence:
    """Evidence of a sound chain; never changed."""
    return gather(graft, "tokens")


@pytest.fixture(autouse=True)
def _no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiny model has no rows for hundreds of tokens.
    monkeypatch.setattr(meaning_checks, "_nearest", lambda evidence, token: "nearest old tokens: none")


def direction(name: str) -> "np.ndarray[Any, Any]":
    """A direction for a name: nearly a right angle to that of any other name."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).normal(size=WIDTH)
    return np.asarray(drawn / np.linalg.norm(drawn))


def noisy(meaning: str | None, text: str) -> list[float]:
    """An embedding of a text that means something, or nothing."""
    noise = np.random.default_rng(zlib.crc32(f"noise of {text}".encode())).normal(size=WIDTH) * NOISE
    return list(noise + (0 if meaning is None else direction(meaning)))


def answer(table: Callable[[str], Sequence[float]], model: "SentenceTransformer") -> "SentenceTransformer":
    """The model with embeddings that are given."""

    def encode(texts: Sequence[str], **_: Any) -> Any:
        return np.array([table(text) for text in texts], dtype=np.float32)

    model.encode = model.encode_query = model.encode_document = encode  # type: ignore[method-assign]
    return model


def meant(evidence: Evidence, rows: Sequence[int | None], uses: int = USES, **params: Any) -> Evidence:
    """Tokens with a description and texts each, of which number i has the row of number rows[i], or a random one."""
    tokens = tuple(
        ExtendedToken(f"token{number}", "word", f"description of meaning{number}", 100 + number, (1,), (2,))
        for number in range(len(rows))
    )

    def by_base(text: str) -> list[float]:
        found = re.search(r"meaning\d+$", text)
        return noisy(found[0] if found else None, text)

    def by_merged(text: str) -> list[float]:
        row = rows[int(text.removeprefix("token"))]
        return noisy(None if row is None else f"meaning{row}", text)

    base, merged = answer(by_base, changed(evidence, "base")), answer(by_merged, changed(evidence))
    probes = Probes(evidence.probes.with_new, UNRELATED)
    made = replace(put(evidence, base=base, merged=merged), tokens=tokens, probes=probes, params=params_of(**params))
    # The tokenizer knows no such tokens, so their texts are given.
    made.__dict__["uses"] = {
        token.id: [Context("", f"text {use} of meaning{number}", (token.id,), 1) for use in range(uses)]
        for number, token in enumerate(tokens)
    }
    return made


def verdicts(evidence: Evidence) -> dict[str, str]:
    """Of the checks of tokens."""
    names = ("description_cosine", "descriptions_told_apart", "swapped_tokens")
    return {name: result(name, evidence).verdict for name in names}


@pytest.mark.parametrize("size", SIZES)
def test_sound_tokens_pass_however_many_they_are(plain: Evidence, size: int) -> None:
    found = verdicts(meant(plain, range(size)))
    few = "too few to judge" if size == 3 else "passed"
    assert found == {"description_cosine": "passed", "descriptions_told_apart": few, "swapped_tokens": "passed"}


@pytest.mark.parametrize("size", SIZES)
def test_two_swapped_rows_are_found_and_named(plain: Evidence, size: int) -> None:
    found = result("swapped_tokens", meant(plain, [1, 0, *range(2, size)]))
    assert found.verdict == "failed"
    assert {detail.split()[0] for detail in found.details} == {"token0", "token1"}
    assert "token0 is nearer to the texts of token1" in " ".join(found.details)


@pytest.mark.parametrize("size", SIZES)
def test_a_row_that_is_another_tokens_is_found(plain: Evidence, size: int) -> None:
    found = result("swapped_tokens", meant(plain, [1, *range(1, size)]))
    assert [detail.split()[0] for detail in found.details] == ["token0"]
    assert found.verdict == "failed"


@pytest.mark.parametrize(("other", "verdict"), [("meaning1", "passed"), ("elsewhere", "failed")])
def test_a_token_nearer_to_anothers_texts_is_not_swapped_if_the_other_kept_them(
    plain: Evidence, other: str, verdict: str
) -> None:
    evidence = meant(plain, range(30))
    own = evidence.model("merged").encode

    def drifted(texts: Sequence[str], **_: Any) -> Any:
        moved = {"token0": 0.3 * own(["token0"])[0] + 0.7 * direction("meaning1"), "token1": direction(other)}
        return np.array([moved[text] if text in moved else own([text])[0] for text in texts])

    evidence.model("merged").encode = drifted  # type: ignore[method-assign]
    found = result("swapped_tokens", evidence)
    assert found.verdict == verdict
    if verdict == "failed":
        assert found.details[0].startswith("token0 is nearer to the texts of token1")


@pytest.mark.parametrize(
    ("groups", "rows", "verdict"),
    [
        (["a"], ["one and two"], "passed"),
        (["a", "a"], ["one and", "two"], "passed"),
        (["a", "b"], ["one and", "two"], "failed"),
    ],
)
def test_tokens_in_training_rows_of_one_group_may_be_near(
    plain: Evidence, groups: list[str], rows: list[str], verdict: str
) -> None:
    swapped = meant(plain, [1, 0, *range(2, 30)])
    ids = {"one": 100, "two": 101, "and": 1}

    def tokenizer(texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ids[word] for word in text.split()] for text in texts]}

    uses = swapped.uses
    swapped = replace(swapped, training_rows=lambda: [(groups, rows)], tokenizer=tokenizer)  # type: ignore[arg-type]
    swapped.__dict__["uses"] = uses
    found = result("swapped_tokens", swapped)
    assert found.verdict == verdict
    assert any("training rows of one group hold both" in line for line in found.warnings) is (verdict == "passed")


@pytest.mark.parametrize("size", SIZES)
def test_rows_shifted_by_one_are_found(plain: Evidence, size: int) -> None:
    found = verdicts(meant(plain, [*range(1, size), 0]))
    assert found["swapped_tokens"] == "failed"
    assert found["descriptions_told_apart"] == ("too few to judge" if size == 3 else "failed")


@pytest.mark.parametrize("size", [30, 300])
def test_random_rows_fail_as_a_whole(plain: Evidence, size: int) -> None:
    found = result("descriptions_told_apart", meant(plain, [None] * size))
    assert found.verdict == "failed"
    assert found.figure == pytest.approx(0.5, abs=0.15)


def test_one_row_that_means_nothing_is_named_and_fails_nothing(plain: Evidence) -> None:
    # It is no better than chance, as a sound token may be, and no worse.
    evidence = meant(plain, [*range(29), None])
    assert set(verdicts(evidence).values()) == {"passed"}
    for name in ("description_cosine", "swapped_tokens"):
        (warning,) = result(name, evidence).warnings
        assert warning.startswith("token29: ")


def test_a_token_that_points_away_from_its_description_fails(plain: Evidence) -> None:
    evidence = meant(plain, range(30))
    own = evidence.model("merged").encode

    def turned(texts: Sequence[str], **_: Any) -> Any:
        return np.array([-1.0 if text == "token7" else 1.0 for text in texts])[:, None] * own(texts)

    evidence.model("merged").encode = turned  # type: ignore[method-assign]
    found = result("description_cosine", evidence)
    assert found.verdict == "failed"
    assert [detail.split(":")[0] for detail in found.details] == ["token7"]
    assert "nearest old tokens: " in found.details[0]
    assert found.figure is not None and found.figure < -0.3


def test_a_token_far_from_its_description_is_named_with_its_neighbours(plain: Evidence) -> None:
    found = result("descriptions_told_apart", meant(plain, [1, 0, *range(2, 30)]))
    assert found.verdict == "passed"
    for warning in found.warnings:
        assert "(0 first, 0.5 chance)" in warning and "nearest old tokens: " in warning


def test_tokens_without_a_description_take_no_part(plain: Evidence) -> None:
    evidence = meant(plain, range(30))
    bare = tuple(replace(token, description=" ") for token in evidence.tokens)
    for name in ("description_cosine", "descriptions_told_apart"):
        assert result(name, replace(evidence, tokens=bare)).verdict == "does not apply"
    some = replace(evidence, tokens=(*bare[:3], *evidence.tokens[3:]))
    assert result("descriptions_told_apart", some).details[0].startswith("mean rank 0.000 of 27 tokens")
    one = replace(evidence, tokens=(*bare[:-1], evidence.tokens[-1]))
    assert result("descriptions_told_apart", one).verdict == "too few to judge"


def test_two_words_for_one_thing_do_not_stand_in_each_others_way(plain: Evidence) -> None:
    evidence = meant(plain, [0, 0, *range(2, 30)])
    synonym = replace(evidence.tokens[1], description=evidence.tokens[0].description)
    assert result("descriptions_told_apart", evidence).figure != 0
    same = replace(evidence, tokens=(evidence.tokens[0], synonym, *evidence.tokens[2:]))
    assert result("descriptions_told_apart", same).figure == 0


def test_tokens_without_texts_are_too_few_to_judge(plain: Evidence) -> None:
    for uses in (0, 1):
        found = result("swapped_tokens", meant(plain, [1, 0, *range(2, 30)], uses=uses))
        assert (found.verdict, found.details) == ("too few to judge", ())
        assert "needed: 2 tokens" in found.reason


def test_chance_takes_unrelated_texts(plain: Evidence) -> None:
    evidence = meant(plain, range(3))
    few = replace(evidence, probes=Probes(evidence.probes.with_new, UNRELATED[:5]))
    found = result("description_cosine", few)
    assert found.verdict == "too few to judge"
    assert "15 pairs" in found.reason


@pytest.mark.parametrize("name", ["description_cosine", "descriptions_told_apart", "swapped_tokens"])
def test_an_embedding_that_is_nan_fails(plain: Evidence, name: str) -> None:
    evidence = meant(plain, range(30))
    answer(lambda text: [float("nan")] * WIDTH, evidence.model("merged"))
    found = result(name, evidence)
    assert (found.verdict, found.figure) == ("failed", None)


def test_too_few_to_judge_fails_nothing_and_is_not_passed(plain: Evidence) -> None:
    found = result("descriptions_told_apart", meant(plain, [2, 0, 1]))
    assert found.verdict == "too few to judge"
    assert "3 tokens" in found.reason
    assert found.limit == "none"


def test_the_false_alarm_rate_is_the_parameter(plain: Evidence) -> None:
    # Six tokens in order: 1 of 720 ways to deal rows out.
    assert result("descriptions_told_apart", meant(plain, range(6), meaning_alpha=0.002)).verdict == "passed"
    assert result("descriptions_told_apart", meant(plain, range(6), meaning_alpha=0.001)).verdict == "too few to judge"


def test_where_every_text_moves_the_merged_model_reads_with_the_bases_tokenizer(plain: Evidence) -> None:
    made = meant(plain, range(30))
    evidence = replace(made, method="lora")
    evidence.__dict__["uses"] = made.uses
    own, seen = evidence.model("merged").encode, []

    def encode(texts: Sequence[str], **options: Any) -> Any:
        seen.append((evidence.model("merged").tokenizer is evidence.base_tokenizer, texts[0]))
        return own(texts, **options) if texts[0].startswith("token") else evidence.model("base").encode(texts)

    evidence.model("merged").encode = encode  # type: ignore[method-assign]
    assert set(verdicts(evidence).values()) == {"passed"}
    assert {by_base for by_base, text in seen if not text.startswith("token")} == {True}
    assert {by_base for by_base, text in seen if text.startswith("token")} == {False}


# Relations: scores of triples are given.


def related(
    evidence: Evidence, rows: Sequence[int | None], test: int = 6, train: int = 6, similarity: Any = None
) -> Evidence:
    """Triples of relations over a model in which relation i has the row of relation rows[i], or a random one."""
    names = [f"R{number}" for number in range(len(rows))]
    held_out, trained = (
        tuple((f"{kind} head {n}", name, f"{kind} tail {n} of {name}") for name in names for n in range(count))
        for kind, count in (("test", test), ("train", train))
    )

    def table(text: str) -> list[float]:
        if asked := re.search(r"<\|R(\d+)\|>", text):
            row = rows[int(asked[1])]
            return noisy(None if row is None else f"R{row}", text)
        tail = re.search(r"tail \d+ of (R\d+)$", text)
        return noisy(tail[1], text) if tail else [0.0] * WIDTH

    tokens = tuple(
        ExtendedToken(f"<|{name}|>", "special", "is", 100 + number, (1,), (2,)) for number, name in enumerate(names)
    )
    triples = HeldOutTriples("relations", held_out, frozenset(held_out + trained), "{head} {relation}", similarity)
    return replace(put(evidence, merged=answer(table, changed(evidence))), tokens=tokens, triples=(triples,))


@pytest.fixture
def _pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocabgraft.triples.relation_ranks.encode_pooled", lambda model, texts, _: model.encode(texts))


@pytest.mark.usefixtures("_pooled")
@pytest.mark.parametrize("similarity", [None, "euclidean", "dot"])
@pytest.mark.parametrize("size", [3, 14])
def test_sound_relations_pass(plain: Evidence, similarity: Any, size: int) -> None:
    evidence = related(plain, range(size), similarity=similarity)
    assert result("swapped_relations", evidence).verdict == "passed"
    expected = "too few to judge" if size == 3 else "passed"
    assert result("relations_told_apart", evidence).verdict == expected


@pytest.mark.usefixtures("_pooled")
@pytest.mark.parametrize("similarity", [None, "euclidean"])
@pytest.mark.parametrize("size", [3, 14])
def test_swapped_relations_are_named(plain: Evidence, similarity: Any, size: int) -> None:
    found = result("swapped_relations", related(plain, [1, 0, *range(2, size)], similarity=similarity))
    assert found.verdict == "failed"
    assert {detail.split()[0] for detail in found.details} == {"<|R0|>", "<|R1|>"}


@pytest.mark.parametrize("size", [3, 14])
def test_a_relation_with_the_row_of_another_is_named(plain: Evidence, size: int) -> None:
    found = result("swapped_relations", related(plain, [1, *range(1, size)]))
    assert found.verdict == "failed"
    assert [detail.split()[0] for detail in found.details] == ["<|R0|>"]


def test_random_relations_fail_as_a_whole_and_weak_ones_are_named(plain: Evidence) -> None:
    assert result("relations_told_apart", related(plain, [None] * 14)).verdict == "failed"
    found = result("relations_told_apart", related(plain, [*range(13), None]))
    assert found.verdict == "passed"
    assert [warning.split(":")[0] for warning in found.warnings] == ["<|R13|>"]


def test_a_relation_that_is_true_too_does_not_stand_in_the_way(plain: Evidence) -> None:
    evidence = related(plain, [1, *range(1, 14)])
    (triples,) = evidence.triples
    also = frozenset((head, "R0", tail) for head, relation, tail in triples.known if relation == "R1")
    more = replace(evidence, triples=(replace(triples, known=triples.known | also),))
    before, after = (result("relations_told_apart", each).figure for each in (evidence, more))
    assert before is not None and after is not None
    assert after < before


@pytest.mark.parametrize(("test", "train"), [(0, 6), (1, 0)])
def test_relations_with_few_triples_are_too_few_to_judge(plain: Evidence, test: int, train: int) -> None:
    evidence = related(plain, [1, 0, 2], test=test, train=train)
    assert result("relations_told_apart", evidence).verdict == "too few to judge"
    assert result("swapped_relations", evidence).verdict == ("failed" if train else "too few to judge")


def test_the_worst_of_several_datasets_counts(plain: Evidence) -> None:
    sound, swapped = related(plain, range(14)), related(plain, [1, 0, *range(2, 14)])
    both = replace(swapped, triples=(replace(swapped.triples[0], dataset="other"), *swapped.triples))
    assert result("swapped_relations", both).verdict == "failed"
    small = replace(sound.triples[0], held_out=sound.triples[0].held_out[:1])
    assert result("relations_told_apart", replace(sound, triples=(small, *sound.triples))).verdict == "passed"


def test_relations_are_judged_by_their_triples_alone(plain: Evidence) -> None:
    evidence = meant(plain, [1, 0, *range(2, 30)])
    named = ("token0", "token1")
    tokens = [replace(token, text=f"<|{token.text}|>") if token.text in named else token for token in evidence.tokens]
    triples = HeldOutTriples("r", (), frozenset(("h", name, "t") for name in named), "{head} {relation}", None)
    relations = replace(evidence, tokens=tuple(tokens), triples=(triples,))
    relations.__dict__["uses"] = evidence.uses
    assert result("swapped_tokens", relations).verdict == "passed"


def test_scores_that_are_nan_fail(plain: Evidence) -> None:
    evidence = related(plain, range(14))
    answer(lambda text: [float("nan")] * WIDTH, evidence.model("merged"))
    for name in ("relations_told_apart", "swapped_relations"):
        assert result(name, evidence).verdict == "failed"
        assert "NaN" in result(name, evidence).reason


def test_without_relations_that_train_nothing_applies(plain: Evidence) -> None:
    evidence = related(plain, range(3))
    for none in (replace(evidence, triples=()), replace(evidence, tokens=evidence.tokens[:0])):
        assert result("relations_told_apart", none).verdict == "does not apply"


def test_a_base_that_does_not_load_fails_what_needs_it(plain: Evidence) -> None:
    lost = put(meant(plain, range(30)), base=VocabgraftError("planted"))
    assert result("description_cosine", lost).verdict == "failed"
