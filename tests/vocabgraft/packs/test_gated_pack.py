"""A pack whose adapter acts on texts with a new token alone, in a folder, a bank, a combination and a merge."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, load, rows_of
from tests.vocabgraft.pack_samples import LIVER, make_pack
from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.pack import Pack, PackToken, adapter_from, identify
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.storage.artifacts import read_json

OLD = ["a dog", "the kidney of the dog is big", "blood"]
NEW = ["a nephrolith", "the thrombopenia of the dog", "blood <|IsA|> red"]
MIXED = [NEW[0], OLD[1], OLD[0], NEW[2], NEW[1], OLD[2]]


@pytest.fixture
def pack(graft: Graft) -> Pack:
    """The pack of the gated graft."""
    tokens = tuple(PackToken.of(token.new_token) for token in graft.tokens)
    return Pack(
        name="gated",
        base=identify(load(graft.base), "tiny"),
        tokens=tokens,
        rows=rows_of(load(graft.merged["gated"]))[graft.new_ids].detach().clone(),
        adapter=adapter_from(graft.adapters["gated"]),
        gate=tuple(token.text for token in tokens),
    )


@pytest.fixture
def bank(graft: Graft, pack: Pack) -> VocabularyBank:
    """A bank with it."""
    bank = VocabularyBank(load(graft.base))
    bank.put(pack)
    return bank


def test_a_bank_applies_it_text_by_text(bank: VocabularyBank, graft: Graft) -> None:
    base, merged = load(graft.base), load(graft.merged["gated"])
    assert np.array_equal(bank.encode(OLD, "gated"), base.encode(OLD))
    assert np.array_equal(bank.encode(NEW, "gated"), merged.encode(NEW))
    np.testing.assert_allclose(bank.encode(MIXED, "gated"), merged.encode(MIXED), atol=1e-6)
    assert np.array_equal(bank.encode(NEW, None), base.encode(NEW))
    assert "with a gated adapter" in repr(bank)


def test_it_is_active_in_the_model_itself_and_gone_after_a_switch(bank: VocabularyBank, graft: Graft) -> None:
    base = load(graft.base)
    bank.activate("gated")
    assert np.array_equal(bank.model.encode(NEW), load(graft.merged["gated"]).encode(NEW))
    assert np.array_equal(bank.model.encode(OLD), base.encode(OLD))
    bank.activate(None)
    assert np.array_equal(bank.model.encode(NEW), base.encode(NEW))


def test_what_is_merged_is_the_runs_model(bank: VocabularyBank, graft: Graft) -> None:
    merged = bank.merge("gated")
    np.testing.assert_allclose(merged.encode(MIXED), load(graft.merged["gated"]).encode(MIXED), atol=1e-6)
    assert np.array_equal(merged.encode(OLD), load(graft.base).encode(OLD))


def test_its_weights_are_shared_with_the_base_but_for_those_that_differ(bank: VocabularyBank) -> None:
    view = bank.view("gated")
    own = {id(parameter) for parameter in bank.model.parameters()}
    copied = {name for name, parameter in view.named_parameters() if id(parameter) not in own}
    assert copied and all("adapted" in name and ("attention" in name or "dense" in name) for name in copied)


def test_a_folder_keeps_the_gate_and_says_a_newer_format(pack: Pack, tmp_path: Path) -> None:
    write_pack(pack, tmp_path / "gated")
    write_pack(replace(pack, gate=None), tmp_path / "open")
    assert read_pack(tmp_path / "gated").gate == pack.gate
    assert read_pack(tmp_path / "open").gate is None
    # A reader that knows no gate would move every text.
    assert [read_json(tmp_path / name / "manifest.json")["format"] for name in ("gated", "open")] == [2, 1]


def test_a_gate_of_a_token_that_is_not_there_is_refused(pack: Pack, tmp_path: Path) -> None:
    write_pack(replace(pack, gate=("nephrolith", "another")), tmp_path / "pack")
    with pytest.raises(VocabgraftError, match="its gate names a token"):
        read_pack(tmp_path / "pack")


def test_words_of_another_pack_do_not_open_the_gate(bank: VocabularyBank) -> None:
    bank.put(make_pack(bank.model, "liver", LIVER, seed=2))
    names = ("liver", "gated")
    assert np.array_equal(bank.encode(["a hepatoma"], names), bank.encode(["a hepatoma"], "liver"))
    assert np.array_equal(bank.encode(NEW, names), bank.encode(NEW, "gated"))
    assert np.array_equal(bank.encode(OLD, names), bank.encode(OLD, None))


def test_a_token_that_an_earlier_pack_has_otherwise_does_not_open_the_gate(bank: VocabularyBank, pack: Pack) -> None:
    bank.put(replace(pack, name="other", rows=pack.rows + 0.1, adapter=None, gate=None))
    combined = bank.combine(("other", "gated"), on_conflict="first").pack
    assert combined.gate == ()


def test_a_model_with_a_gate_is_no_base_of_a_bank(graft: Graft) -> None:
    with pytest.raises(VocabgraftError, match="has a gate"):
        VocabularyBank(load(graft.merged["gated"]))
