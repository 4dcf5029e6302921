"""The report of every kind of run: what it says, what it leaves out, and what it never lets through."""

import base64
import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows.engine.run_record import FlowRun
from flows.engine.stage_outcome import Outcome, StageResult
from flows.reporting.gather import gather, write_report
from flows.reporting.page import as_markdown, render, verdict
from flows.reporting.sections import share_of_limit
from tasks.registry.gate_results import NO_EVIDENCE_ASKED, GateResult, told
from tasks.support.trainer_log import loss_lines
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, write_project
from tests.flows.reporting.report_samples import (
    GATES,
    HOSTILE,
    LONG,
    NOT_SHOWN,
    RETENTION,
    STAGES,
    TOKENS,
    UPSTREAM,
    WORDS,
    broken,
    check,
    flow_run,
    outputs,
    registration,
    rejected,
    results,
    write_beside,
    write_csv,
    write_outputs,
    write_run_record,
)
from vocabgraft.storage.artifacts import write_json

SECTIONS = ["benefit", "searches", "changes", "retention", "consistency", "vocabulary", "training", "data", "lineage"]
MAKERS = {
    "benefit": "evaluate_model",
    "searches": "evaluate_model",
    "retention": "evaluate_model",
    "consistency": "check_consistency",
    "vocabulary": "extend_tokenizer",
    "training": "train_adapter",
    "data": "validate_data",
}
Plot = Callable[[str, Mapping[str, Any]], str]
Left = dict[str, dict[str, Any]]


def no_plot(name: str, data: Mapping[str, Any]) -> str:
    """Where a plot would be, the data that it is to show."""
    assert data["label"] and data["description"]
    return f'<svg role="img" id="plot-{name}"></svg>'


class Page(HTMLParser):
    """A page's elements, and its words by section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {"": []}
        self._section = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element; a section or the verdict begins a new list of words."""
        self.elements.append((tag, dict(attrs)))
        if tag in ("section", "header"):
            self._section = dict(attrs)["id"] or ""
            self.words[self._section] = []

    def handle_endtag(self, tag: str) -> None:
        """What comes between two sections belongs to none."""
        if tag in ("section", "header"):
            self._section = ""

    def handle_data(self, data: str) -> None:
        """Keep the words."""
        self.words[self._section].append(data)

    def text(self, section: str) -> str:
        """The words of a section, blanks as one."""
        return re.sub(r"\s+", " ", " ".join(self.words[section]))


def made(root: Path, run: FlowRun | None, left: Left | None = None, plot: Plot = no_plot) -> Page:
    """The page of what a run left."""
    write_outputs(root, outputs() if left is None else left)
    write_beside(root)
    shutil.copy(ROOT / "params.yaml", root)
    if run is not None:
        write_run_record(run, root)
    return Page(render(gather(STAGES, root), plot))


def without(left: Left, *stages: str) -> Left:
    """What is left when these stages leave nothing."""
    return {name: files for name, files in left.items() if name not in stages}


def make_old(*paths: Path) -> None:
    """Give files a time before every run of the sample."""
    for path in paths:
        os.utime(path, (1, 1))


def test_a_full_page_has_every_section_with_its_metrics(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results(), registration=registration(champion=True)))
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == SECTIONS
    assert "Promoted sample version 3 is the champion." in page.text("verdict")
    assert "MRR of terms with a new word went from 57.85 to 64.45 percent: +6.60 points" in page.text("benefit")
    assert "+2.50 and +10.90, more than chance explains" in page.text("benefit")
    for judged in ("better", "worse", "could be chance", "smoke figure", "fewer than 30 items", "62.05"):
        assert judged in page.text("benefit")
    assert "32.0 % of the stored vectors stay valid" in page.text("retention")
    assert "93.58 93.58 93.58 0.00" in page.text("retention"), "base, resized, trained and the change"
    counted = "4 of 7 checks passed; 1 waived, 1 too few to judge, 1 does not apply"
    assert counted in page.text("consistency")
    assert f"4/7 {counted.removeprefix('4 of 7 ')}" in page.text("")
    assert "3 relations with 6 held-out triples" in page.text("consistency")
    assert f"Warning: {HOSTILE}: 0.12" in page.text("consistency")
    assert "base: 2.4e-07" in page.text("consistency")
    assert "the extra is not installed" in page.text("consistency"), "a check is waived with its reason"
    assert "11 new tokens (8 words, 1 symbol, 2 special tokens)" in page.text("vocabulary")
    assert "kidney 0.71" in page.text("vocabulary")
    assert "validation loss of terms ended at 1.03" in page.text("training")
    assert "terms.csv 17 anchor" in page.text("data")
    assert ("a", {"href": "data_docs/index.html"}) in page.elements
    assert "1.24 times the base's texts per second" in page.text("")


