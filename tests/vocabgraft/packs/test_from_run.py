"""A run of each method as a pack reads as its merged model, or says why there is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.vocabgraft.conftest import ADAPTERS, Graft, load
from vocabgraft.config.stages import MergeAdapterParams, ModuleParams
from vocabgraft.config.training import Method
from vocabgraft.models.extra_modules import insert_modules
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.from_run import pack_run, why_no_pack
from vocabgraft.packs.pack import Pack
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.storage.artifacts import write_json

TEXTS = ["a nephrolith in the kidney", "dog <|IsA|> animal", "wood -> house", "a dog and a cat"]
FIGURES = {"examples": 9, "final_loss": 0.5, "trainable_parameters": 3}


def packed(graft: Graft, method: Method, reports: Path) -> Pack:
    """The run's pack, with reports as the stages write them."""
    resized, adapter = reports / "resized", reports / "adapter"
    for folder in (resized, adapter):
        folder.mkdir()
    write_json(resized / "report.json", {"initialisation": "subword_mean", "distillation": {}})
    write_json(adapter / "report.json", {"method": method, **FIGURES})
    for path in graft.adapters[method].glob("adapter_*"):
        (adapter / path.name).symlink_to(path)
    params = MergeAdapterParams(name="run", licence="CC0-1.0")
    merged = load(graft.merged[method])
    return pack_run(load(graft.base), "tiny", merged, graft.tokens, resized, adapter, TEXTS, params)


@pytest.mark.parametrize("method", ADAPTERS)
def test_a_run_of_every_adapter_comes_back_from_its_pack(method: Method, graft: Graft, tmp_path: Path) -> None:
    pack = packed(graft, method, tmp_path)
    write_pack(pack, tmp_path / "pack")
    assert pack.licence == "CC0-1.0" and pack.figures["training"] == {"method": method, **FIGURES}
    assert (read_pack(tmp_path / "pack").adapter is None) == (method == "tokens")
    bank = VocabularyBank(load(graft.base))
    bank.load(tmp_path / "pack")
    merged = load(graft.merged[method]).encode(TEXTS, show_progress_bar=False)
    assert np.abs(bank.encode(TEXTS, vocabulary="run") - merged).max() < (1e-5 if pack.adapter else 1e-9)
    base = load(graft.base).encode(TEXTS, show_progress_bar=False)
    assert np.array_equal(bank.encode(TEXTS, vocabulary=None), base)
    assert np.abs(merged - base).max() > 1e-3


def test_a_pack_without_an_adapter_takes_a_few_kilobytes_a_token(graft: Graft, tmp_path: Path) -> None:
    write_pack(packed(graft, "tokens", tmp_path), tmp_path / "pack")
    size = sum(path.stat().st_size for path in (tmp_path / "pack").rglob("*"))
    assert size < 4096 * len(graft.tokens)


def test_what_a_pack_cannot_hold_is_said(graft: Graft) -> None:
    merged = load(graft.merged["tokens"])
    adapter, tokens = graft.adapters["tokens"], list(graft.tokens)
    assert why_no_pack(merged, adapter, tokens) is None
    assert "method: full" in str(why_no_pack(merged, graft.adapters["full"], tokens))
    again = replace(tokens[0], pieces=(tokens[0].id,))
    assert "'nephrolith'" in str(why_no_pack(merged, adapter, [again, *tokens[1:]]))
    insert_modules(merged, [ModuleParams(type="Dense", place="after_pooling")], seed=1)
    assert "custom layers" in str(why_no_pack(merged, adapter, tokens))
