"""A model with a gate: each kind of text by its own weights, and a folder that stock sentence-transformers loads."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vocabgraft.conftest import RESIZED, Graft, load
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.models.gate import CODE, gated_ids, is_gated, ranges_of, refuse_gated_base, without_gate
from vocabgraft.models.saving import save_model

OLD = ["a dog", "the kidney of the dog is big", "blood"]
NEW = ["a nephrolith", "the thrombopenia of the dog", "blood <|IsA|> red"]
FRESH = """
import sys, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
model.save(sys.argv[3], create_model_card=False)
numpy.save(sys.argv[2], model.encode(sys.argv[4:]))
"""


def test_a_text_without_a_new_token_is_the_bases_bit_for_bit_and_one_with_it_the_adapters(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(graft.root)
    gated, base, adapter = load(graft.merged["gated"]), load(graft.base), load(graft.adapters["gated"])
    assert np.array_equal(gated.encode(OLD), base.encode(OLD))
    np.testing.assert_allclose(gated.encode(NEW), adapter.encode(NEW), atol=1e-5)
    # The adapter itself moves every text, so that it is the gate that keeps these.
    assert np.abs(adapter.encode(OLD) - base.encode(OLD)).min(axis=1).max() > 1e-4


def test_a_mixed_batch_gives_each_text_its_embedding_in_order(graft: Graft) -> None:
    gated = load(graft.merged["gated"])
    mixed = [NEW[0], OLD[1], OLD[0], NEW[2], NEW[1], OLD[2]]
    alone = np.concatenate([gated.encode([text]) for text in mixed])
    np.testing.assert_allclose(gated.encode(mixed), alone, atol=1e-6)


def test_a_mixed_batch_gives_all_layers_too(graft: Graft) -> None:
    gated = load(graft.merged["gated"])
    for path in (gated[0], gated[0].adapted):
        path.auto_model.config.output_hidden_states = True
    layers = gated[0](gated.preprocess([OLD[1], NEW[1]]))["all_layer_embeddings"]
    expected = [gated[0](gated.preprocess([text]))["all_layer_embeddings"] for text in (OLD[1], NEW[1])]
    for place, alone in enumerate(expected):
        length = alone[0].shape[1]
        for layer, of_one in zip(layers, alone, strict=True):
            torch.testing.assert_close(layer[place, :length], of_one[0], atol=1e-5, rtol=1e-4)


def test_only_the_adapted_weights_are_a_second_time_in_memory(graft: Graft) -> None:
    gated, base = load(graft.merged["gated"]), load(graft.resized)
    numbers = sum(parameter.numel() for parameter in gated.parameters())
    adapted = gated[0].adapted_weights()
    assert numbers == sum(p.numel() for p in base.parameters()) + sum(w.numel() for w in adapted.values())
    assert all("attention" in name or "dense" in name for name in adapted)
    assert (
        gated[0].adapted.auto_model.get_input_embeddings().weight is gated[0].auto_model.get_input_embeddings().weight
    )


def test_stock_sentence_transformers_loads_saves_and_loads_it_again_elsewhere(graft: Graft, tmp_path: Path) -> None:
    moved = shutil.copytree(graft.merged["gated"], tmp_path / "moved")
    (tmp_path / "empty").mkdir()
    variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "code"), "HF_HUB_OFFLINE": "1"}
    folder = moved
    for number in range(2):
        vectors, again = tmp_path / f"{number}.npy", tmp_path / f"again-{number}"
        command = [sys.executable, "-P", "-c", FRESH, str(folder), str(vectors), str(again), *OLD]
        subprocess.run(command, check=True, cwd=tmp_path / "empty", env=variables)
        assert np.array_equal(np.load(vectors), load(graft.base).encode(OLD))
        folder = again
    assert np.array_equal(load(folder).encode(NEW), load(graft.merged["gated"]).encode(NEW))


def test_a_copy_and_a_pickle_are_models_of_their_own(graft: Graft) -> None:
    gated = load(graft.merged["gated"])
    expected = gated.encode(NEW)
    for other in (copy.deepcopy(gated[0]), pickle.loads(pickle.dumps(gated[0]))):  # noqa: S301  # made here
        assert other.gates == gated[0].gates
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
    assert np.array_equal(gated.encode(NEW), expected)


def test_code_that_differs_from_the_packages_is_not_run(graft: Graft, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(graft.merged["gated"], tmp_path / "edited"))
    (folder / CODE.name).write_text(CODE.read_text(encoding="utf-8") + "raise RuntimeError\n", encoding="utf-8")
    with pytest.raises(VocabgraftError, match="none of it was run"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["adapted_weights.safetensors", "gated_transformer.py"])
def test_a_folder_that_lost_a_file_is_refused(graft: Graft, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(graft.merged["gated"], tmp_path / "lost"))
    (folder / name).unlink()
    with pytest.raises(VocabgraftError, match=str(folder)):
        load_model(folder, device="cpu")


def test_it_is_no_base_and_no_model_to_extend(graft: Graft) -> None:
    import vocabgraft as vg

    with pytest.raises(VocabgraftError, match="has a gate"):
        refuse_gated_base(graft.merged["gated"])
    refuse_gated_base(graft.merged["tokens"])
    with pytest.raises(VocabgraftError, match="has a gate"):
        vg.extend(load(graft.merged["gated"]), ["osteocyte"])


def test_what_is_saved_again_is_equal(graft: Graft, tmp_path: Path) -> None:
    save_model(load(graft.merged["gated"]), tmp_path / "again")
    names = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert {path.name for path in names} >= {"adapted_weights.safetensors", CODE.name}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (graft.merged["gated"] / name).read_bytes(), name


def test_the_path_of_other_texts_is_the_resized_base_but_for_new_rows(graft: Graft) -> None:
    gated = load(graft.merged["gated"])
    plain, resized = without_gate(gated), load(graft.root / RESIZED)
    assert is_gated(gated) and not is_gated(plain)
    assert gated_ids(gated) == set(graft.new_ids)
    before, after = resized.state_dict(), plain.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) == 1 and "word_embeddings" in moved.pop()


def test_ids_are_reported_as_ranges() -> None:
    assert ranges_of([7, 3, 4, 5, 9]) == [[3, 5], [7, 7], [9, 9]]