def test_every_plot_is_there_and_tells_its_data_in_words(tmp_path: Path) -> None:
    drawn: dict[str, Mapping[str, Any]] = {}

    def keep(name: str, data: Mapping[str, Any]) -> str:
        drawn[name] = data
        return no_plot(name, data)

    made(tmp_path, flow_run(results()), plot=keep)
    assert sorted(drawn) == ["curve", "drift", "gains", "token_map"]
    rows = {row["name"]: row for row in drawn["gains"]["rows"]}
    subsets = ["terms, with a new word", "relations, with a new word", "relations, without a new word", "sts, all"]
    assert list(rows) == subsets
    first = rows[subsets[0]]
    assert (first["base"], first["merged"], first["control"]) == (57.85, pytest.approx(64.45), pytest.approx(62.05))
    assert first["low"] < first["gain"] < first["high"]
    assert [row["mean"] for row in drawn["drift"]["rows"]] == [0.0312, 0.0]
    assert "with a new word: mean 0.0312" in drawn["drift"]["description"]


def test_losses_are_shown_as_prominently_as_gains_and_before_them(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results()))
    said = page.text("searches")
    assert said.index("terms") < said.index("relations"), "the dataset that decides promotion comes first"
    assert "up for 70 and down for 9 ; 40 stayed" in said
    assert said.index("Found worse 1 of 9") < said.index("Found better 1 of 70") < said.index("A random sample")
    opened = [attributes for tag, attributes in page.elements if "search" in (attributes.get("class") or "").split()]
    assert [entry["class"] for entry in opened] == ["search worse", "search better", "search same"] * 2
    assert ["open" in entry for entry in opened] == [True, True, False] * 2
    assert f"{HOSTILE} rank 4,000 → 5,000" in said
    assert "rank 12.5 → 1" in said


def test_a_search_marks_new_words_and_the_right_document_and_names_one_that_is_not_shown(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results()))
    said = page.text("searches")
    new = [attributes for tag, attributes in page.elements if tag == "code" and attributes.get("class") == "new"]
    assert len(new) == 6 + 1 + len(TOKENS), "in each of six searches, in the legend, in the table of tokens"
    right = [attributes for tag, attributes in page.elements if tag == "li" and attributes.get("class") == "right"]
    # Of "gains" the trained model's first; of "sample" both models' second; of "losses" the base's in one dataset.
    assert len(right) == 2 * (1 + 2) + 1
    assert said.count("Right the right one") == 2, "both losses, whose right document is beyond the five"


def test_what_changed_since_the_champion_is_shown(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results(), registration=registration(champion=True)))
    said = page.text("changes")
    for shown in (
        "Compared with version 2.",
        f"2 words added : {WORDS[0]} , {HOSTILE} .",
        "1 word removed : calculus .",
        "epochs 2 3",
        f"license not set {HOSTILE}",
        "rows of terms.train 800 862",
        "rows of terms.test 119 119 other content",
        "63.20 64.45 +1.25",
        "0.40 to +2.90",
        "relations, mrr: the held-out items are others",
    ):
        assert shown in said, (shown, said)


def test_a_first_version_has_no_champion_before_it(tmp_path: Path) -> None:
    first = registration(champion=True) | {"changes": None}
    assert "no earlier champion" in made(tmp_path, flow_run(results(), registration=first)).text("changes")


def rows_of_tokens(page: Page) -> dict[str, list[str]]:
    """The keys of each row's cells, by token, in the order of the page."""
    keys = [
        attributes["data-key"] or "" for tag, attributes in page.elements if tag == "td" and "data-key" in attributes
    ]
    width = 7
    return {keys[start]: keys[start : start + width] for start in range(0, len(keys), width)}


