import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.engine.edit_params import edit_params
from tasks.register_model import RECORD, SPEED, register_model
from tasks.registry import exports
from tasks.registry.exports import held_out
from tasks.registry.gate_results import GateResult, told
from tasks.registry.lineage import items_digest
from tasks.registry.lookup import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS_CHAMPION,
    Registered,
    connect,
    download_pack,
    find_by_alias,
)
from tasks.registry.register import log_report, page_text
from tasks.support.stage import run_stage
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.registered_models import GATES, Made, build
from tests.vocabgraft.conftest import load
from tests.vocabgraft.pack_samples import KIDNEY, make_pack
from vocabgraft.config.stages import BaseParams, ExportName, GateParams, RegisterModelParams
from vocabgraft.data.beir import Benchmark, write_benchmarks
from vocabgraft.errors import VocabgraftError
from vocabgraft.export.encoder import OnnxEncoder
from vocabgraft.models.base import identify_base
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.pack_files import write_pack_inside
from vocabgraft.storage.artifacts import new_folder, read_json, write_json, write_manifest

list_them, promote = cli("registry", "list"), cli("registry", "promote")
OWN_NORM = """
from sentence_transformers.sentence_transformer.modules import Normalize

class OwnNorm(Normalize):
    pass
"""

Make = Callable[..., Made]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> str:
    """One registry for all tests here, each under a model name of its own."""
    return new_store(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture
def make(in_folder: Path, tiny_base: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes artifacts of a model with a given mark in its content, under a model name of this test alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    shutil.copy(ROOT / "params.yaml", in_folder)
    # The registry takes a quote, and its filters have to survive one.
    name = f"tiny's {in_folder.name}"

    def build_here(mark: str, **options: Any) -> Made:
        return build(in_folder, tiny_base, name, mark, **options)

    return build_here


def test_the_first_model_that_beats_the_base_becomes_champion(make: Make) -> None:
    first = make("first")
    first.register()
    assert (first.digest_at(CHAMPION), first.digest_at(CHALLENGER), first.digest_at(PREVIOUS_CHAMPION)) == (
        first.digest,
        first.digest,
        None,
    )
    assert read_json(first.root / "out" / "registration.json") == {"name": first.name, "content_digest": first.digest}
    assert read_json(RECORD)["champion"] is True


@pytest.mark.parametrize(("gain", "drop", "unmet"), [(0.0, 0.0, "gain over the base"), (5.0, 0.02, "retention drop")])
def test_a_model_that_misses_a_gate_stays_challenger_and_is_reported_so(
    make: Make, caplog: pytest.LogCaptureFixture, gain: float, drop: float, unmet: str
) -> None:
    caplog.set_level(logging.INFO)
    made = make("first", gain=gain, drop=drop)
    made.register()
    assert (made.digest_at(CHAMPION), made.digest_at(CHALLENGER)) == (None, made.digest)
    record = read_json(RECORD)
    assert record["champion"] is False
    assert [gate["name"] for gate in record["gates"] if gate["verdict"] == "not met"] == [unmet]
    assert f"{made.name} version 1 stays challenger; not promoted: {unmet}" in caplog.text
    assert next(line for line in caplog.messages if "not met" in line).startswith(f"gate not met: {unmet}")


def test_the_vocabularys_pack_comes_back_from_the_registry(make: Make, tiny_base: Path) -> None:
    made = make("first")
    made.register()
    with pytest.raises(VocabgraftError, match=r"registered without a vocabulary pack.*its run has .*checks"):
        download_pack(f"models:/{made.name}@{CHALLENGER}")
    packed = make("second")
    pack = make_pack(load(tiny_base), "kidney", KIDNEY)
    write_pack_inside(pack, packed.root / "merged" / "pack")
    write_manifest(packed.root / "merged", {})
    packed.register()
    bank = VocabularyBank(load(tiny_base), fetch=download_pack)
    for uri in (f"models:/{made.name}@{CHALLENGER}", f"models:/{made.name}/2"):
        assert bank.load(uri) == "kidney"
        assert bank.pack("kidney").rows.equal(pack.rows)
        bank.delete("kidney")


def test_the_pages_of_mlflow_show_a_card_without_its_front_matter() -> None:
    card = "---\nlicense: mit\n---\n# Kidney\n\n---\n\nText\n"
    assert page_text(card) == "# Kidney\n\n---\n\nText\n"
    for whole in ("# Kidney\n---\nText\n", "---\nno end\n", ""):
        assert page_text(whole) == whole


def test_exports_are_logged_with_the_version_also_later_and_made_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    made = make("first")

    def register(*names: ExportName) -> Registered:
        params = RegisterModelParams(name=made.name, gates=GATES, exports=list(names))
        register_model(**made.paths(), params=params, base=BaseParams(model="a base"))
        found = find_by_alias(connect(), made.name, CHALLENGER)
        assert found is not None
        return found

    assert not [tag for tag in register().tags if tag.startswith("export.")]
    version = register("onnx")
    client = connect()
    folder = Path(client.download_artifacts(version.run_id, "onnx", str(tmp_path)))
    texts = ["a dog", "stone in the kidney"]
    expected = load(made.root / "merged").encode(texts, show_progress_bar=False)
    assert np.abs(OnnxEncoder.from_folder(folder).encode(texts) - expected).max() < 1e-5
    about = json.loads(version.tags["export.onnx"])
    assert about == read_json(folder / "export.json") and about["agreement"]["nearest_kept"] == 1.0
    queries, documents = held_out(made.paths()["datasets"])
    assert about["agreement"]["queries"] == len(queries) > 0
    assert about["agreement"]["texts"] == len(queries) + len(documents)
    monkeypatch.setattr(exports, "_export", None)
    assert register("onnx").tags["export.onnx"] == version.tags["export.onnx"]


def test_an_export_that_cannot_be_made_leaves_no_version(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise VocabgraftError("no exporter here")

    made = make("first")
    monkeypatch.setattr(exports, "_export", refuse)
    params = RegisterModelParams(name=made.name, gates=GATES, exports=["onnx_int8"])
    with pytest.raises(VocabgraftError, match="no exporter here"):
        register_model(**made.paths(), params=params, base=BaseParams(model="a base"))
    assert find_by_alias(connect(), made.name, CHALLENGER) is None


@pytest.mark.parametrize("allowed", [False, True])
def test_a_model_with_an_own_class_becomes_champion_only_where_that_is_waived(
    make: Make, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    made = make("first")
    (made.root / "own").mkdir()
    (made.root / "own" / "own_norm.py").write_text(OWN_NORM, encoding="utf-8")
    monkeypatch.syspath_prepend(str(made.root / "own"))
    merged = made.root / "merged"
    modules = read_json(merged / "modules.json")
    write_json(merged / "modules.json", [*modules[:-1], {**modules[-1], "type": "own_norm.OwnNorm"}])
    gates = GATES.model_copy(update={"allow_own_modules": allowed})
    register_model(
        **made.paths(), params=RegisterModelParams(name=made.name, gates=gates), base=BaseParams(model="a base")
    )
    assert made.digest_at(CHALLENGER) == made.digest
    assert made.digest_at(CHAMPION) == (made.digest if allowed else None)
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["name"] == "own modules")
    assert (gate["verdict"] == "holds") is allowed
    assert "own_norm.OwnNorm; register_model.gates.allow_own_modules" in gate["limit"]


def test_missing_a_gate_is_no_failure_of_the_stage(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    made = make("first", gain=-1.0)
    arguments = [part for name, path in made.paths().items() for part in (f"--{name.replace('_', '-')}", str(path))]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert run_stage(register_model, arguments) == 0
    finally:
        root.handlers[:], root.level = handlers, level
    assert "stays challenger" in capfd.readouterr().out


def test_a_better_model_takes_over_and_the_last_champion_is_kept(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=6.0)
    first.register()
    second.register()
    assert (first.digest_at(CHAMPION), first.digest_at(PREVIOUS_CHAMPION)) == (second.digest, first.digest)
    assert first.digest_at(CHALLENGER) == second.digest


def test_a_worse_model_does_not_take_over(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=4.0)
    first.register()
    second.register()
    assert (first.digest_at(CHAMPION), first.digest_at(CHALLENGER)) == (first.digest, second.digest)
    assert first.digest_at(PREVIOUS_CHAMPION) is None


def test_a_model_that_is_worse_by_chance_takes_over_and_the_interval_is_reported(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=4.5, noise=(-9.0, 9.0, -8.0, 8.0))
    first.register()
    second.register()
    assert first.digest_at(CHAMPION) == second.digest
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["name"].startswith("gain over the champion"))
    assert (gate["figure"], gate["items"]) == (-0.5, 24)
    assert gate["low"] < 0 < gate["high"]
    assert gate["note"] == "recorded on the same items"


def test_a_champion_scored_on_other_items_is_scored_on_todays(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=9.0, items="of the doctor")
    first.register()
    second.register()
    # The two are one model but for the mark, so today's items tell them apart by nothing.
    assert first.digest_at(CHAMPION) == second.digest
    record = read_json(RECORD)
    assert record["compared_with"]["how"].startswith("measured again")
    assert record["compared_with"]["figures"]["terms"]["new_word"]["mrr"] > 0
    assert next(gate for gate in record["gates"] if "champion" in gate["name"])["figure"] == 0.0


def test_a_model_that_is_worse_on_todays_items_does_not_take_over(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=9.0, items="of the doctor", blurred=True)
    first.register()
    second.register()
    assert first.digest_at(CHAMPION) == first.digest
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["verdict"] == "not met")
    assert gate["figure"] < 0 and "measured again" in gate["note"]


def test_a_champion_whose_files_are_lost_is_no_reason_to_promote(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=9.0)
    first.register()
    version = connect().get_model_version(first.name, "1")
    shutil.rmtree(Path(connect().get_run(version.run_id).info.artifact_uri))
    shutil.rmtree(Path(connect().get_logged_model(version.source.rpartition("/")[2]).artifact_location))
    second.register()
    assert (first.digest_at(CHAMPION), first.digest_at(CHALLENGER)) == (first.digest, second.digest)
    (gate,) = [gate for gate in read_json(RECORD)["gates"] if gate["verdict"] != "holds"]
    assert (gate["kind"], gate["verdict"]) == ("champion", "not shown")
    assert "could not be compared" in gate["note"]


def test_a_champion_of_another_width_is_reported(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    first, second = make("first", gain=5.0), make("second", gain=9.0)
    first.register()
    connect().set_model_version_tag(first.name, "1", "embedding_width", "768")
    second.register()
    gate = next(gate for gate in read_json(RECORD)["gates"] if "champion" in gate["name"])
    width = load(second.root / "merged").get_embedding_dimension()
    told = f"its vectors have width 768 and this model's {width}"
    assert told in gate["note"]
    assert any(told in message for message in caplog.messages)
    assert told in read_json(RECORD)["compared_with"]["how"]


def test_a_model_that_costs_too_much_stays_challenger(make: Make) -> None:
    made = make("first")
    SPEED.parent.mkdir()
    write_json(SPEED, {"ratio": 0.5, "merged_digest": made.digest})
    made.register()
    assert made.digest_at(CHAMPION) is None
    unmet = [gate for gate in read_json(RECORD)["gates"] if gate["verdict"] != "holds"]
    assert [(gate["name"], gate["figure"]) for gate in unmet] == [("cost ratio", 2.0)]
    assert "as timed" in unmet[0]["note"]


def test_the_cost_of_a_model_that_was_not_timed_here_is_given_in_tokens(make: Make) -> None:
    made = make("first")
    SPEED.parent.mkdir()
    write_json(SPEED, {"ratio": 0.5, "merged_digest": "another"})
    made.register()
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["name"] == "cost ratio")
    assert (gate["figure"], gate["verdict"]) == (1.0, "holds")
    assert "tokens per text" in gate["note"]


def benefit(name: str | None, **settings: Any) -> GateParams:
    """Gates that ask for another benefit."""
    return GATES.model_copy(update={"benefit": name, **settings})


@pytest.mark.parametrize("name", ["fidelity", "tokens_per_text"])
def test_a_vocabulary_without_labelled_data_is_judged_by_what_it_has(make: Make, name: str) -> None:
    first, worse, better = (make(str(gain), gain=gain) for gain in (5.0, 4.0, 6.0))
    first.register(benefit(name))
    assert first.digest_at(CHAMPION) == first.digest
    worse.register(benefit(name))
    assert first.digest_at(CHAMPION) == first.digest
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    assert (gate["verdict"], gate["items"], gate["note"]) == ("not met", 24, "recorded on the same items")
    assert gate["figure"] == pytest.approx(-1.0 if name == "tokens_per_text" else -0.005)
    better.register(benefit(name))
    assert first.digest_at(CHAMPION) == better.digest


def test_retention_as_the_benefit_is_compared_on_all_pairs(make: Make) -> None:
    first, second = make("first"), make("second", drop=0.0)
    for made in (first, second):
        made.register(benefit("retention"))
    # The pairs of both are equally similar to both.
    assert first.digest_at(CHAMPION) == second.digest
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    assert (gate["figure"], gate["low"], gate["high"], gate["items"]) == (0.0, 0.0, 0.0, 24)


@pytest.mark.parametrize(("name", "figure"), [("tokens_per_text", -8.0), ("retention", None)])
def test_a_champion_that_never_read_these_texts_reads_them_now(make: Make, name: str, figure: float | None) -> None:
    first, second = make("first", items="of a dog"), make("second", items="of the doctor")
    first.register(benefit(name))
    second.register(benefit(name))
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    assert gate["note"].startswith("measured again") and gate["items"] == 24
    # "kidney of the doctor 7" is 6 tokens at most, and the made-up model has 15.
    assert figure is None or gate["figure"] < figure


def test_a_champion_has_its_fidelity_measured_again_over_the_same_base(make: Make, tiny_base: Path) -> None:
    first, second = make("first", items="of a dog"), make("second", items="of the doctor")
    identity = asdict(identify_base(tiny_base, BaseParams(model=str(tiny_base)), str(tiny_base)))
    for made in (first, second):
        write_json(made.root / "data" / "base.json", identity)
    first.register(benefit("fidelity"))
    second.register(benefit("fidelity"))
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    # The champion is the base but for a mark, so its fidelity is 1; that of the new model is made up, 0.925.
    assert gate["figure"] == pytest.approx(-0.075, abs=1e-4)
    assert gate["verdict"] == "not met"


def test_a_fidelity_to_another_base_is_not_compared_by_what_was_recorded(make: Make, tiny_base: Path) -> None:
    first, second = make("first"), make("second")
    first.register(benefit("fidelity"))
    identity = asdict(identify_base(tiny_base, BaseParams(model=str(tiny_base)), str(tiny_base)))
    write_json(second.root / "data" / "base.json", identity)
    second.register(benefit("fidelity"))
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    assert gate["note"].startswith("measured again")


def add_triples(made: Made) -> None:
    """Triples of the tiny base's words beside the accepted terms."""
    folder = made.root / "data" / "datasets"
    (folder / "relations").mkdir()
    write_json(folder / "index.json", [{"name": name, "format": of} for name, of in FORMATS.items()])
    for split, heads in (("train", ["house"]), ("validation", []), ("test", ["dog", "cat", "kidney", "liver"])):
        rows = len(heads)
        columns = {"head": heads, "relation": ["IsA"] * rows, "tail": [f"{head} stone" for head in heads]}
        schema = pa.schema([(name, pa.string()) for name in columns])
        pq.write_table(pa.table(columns, schema=schema), folder / "relations" / f"{split}.parquet")
    write_manifest(made.root / "data", {})


FORMATS = {"terms": "pairs", "relations": "triples"}


@pytest.mark.parametrize("metric", ["link_mrr", "link_hits@1", "mrr", "recall@3"])
def test_a_champion_is_scored_on_todays_triples(make: Make, metric: str) -> None:
    first = make("first")
    first.register()
    second = make("second", items="of the doctor")
    add_triples(second)
    second.register(benefit(f"relations.all.{metric}"))
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    assert (gate["items"], gate["note"][:14]) == (4, "measured again")
    assert gate["figure"] == 0.0, "the two are one model but for the mark"
    assert read_json(RECORD)["compared_with"]["figures"]["relations"]["all"][metric] > 0
    # Nothing of it was measured of the new model, so its gain over the base is not shown.
    assert first.digest_at(CHAMPION) == first.digest


def test_a_champion_is_scored_on_todays_benchmark(make: Make) -> None:
    first = make("first")
    first.register()
    second = make("second")
    own = Benchmark("cases", ["the dog", "a cat"], ["cat", "dog", "stone"], [{1: 1}, {0: 1}])
    write_benchmarks(second.root / "data" / "benchmarks", [own])
    write_manifest(second.root / "data", {})
    second.register(benefit("cases.all.mrr@10"))
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "champion")
    assert (gate["items"], gate["figure"], gate["note"][:14]) == (2, 0.0, "measured again")


def test_a_list_of_no_benchmarks_makes_no_other_items(make: Make) -> None:
    made = make("first")
    before = items_digest(made.root / "data" / "datasets")
    write_benchmarks(made.root / "data" / "benchmarks", [])
    write_manifest(made.root / "data", {})
    assert items_digest(made.root / "data" / "datasets") == before


def test_a_run_without_a_benefit_is_promoted_and_says_that_none_was_required(make: Make) -> None:
    first, second = make("first", gain=-5.0), make("second", gain=-6.0)
    for made in (first, second):
        made.register(benefit(None))
    assert first.digest_at(CHAMPION) == second.digest
    version = connect().get_model_version(first.name, "2")
    assert "register_model.gates.benefit is null" in version.tags["evidence"]
    assert "register_model.gates.benefit is null" in version.description
    assert "benefit" not in version.tags


CHANCE = {"gain": 0.01, "noise": (9.0, -9.0)}


def test_a_gain_by_chance_makes_no_champion_and_every_place_says_how_many_items_it_would_need(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = make("first", **CHANCE)
    made.register()
    assert (made.digest_at(CHAMPION), made.digest_at(CHALLENGER)) == (None, made.digest)
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "benefit")
    assert (gate["verdict"], gate["items"], gate["figure"]) == ("not shown", 24, 0.01)
    said = told(GateResult.from_json(gate))
    assert said.startswith("not shown to be better: 24 items, interval -") and f"{gate['needed']:,} items" in said
    version = connect().get_model_version(made.name, "1")
    assert version.tags["decision"] == f"not promoted: {said}"
    assert version.tags["evidence"] == said
    assert said[1:] in version.description, "the card"
    assert said in caplog.text


def test_a_first_champion_promoted_without_evidence_keeps_saying_so(make: Make) -> None:
    any_first = GATES.model_copy(update={"first_champion": "any"})
    first, second = make("first", **CHANCE), make("second", **CHANCE)
    for _ in range(2):
        # The second time it is the champion, and is asked nothing.
        first.register(any_first)
        assert first.digest_at(CHAMPION) == first.digest
        version = connect().get_model_version(first.name, "1")
        for told_at in (version.tags["evidence"], version.tags["decision"], version.description):
            assert "o evidence was asked for" in told_at
    second.register(any_first)
    assert first.digest_at(CHAMPION) == first.digest, "there is a champion by now"
    assert "no evidence was asked for" not in connect().get_model_version(first.name, "2").tags["evidence"]


def test_a_first_champion_that_lost_is_not_promoted_without_evidence_either(make: Make) -> None:
    made = make("first", gain=-5.0)
    made.register(GATES.model_copy(update={"first_champion": "any"}))
    assert made.digest_at(CHAMPION) is None


def test_a_version_that_was_registered_before_is_judged_by_todays_gates(make: Make) -> None:
    made = make("first", **CHANCE)
    made.register()
    assert made.digest_at(CHAMPION) is None
    made.register(GATES.model_copy(update={"first_champion": "any"}))
    assert made.versions() == [1]
    assert made.digest_at(CHAMPION) == made.digest
    assert "No evidence was asked for" in connect().get_model_version(made.name, "1").description


def test_why_a_person_promoted_a_version_outlasts_the_next_registration(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("first", **CHANCE)
    made.register()
    capsys.readouterr()
    assert promote(["1", "--name", made.name]) == 2
    assert "not shown to be better: 24 items" in capsys.readouterr().err
    assert made.digest_at(CHAMPION) is None
    assert promote(["1", "--name", made.name, "--force", "--reason", "see [/ticket-12]"]) == 0
    for _ in range(2):
        tags = connect().get_model_version(made.name, "1").tags
        assert (tags["decision"], tags["decision_reason"]) == ("promoted by force", "see [/ticket-12]")
        assert tags["evidence"].startswith("not shown to be better")
        made.register()
    assert list_them(["--name", made.name]) == 0


def test_a_model_grown_on_the_champion_is_compared_with_it_as_its_base(make: Make) -> None:
    first = make("first", gain=5.0)
    first.register()
    second = make("second", gain=0.5, items="other items", base=f"models:/{first.name}/1")
    second.register()
    assert (first.digest_at(CHAMPION), first.digest_at(PREVIOUS_CHAMPION)) == (second.digest, first.digest)
    third = make("third", gain=9.0, items="still others", base=f"models:/{first.name}/1", blurred=True)
    third.register()
    assert first.digest_at(CHAMPION) == second.digest


def test_the_same_content_is_one_version_however_often_it_is_registered(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=4.0)
    first.register()
    second.register()
    assert first.digest_at(CHALLENGER) == second.digest
    first.register()
    assert first.versions() == [1, 2]
    assert first.digest_at(CHALLENGER) == first.digest
    assert read_json(RECORD)["version"] == 1


def test_registering_the_champion_again_leaves_it_champion(make: Make) -> None:
    first, second = make("first", gain=5.0), make("second", gain=6.0)
    for made in (first, second, second):
        made.register()
    assert first.versions() == [1, 2]
    assert (first.digest_at(CHAMPION), first.digest_at(PREVIOUS_CHAMPION)) == (second.digest, first.digest)
    assert read_json(RECORD)["champion"] is True


def test_nothing_is_registered_inside_an_experiment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("first")
    monkeypatch.setenv("DVC_EXP_NAME", "trial")
    made.register()
    assert made.versions() == []
    assert not RECORD.exists()
    assert read_json(made.root / "out" / "registration.json")["content_digest"] == made.digest


def test_the_output_is_the_same_inside_and_outside_an_experiment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("first")
    made.register()
    outside = (made.root / "out" / "registration.json").read_bytes()
    monkeypatch.setenv("DVC_EXP_NAME", "trial")
    made.register()
    assert (made.root / "out" / "registration.json").read_bytes() == outside


def test_a_model_that_failed_a_check_is_not_registered(make: Make) -> None:
    made = make("first", passed=False)
    with pytest.raises(VocabgraftError, match="a check failed, so the model is not registered"):
        made.register()
    assert made.versions() == []
    assert not (made.root / "out").exists()


@pytest.mark.parametrize("name", ["a/b", "a:b"])
def test_a_name_that_the_registry_refuses_is_a_clear_error(make: Make, name: str) -> None:
    made = make("first")
    refused = RegisterModelParams.model_construct(name=name, gates=GATES)
    with pytest.raises(VocabgraftError) as caught:
        register_model(**made.paths(), params=refused, base=BaseParams(model="a base"))
    assert repr(name) in str(caught.value)
    assert made.versions() == []
    assert not (made.root / "out").exists()


def test_a_benefit_that_was_not_measured_is_not_shown(make: Make) -> None:
    made = make("first")
    made.register(GATES.model_copy(update={"benefit": "terms.no_new_word.mrr"}))
    assert (made.digest_at(CHAMPION), made.digest_at(CHALLENGER)) == (None, made.digest)
    gate = next(gate for gate in read_json(RECORD)["gates"] if gate["kind"] == "benefit")
    assert (gate["verdict"], gate["items"], gate["figure"]) == ("not shown", 0, None)
    assert "terms.no_new_word.mrr" in gate["note"]


def test_a_run_has_metrics_parameters_and_curve(make: Make) -> None:
    made = make("first")
    made.register()
    client = connect()
    version = client.get_model_version(made.name, "1")
    run = client.get_run(version.run_id)
    assert run.data.metrics["merged.terms.new_word.mrr"] == 55.0
    assert run.data.metrics["merged.terms.new_word.recall_at_10"] == 80.0
    assert run.data.params["train_adapter.epochs"] == "2"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")] == [2.0]
    assert version.tags["base"] == "package:base/model"


def test_parameters_by_patterns_are_recorded_whole(make: Make) -> None:
    made = make("first")
    edit_params(
        Path("params.yaml"),
        [
            "train_adapter.method=peft",
            "train_adapter.peft={config: LoHaConfig, arguments: {r: 4, rank_pattern: {'layer.1.*(query|value)': 2}}}",
            "train_adapter.arguments={learning_rate_mapping: {'encoder[.]layer[.]1': 1.0e-5}}",
        ],
    )
    made.register()
    client = connect()
    run = client.get_run(client.get_model_version(made.name, "1").run_id)
    assert run.data.params["train_adapter.peft.arguments.r"] == "4"
    assert run.data.params["train_adapter.peft.arguments.rank_pattern"] == "{'layer.1.*(query|value)': 2}"
    assert run.data.params["train_adapter.arguments.learning_rate_mapping"] == "{'encoder[.]layer[.]1': 1e-05}"


def test_a_whole_model_in_place_of_an_adapter_is_not_kept_twice(make: Make) -> None:
    made = make("first")
    with new_folder(made.root / "adapter") as work:
        write_json(work / "curve.json", [{"step": 1, "loss": 2.0, "epoch": 0.5}])
        write_json(work / "report.json", {"method": "full"})
        (work / "model.safetensors").write_bytes(b"weights")
    made.register()
    client = connect()
    run_id = client.get_model_version(made.name, "1").run_id
    kept = {entry.path for entry in client.list_artifacts(run_id)}
    assert "report.json" in kept
    assert "adapter" not in kept


def test_a_report_becomes_an_artifact_of_the_versions_run_and_a_later_one_takes_its_place(
    make: Make, tmp_path: Path
) -> None:
    made = make("first")
    made.register()
    client = connect()
    run_id = client.get_model_version(made.name, "1").run_id
    path = tmp_path / "report.html"
    for content in ("of one run", "of the next"):
        path.write_text(content, encoding="utf-8")
        log_report(client, made.name, 1, path, plots={"gains": f"<svg>{content}</svg>"})
        for artifact, text in (("report.html", content), ("plots/gains.svg", f"<svg>{content}</svg>")):
            assert Path(client.download_artifacts(run_id, artifact)).read_text(encoding="utf-8") == text


def test_a_report_for_a_version_that_is_not_there_is_a_clear_error(make: Make, tmp_path: Path) -> None:
    made = make("first")
    with pytest.raises(VocabgraftError, match="version 7"):
        log_report(connect(), made.name, 7, tmp_path / "report.html")


def test_a_run_holds_the_gains_the_drift_and_the_speed_of_this_model(make: Make) -> None:
    SPEED.parent.mkdir()
    own, other = make("own"), make("other")
    write_json(SPEED, {"ratio": 1.25, "merged_digest": own.digest})
    own.register()
    other.register()
    client = connect()
    first, second = (client.get_run(client.get_model_version(own.name, number).run_id) for number in ("1", "2"))
    assert first.data.metrics["comparison.terms.new_word.recall_at_10.low"] == 1.0
    assert first.data.metrics["retention.drift.no_new_word.mean"] == 0.25
    assert first.data.metrics["retention.valid_share"] == 60.0
    assert "retention.neighbours_kept" not in first.data.metrics
    assert first.data.metrics["speed.ratio"] == 1.25
    assert "speed.ratio" not in second.data.metrics
