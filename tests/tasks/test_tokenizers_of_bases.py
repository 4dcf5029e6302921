"""Bases whose tokenizer is not what tokenizer.json says, or has no special tokens."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vocabgraft as vg
from tests.conftest import build_tiny_project, tiny_bert
from tests.tasks.test_growth import EXTENDED, read, run
from tests.tokenizer_families import FAMILIES, as_fast
from tests.vocabgraft.api.test_check import LIMITS, names
from tests.vocabgraft.conftest import load
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, write_json
from vocabgraft.tokens.tokenizer import load_base_tokenizer, load_raw_tokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("isolated_forks")

# One sign for two letters, which a normalizer of form NFKC parts.
LIGATURE = "\ufb01"


def build_base(folder: Path, tokenizer: Any) -> Path:
    """A tiny BERT behind any tokenizer, saved as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    raw = folder.parent / f"{folder.name}-transformer"
    config = tiny_bert(len(tokenizer), 128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(raw)
    tokenizer.model_max_length = 100
    tokenizer.save_pretrained(raw)
    SentenceTransformer(modules=[Transformer(str(raw)), Pooling(32)], device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


@pytest.fixture
def xlm_roberta(tmp_path: Path) -> Path:
    """A tokenizer folder of XLM-R's class, to which transformers gives another pre-tokenizer and normalizer."""
    as_fast(FAMILIES["unigram"]()).save_pretrained(tmp_path / "xlm")
    names = {f"{name}_token": token for name, token in (("pad", "<pad>"), ("unk", "<unk>"), ("mask", "<mask>"))}
    names |= {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    write_json(tmp_path / "xlm" / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer", **names})
    return tmp_path / "xlm"


def test_subword_tokens_are_those_of_the_tokenizer_that_the_model_uses(xlm_roberta: Path) -> None:
    used = load_tokenizer(xlm_roberta)
    text = f"the {LIGATURE}sh of a dog"
    expected = used(text, add_special_tokens=False)["input_ids"]
    raw = load_raw_tokenizer(xlm_roberta / "tokenizer.json")
    assert raw.encode(text, add_special_tokens=False).ids != expected, "the two would have to differ here"
    assert load_base_tokenizer(xlm_roberta).encode(text, add_special_tokens=False).ids == expected


def test_the_stages_count_with_the_tokenizer_that_the_model_uses(in_folder: Path, xlm_roberta: Path) -> None:
    base = build_base(in_folder / "base", load_tokenizer(xlm_roberta))
    # As published: a file whose pre-tokenizer is not the one that transformers builds.
    shutil.copy(xlm_roberta / "tokenizer.json", base / "tokenizer.json")
    build_tiny_project(in_folder, base)
    word = f"{LIGATURE}brosis"
    for name, lines in (
        ("vocabulary.csv", [f"{word},word,pain in the liver"]),
        ("contexts.txt", [f"the {word} of dog number {number}" for number in range(20)]),
    ):
        with (Path("data/raw") / name).open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    assert run("validate_data", "extend_tokenizer") == 0
    (pieces,) = (entry["pieces"] for entry in read(EXTENDED / "tokens.json") if entry["text"] == word)
    space, *used = load(base).tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    assert load(base).tokenizer.convert_ids_to_tokens(space) == "\u2581"
    assert pieces == used


def test_a_tokenizer_without_special_tokens_is_extended_and_checked(tmp_path: Path) -> None:
    tokenizer = as_fast(FAMILIES["roberta"]())
    tokenizer.pad_token, tokenizer.unk_token = "<pad>", "<unk>"
    base = build_base(tmp_path / "base", tokenizer)
    assert load(base).tokenizer("")["input_ids"] == []
    model = vg.extend(base, ["nephrolith", "hepatoma"], initialization="subword_mean")
    report = vg.check(model, base=base, params=LIMITS)
    told = [check for check in report.failed if check.reason]
    assert not told, report
    assert {"untouched_texts", "padding", "one_at_a_time", "fresh_process"} <= names(report.passed)


@pytest.fixture
def lower_cased(tmp_path: Path) -> Path:
    """A cased tokenizer, and a setting of sentence-transformers that lower-cases what it reads."""
    tokenizer = as_fast(FAMILIES["wordpiece cased"]())
    tokenizer.pad_token, tokenizer.unk_token = "[PAD]", "[UNK]"
    tokenizer.cls_token, tokenizer.sep_token = "[CLS]", "[SEP]"
    base = build_base(tmp_path / "base", tokenizer)
    settings = base / "sentence_bert_config.json"
    write_json(settings, {**read_json(settings), "do_lower_case": True})
    return base


def test_lower_casing_over_a_cased_tokenizer_is_refused_with_a_remedy_that_works(
    in_folder: Path, lower_cased: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tiny_project(in_folder, lower_cased)
    assert run("validate_data") == 1
    assert "do_lower_case" in capsys.readouterr().err
    with pytest.raises(VocabgraftError, match=r"do_lower_case: true.*save it once"):
        load_base_tokenizer(lower_cased)
    again = in_folder / "again"
    load(lower_cased).save(str(again), create_model_card=False)
    assert (
        load_base_tokenizer(again).encode("The HEART").ids
        == load(lower_cased).tokenizer("The HEART", add_special_tokens=False)["input_ids"]
    )


def test_lower_casing_over_an_uncased_tokenizer_is_accepted(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    settings = base / "sentence_bert_config.json"
    write_json(settings, {**read_json(settings), "do_lower_case": True})
    load_base_tokenizer(base)