def test_the_worst_tokens_come_first_each_with_its_reason(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results()))
    said = page.text("vocabulary")
    names = list(rows_of_tokens(page))
    words = [name for name in names if not name.startswith("<|")]
    # A sink, one that is mistaken, one that got worse, one that no training text holds; then by the gain.
    assert words[:5] == [WORDS[5], WORDS[4], WORDS[2], HOSTILE, WORDS[1]]
    assert words[-1] == WORDS[0], "what got better is last"
    assert names[-2:] == ["<|IsA|>", "<|TreatedBy|>"], "relations have a table of their own"
    for reason in (
        "attention sink ratio 0.97",
        "by 6.5 standard errors",
        "MRR 40.00 to 19.50 % (\N{MINUS SIGN}20.50) over 12 held-out queries, p 0.010",
        "from rank 1 to 1,402.5",
        "no held-out query",
        "no training text",
    ):
        assert reason in said, reason
    assert "1 attention sink, 1 mistaken for another, 1 worse, 1 not trained" in said


def test_a_large_loss_over_few_queries_stands_before_a_small_gain(tmp_path: Path) -> None:
    left = outputs()
    entry = next(token for token in left["evaluate_model"]["tokens.json"]["tokens"] if token["token"] == WORDS[3])
    few = {"queries": 2, "base": 50.34, "merged": 14.55, "gain": -35.79, "verdict": "too few to judge", "worst": None}
    entry["held_out"] = few
    page = made(tmp_path, flow_run(results()), left)
    names = list(rows_of_tokens(page))
    assert names.index(WORDS[2]) < names.index(WORDS[3]) < names.index(WORDS[1]), "worse, then by the gain"
    assert "training and held-out texts that contain the token" in page.text("vocabulary"), "columns are explained"


def test_a_token_has_its_metrics_before_and_after_training(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results()))
    said = page.text("vocabulary")
    assert "0.31 → 0.35" in said, "the cosine to the description"
    assert said.index("##ro 0.90") < said.index("kidney 0.71"), "the nearest tokens"
    token, texts, fidelity, description, sink, gain, _ = rows_of_tokens(page)[WORDS[2]]
    assert (token, texts, sink, gain) == (WORDS[2], "36", "0.41", "-20.5")
    assert float(fidelity) == pytest.approx(0.91) and float(description) == pytest.approx(0.04)


def test_what_was_not_measured_of_a_token_has_no_key(tmp_path: Path) -> None:
    left = outputs()
    del left["check_consistency"]["tokens.json"]
    left["evaluate_model"]["tokens.json"]["tokens"] = []
    left["resize_base"]["report.json"]["distillation"] = None
    page = made(tmp_path, flow_run(results()), left)
    assert rows_of_tokens(page)[WORDS[0]][2:6] == ["", "", "", ""]
    assert "not measured" in page.text("vocabulary")


def test_the_only_script_that_may_run_is_the_one_that_sorts(tmp_path: Path) -> None:
    write_outputs(tmp_path, outputs())
    write_beside(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    html = render(gather(STAGES, tmp_path), no_plot)
    scripts = re.findall("<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.replace("&#39;", "'")


def test_lineage_tells_what_the_model_was_made_from(tmp_path: Path) -> None:
    run = flow_run(results(), registration=registration(champion=True), prefect_run="1234-abcd")
    page = made(tmp_path, run)
    record = json.loads((tmp_path / "reports" / "run.json").read_text(encoding="utf-8"))
    said = page.text("lineage")
    for shown in (
        record["git_commit"],
        record["inputs"]["digest"],
        "5" * 64,
        "2" * 64,
        "1234-abcd",
        "models:/sample/3",
    ):
        assert shown in said
    assert f"torch {record['versions']['torch']}" in said
    assert '"terms.new_word.mrr"' in said
    assert "remote code: off" in said


def test_lineage_tells_which_code_of_the_base_ran(tmp_path: Path) -> None:
    left = outputs()
    left["validate_data"]["base.json"]["code"] = {"modeling_x.py": "7" * 64, "<b>x.py": "8" * 64}
    page = made(tmp_path, flow_run(results()), left)
    assert "remote code: on: <b>x.py, modeling_x.py (SHA-256 " in page.text("lineage")


def test_a_model_that_was_not_promoted_is_shown_with_the_gates_that_did_not_hold(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results(), registration=registration(champion=False)))
    said = page.text("verdict")
    assert "Registered, not promoted" in said
    assert "Gain over the champion, version 2: -0.50 points (95 % interval -0.90 to -0.10, 119 items)" in said
    assert "Retention drop" not in said, "a gate that holds is no reason"
    for told_of in ("Retention drop", "needed: at most 0.01", "155 items", "0.0000 in Spearman's rho", "not met"):
        assert told_of in page.text("")


def of_gates(*gates: GateResult, champion: bool = False, **more: Any) -> dict[str, Any]:
    """A registered version with these gates."""
    return registration(champion) | {"gates": [gate.as_json() for gate in gates]} | more


def test_a_benefit_that_is_not_shown_is_reported_with_the_items_that_it_would_need(tmp_path: Path) -> None:
    page = made(tmp_path, flow_run(results(), registration=of_gates(NOT_SHOWN, RETENTION)))
    said = page.text("verdict")
    assert "Registered, not shown to be better" in said
    assert "Not shown to be better: 32 items, interval -4.20 to +4.30" in said and "5,800,000 items" in said
    header = next(attributes for tag, attributes in page.elements if attributes.get("id") == "verdict")
    assert header["class"] == "registered", "a challenger has the colour of an open verdict"
    badges = [
        attributes["class"] for tag, attributes in page.elements if (attributes.get("class") or "")[:5] == "badge"
    ]
    assert "badge open" in badges


def test_a_champion_without_evidence_is_promoted_and_says_so(tmp_path: Path) -> None:
    evidence = f"{NO_EVIDENCE_ASKED}; {told(NOT_SHOWN)}"
    page = made(tmp_path, flow_run(results(), registration=of_gates(NOT_SHOWN, champion=True, evidence=evidence)))
    said = page.text("verdict")
    assert "Promoted" in said and "No evidence was asked for" in said and "32 items" in said


@pytest.mark.parametrize(("benefit", "value"), [("fidelity", "0.947"), ("tokens_per_text", "2.09")])
def test_the_first_tile_is_what_promotion_is_decided_by(tmp_path: Path, benefit: str, value: str) -> None:
    left = outputs()
    found = {"low": 0.9, "high": 2.5, "queries": 60}
    left["evaluate_model"]["comparison.json"]["without_labels"] = {
        "fidelity": found | {"gain": 0.94661},
        "tokens_per_text": found | {"gain": 2.0923},
    }
    write_outputs(tmp_path, left)
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("terms.new_word.mrr", benefit)
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    write_run_record(flow_run(results()), tmp_path)
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert f"Benefit {value}" in page.text("") and "60 texts" in page.text("")


def test_without_a_benefit_the_page_is_whole(tmp_path: Path) -> None:
    left = outputs()
    left["evaluate_model"]["metrics.json"]["merged"]["tokens_per_text"] = None
    write_outputs(tmp_path, left)
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("terms.new_word.mrr", "null")
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    write_run_record(flow_run(results(), registration=of_gates(RETENTION, champion=True)), tmp_path)
    assert "Promoted" in Page(render(gather(STAGES, tmp_path), no_plot)).text("verdict")


def test_the_champion_stands_beside_base_and_trained_model(tmp_path: Path) -> None:
    beside = {"version": 2, "how": "recorded on the same items", "figures": {"terms": {"new_word": {"mrr": 61.25}}}}
    plain, shown = tmp_path / "plain", tmp_path / "shown"
    without = made(plain, flow_run(results(), registration=registration(champion=False)))
    assert "Champion, %" not in without.text("benefit")
    page = made(shown, flow_run(results(), registration=registration(champion=False) | {"compared_with": beside}))
    said = page.text("benefit")
    assert "Champion, %" in said and "61.25" in said
    assert "The champion, version 2, was recorded on the same items." in said


def test_a_champion_that_lost_its_alias_since_is_not_called_promoted(tmp_path: Path) -> None:
    moved = registration(champion=True) | {"champion": False}
    page = made(tmp_path, flow_run(results(), registration=moved))
    assert "Registered, not promoted" in page.text("verdict")
    assert "alias champion" in page.text("verdict")


@pytest.mark.parametrize("failing", UPSTREAM)
def test_a_failed_run_names_the_stage_what_it_said_and_what_is_missing(tmp_path: Path, failing: str) -> None:
    run = flow_run(broken(failing, f"{failing}: no such luck\n  in line two of {HOSTILE}"))
    lost = [result.name for result in run.results if not result.outcome.succeeded]
    page = made(tmp_path, run, without(outputs(), *lost))
    said = page.text("verdict")
    assert f"Failed: {failing}" in said
    assert "no such luck in line two of" in said, "every line of what a stage said"
    assert "Promoted" not in said and "is the champion" not in said
    for section, maker in MAKERS.items():
        told = page.text(section)
        if maker == failing:
            assert f"{maker} failed before it wrote" in told
        elif maker in lost:
            assert f"{maker} did not run" in told and f"{failing} failed" in told
        else:
            assert f"{maker} failed" not in told and f"{maker} did not run" not in told


@pytest.mark.parametrize("failing", ["train_adapter", "check_consistency"])
def test_what_an_earlier_run_left_is_not_shown_as_this_runs(tmp_path: Path, failing: str) -> None:
    left = outputs()
    write_outputs(tmp_path, left)
    make_old(tmp_path / "made" / failing / ("report.json" if failing == "train_adapter" else "checks.json"))
    write_run_record(flow_run(broken(failing, "no such luck")), tmp_path)
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    section = "training" if failing == "train_adapter" else "consistency"
    assert f"{failing} failed before it wrote" in page.text(section)
    assert "ended at" not in page.text("training") or failing != "train_adapter"
    assert "of 7 checks passed" not in page.text("consistency")
    shown = "64.45" in page.text("benefit")
    assert shown is (failing == "check_consistency"), "evaluate_model reads what train_adapter makes, not the checks"


def test_a_failed_check_comes_first_with_its_figure_and_limit(tmp_path: Path) -> None:
    left = outputs()
    failed = check("segmentation", "segmentation", 3, "at most 0", "failed") | {
        "details": [f"'{HOSTILE}' has other ids"]
    }
    left["check_consistency"]["checks.json"]["checks"].append(failed)
    run = flow_run(broken("check_consistency", "1 of 7 checks failed"))
    page = made(tmp_path, run, without(left, "register_model"))
    said = page.text("consistency")
    assert "4 of 8 checks passed; 1 failed, 1 waived, 1 too few to judge, 1 does not apply" in said
    assert said.index("Failed") < said.index("segmentation") < said.index("Rows") < said.index("Meaning")
    assert "what segmentation is there for" in said and f"'{HOSTILE}' has other ids" in said
    assert "No model was registered." in page.text("verdict")


def test_rejected_rows_of_a_failed_validation_are_those_beside_its_data_docs(tmp_path: Path) -> None:
    write_beside(tmp_path)
    rows = [rejected("terms.csv", str(row), "anchor", f"{HOSTILE} {row}", "is empty") for row in range(1, 150)]
    write_csv(tmp_path / "reports" / "data_docs" / "rejected.csv", rows)
    write_run_record(flow_run(broken("validate_data", "149 problems in the raw data")), tmp_path)
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    said = page.text("data")
    assert "149 problems in the raw data" in said
    assert f"terms.csv 100 anchor {HOSTILE} 100" in said and f"{HOSTILE} 101" not in said and "49 more are in" in said


def test_rejected_rows_and_data_docs_of_an_earlier_run_are_not_this_runs(tmp_path: Path) -> None:
    write_beside(tmp_path)
    folder = tmp_path / "reports" / "data_docs"
    write_csv(folder / "rejected.csv", [rejected("terms.csv", "1", "anchor", "old", "is empty")])
    make_old(folder / "rejected.csv", folder / "index.html")
    write_run_record(flow_run(broken("validate_data", "terms.csv is missing")), tmp_path)
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert "rejected rows were not recorded" in page.text("data")
    assert "Data Docs are from an earlier run" in page.text("data")
    assert not [tag for tag, attributes in page.elements if attributes.get("href") == "data_docs/index.html"]


def test_a_run_that_did_not_get_to_its_stages_says_why(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: many", encoding="utf-8")
    write_outputs(tmp_path, outputs())
    write_run_record(flow_run([], failure="params.yaml: seed is 'many'"), tmp_path)
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert "The run ended before its stages" in page.text("verdict")
    assert "params.yaml: seed is 'many'" in page.text("verdict")
    for section, maker in MAKERS.items():
        assert f"{maker} did not run: the run ended before its stages" in page.text(section)


def test_a_run_until_a_stage_says_that_it_registered_nothing(tmp_path: Path) -> None:
    part = [result for result in results() if result.name in ("validate_data", "extend_tokenizer")]
    page = made(tmp_path, flow_run(part))
    assert "Nothing was registered" in page.text("verdict") and "extend_tokenizer" in page.text("verdict")
    assert "11 new tokens" in page.text("vocabulary")
    assert "evaluate_model was not part of this run." in page.text("benefit")


def test_a_run_inside_an_experiment_says_that_it_registered_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "trial")
    assert "inside a DVC experiment, such as this run of trial" in made(tmp_path, flow_run(results())).text("verdict")


def test_a_model_that_the_registry_lost_is_not_called_registered(tmp_path: Path) -> None:
    said = made(tmp_path, flow_run(results())).text("verdict")
    assert "Nothing was registered The registry has no version of this model" in said


def test_outputs_that_were_made_again_without_the_flow_are_shown_without_its_verdict(tmp_path: Path) -> None:
    left = outputs()
    made(tmp_path, flow_run(broken("train_adapter", "no such luck")), without(left, "train_adapter"))
    write_outputs(tmp_path, {name: left[name] for name in ("train_adapter", "check_consistency")})
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert "Changed since the last run" in page.text("verdict")
    assert "train_adapter" in page.text("verdict")
    assert "ended at 1.03" in page.text("training")


@pytest.mark.parametrize("registered", [True, False])
def test_stages_without_any_run_of_the_flow_are_shown(tmp_path: Path, registered: bool) -> None:
    if registered:
        (tmp_path / "reports").mkdir()
        write_json(tmp_path / "reports" / "registration.json", registration(champion=True))
        write_outputs(tmp_path, outputs())
        page = Page(render(gather(STAGES, tmp_path), no_plot))
        assert "Promoted" in page.text("verdict")
    else:
        page = made(tmp_path, None)
    assert "No run of the flow" in page.text("verdict")
    assert "64.45" in page.text("benefit")


def test_a_registration_of_another_model_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    write_json(tmp_path / "reports" / "registration.json", registration(champion=True) | {"content_digest": "3" * 64})
    write_outputs(tmp_path, outputs())
    assert "Promoted" not in Page(render(gather(STAGES, tmp_path), no_plot)).text("verdict")


def test_nothing_at_all_makes_a_page_that_says_so(tmp_path: Path) -> None:
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert "No recorded run" in page.text("verdict")
    for section, maker in MAKERS.items():
        assert f"{maker} has written no " in page.text(section)


def test_a_damaged_file_is_reported_in_its_section_and_nowhere_else(tmp_path: Path) -> None:
    write_outputs(tmp_path, outputs())
    (tmp_path / "made" / "evaluate_model" / "comparison.json").write_text('{"items": [', encoding="utf-8")
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert "comparison.json is damaged" in page.text("benefit")
    assert "64.45" in page.text("benefit"), "the figures without their intervals"
    assert "damaged" not in page.text("retention")


def test_files_of_the_simplest_kind_are_enough(tmp_path: Path) -> None:
    left = copy.deepcopy(outputs())
    for entry in left["check_consistency"]["checks.json"]["checks"]:
        for name in ("group", "reason", "details", "noise", "warnings"):
            del entry[name]
    for name in ("comparison.json", "retention.json", "tokens.json"):
        del left["evaluate_model"][name]
    del left["evaluate_model"]["metrics.json"]["control"]
    page = made(tmp_path, flow_run(results()), left)
    assert "evaluate_model has written no comparison.json" in page.text("benefit")
    assert "64.45" in page.text("benefit") and "Control" not in page.text("benefit")
    assert "4 of 7 checks passed" in page.text("consistency")
    assert WORDS[0] in page.text("vocabulary")


def test_problems_of_the_evaluation_are_reported(tmp_path: Path) -> None:
    left = outputs()
    left["evaluate_model"]["retention.json"]["problems"] = ["the reference corpus has 7 texts, too few"]
    left["evaluate_model"]["comparison.json"]["problems"] = ["sts: no spearman, since all scores are 1"]
    page = made(tmp_path, flow_run(results()), left)
    assert "the reference corpus has 7 texts, too few" in page.text("retention")
    assert "all scores are 1" in page.text("benefit")


def test_the_speed_of_another_model_is_not_shown(tmp_path: Path) -> None:
    left = outputs()
    made(tmp_path, flow_run(results()), left)
    left["merge_adapter"]["config.json"] = {"another": True}
    write_outputs(tmp_path, left)
    write_run_record(flow_run(results()), tmp_path)
    page = Page(render(gather(STAGES, tmp_path), no_plot))
    assert "texts per second" not in page.text("") and "tokens per text" in page.text("")


def test_a_check_that_could_not_run_has_no_figure_and_says_why(tmp_path: Path) -> None:
    left = outputs()
    entry = check("reload", "encodings", 0.0, "none", "failed", "could not run: KeyError: 'x'") | {"figure": None}
    left["check_consistency"]["checks.json"]["checks"].append(entry)
    said = made(tmp_path, flow_run(broken("check_consistency", "1 failed")), left).text("consistency")
    assert "could not run: KeyError: 'x' \u2013 \u2013 \u2013 failed" in said


def test_benchmarks_and_link_prediction_are_metrics_like_others(tmp_path: Path) -> None:
    left = outputs()
    for place, figures in enumerate(left["evaluate_model"]["metrics.json"].values()):
        figures["NFCorpus"] = {"all": {"main_score": 31.0 + place}}
        figures["relations"]["all"]["link_hits@3"] = 12.0 + place
    said = made(tmp_path, flow_run(results()), left).text("benefit")
    assert "NFCorpus , all Main score 31.00" in said
    assert "Hits@3 of link prediction" in said


def test_a_figure_that_could_not_be_measured_is_a_dash(tmp_path: Path) -> None:
    left = outputs()
    for model in ("base", "merged"):
        del left["evaluate_model"]["metrics.json"][model]["retention"]["no_new_word"]["spearman"]
    nothing = {"texts": 0, "mean": None, "p99": None, "worst": [], "valid_share": None, "neighbours_kept": None}
    left["evaluate_model"]["retention.json"]["drift"]["new_word"] = nothing
    page = made(tmp_path, flow_run(results()), left)
    assert "without a new word 155 pairs \u2013 93.58 \u2013 \u2013" in page.text("retention")


def hostile_everywhere() -> tuple[Left, list[StageResult], dict[str, Any]]:
    """A sample with a hostile text in every place that takes free text."""
    left = outputs()
    left["validate_data"]["report.json"]["warnings"] = [HOSTILE]
    left["validate_data"]["report.json"]["datasets"][HOSTILE] = {"train": 1}
    left["validate_data"]["base.json"]["model"] = HOSTILE
    metrics = left["evaluate_model"]["metrics.json"]
    for model in metrics.values():
        model[HOSTILE] = {"all": {HOSTILE: 1.0, "queries": 3}}
    left["evaluate_model"]["retention.json"]["problems"] = [HOSTILE]
    left["evaluate_model"]["comparison.json"]["control"]["says"] = [HOSTILE]
    entry = check(HOSTILE, HOSTILE, 1.0, HOSTILE, "passed", HOSTILE) | {"protects": HOSTILE, "details": [HOSTILE]}
    left["check_consistency"]["checks.json"]["checks"].append(entry)
    left["extend_tokenizer"]["report.json"]["tokens"][0]["read_as"] = [HOSTILE]
    log = left["train_adapter"]["report.json"]["log"]
    log.append({"phase": 2, "step": 36, f"eval_{HOSTILE}_loss": 1.0})
    outcomes = {"validate_data": (Outcome.RESTORED, HOSTILE), "register_model": (Outcome.FAILED, HOSTILE)}
    gates = [gate | {"name": HOSTILE, "limit": HOSTILE} for gate in GATES]
    return left, results(outcomes), registration(champion=False) | {"name": HOSTILE, "gates": gates}


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hostile sample as HTML, its plots drawn."""
    root = tmp_path_factory.mktemp("hostile")
    left, stages, named = hostile_everywhere()
    made(root, flow_run(stages, registration=named), left)
    return write_report(gather(STAGES, root), root).read_text(encoding="utf-8")


def test_no_text_of_the_data_becomes_markup(hostile_page: str) -> None:
    page = Page(hostile_page)
    assert [tag for tag, _ in page.elements].count("script") == 1, (
        "the one that sorts, which the policy names by its hash"
    )
    for section in SECTIONS:
        assert HOSTILE in page.text(section), f"{section} shows the text as it is"
    assert hostile_page.count("<script") == 1 and hostile_page.count("&lt;script&gt;") > 20


def test_the_page_needs_nothing_from_anywhere(hostile_page: str) -> None:
    page = Page(hostile_page)
    addresses = [
        value for _, attributes in page.elements for name in ("src", "href") if (value := attributes.get(name))
    ]
    own = [address for address in addresses if address.startswith(("#", "data:")) or address == "data_docs/index.html"]
    assert own == addresses
    assert not re.search(r"url\((?!#)|@import|@font-face", hostile_page)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r'https?://[^"\s]+', hostile_page)) <= namespaces
    policy = [attributes["content"] for _, attributes in page.elements if attributes.get("http-equiv")]
    (allowed,) = policy
    sorts, digest = allowed.split("'sha256-")
    assert sorts == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
    assert re.fullmatch(r"[\w+/]{43}='", digest), "one script, by its hash"


def test_no_two_elements_have_one_id(hostile_page: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(hostile_page).elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = gather(STAGES, tmp_path)
    path = write_report(gathered, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("flows.reporting.gather.render", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(gathered, tmp_path)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_the_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_project(tmp_path / "project", {"validate_data": Trivial()}))
    assert cli("report")([]) == 0
    assert capsys.readouterr().out == "written: reports/report.html\n"
    page = Page(Path("reports/report.html").read_text(encoding="utf-8"))
    assert "dvc.yaml has no stage evaluate_model" in page.text("benefit")


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("report")([]) == 2
    assert "vocabgraft: DVC cannot read" in capsys.readouterr().err


def test_the_short_form_has_verdict_metrics_and_address(tmp_path: Path) -> None:
    made(tmp_path, flow_run(broken("register_model", "the registry is away")))
    told = as_markdown(gather(STAGES, tmp_path), "file:///x/report.html")
    assert told.startswith("## Failed: register_model")
    assert "the registry is away" in told and "+6.60 points" in told and "file:///x/report.html" in told


def test_a_verdict_has_a_colour_of_its_own(tmp_path: Path) -> None:
    kinds = {"promoted", "registered", "unregistered", "failed", "mixed"}
    style = (ROOT / "flows" / "reporting" / "templates" / "report.css").read_text(encoding="utf-8")
    assert kinds == set(re.findall(r"#verdict\.(\w+)", style))
    assert verdict(gather(STAGES, tmp_path)).kind in kinds


@pytest.mark.parametrize(
    ("figure", "limit", "judged", "used"),
    [
        (0.0, "at most 1e-05", "passed", 0.0),
        (5e-06, "at most 1e-05", "passed", 50.0),
        (3e-05, "at most 1e-05", "failed", 100.0),
        (0.4, "at least 0.1", "passed", 25.0),
        (0.05, "at least 0.1", "failed", 100.0),
        (0.0, "at most 0", "passed", None),
        (1.0, "at most 0", "failed", None),
        (0.0, "at most 1e-05", "waived", None),
        (None, "at most 1e-05", "failed", None),
        (0.5, "between 0 and 1", "passed", None),
    ],
)
def test_the_meter_shows_how_much_of_what_is_allowed_was_used(
    figure: float | None, limit: str, judged: str, used: float | None
) -> None:
    found = share_of_limit({"figure": figure, "limit": limit, "verdict": judged})
    assert found == (None if used is None else pytest.approx(used))


def test_the_steps_of_a_second_phase_go_on_from_the_first() -> None:
    log: list[dict[str, Any]] = [
        {"phase": 1, "step": 1, "loss": 3.0},
        {"phase": 1, "step": 2, "loss": 2.0},
        {"phase": 1, "step": 2, "eval_terms_loss": 2.5, "eval_runtime": 1.0},
        {"phase": 2, "step": 1, "loss": 1.0},
    ]
    lines = loss_lines(log)
    assert lines["train"] == {"steps": [1, 2, 3], "losses": [3.0, 2.0, 1.0]}
    assert lines["validation"] == {"eval_terms_loss": {"steps": [2], "losses": [2.5]}}
    assert lines["phases"] == [[1, 0], [2, 2]]


def test_a_long_word_is_whole_in_the_table(tmp_path: Path) -> None:
    assert LONG in made(tmp_path, flow_run(results())).text("vocabulary")
