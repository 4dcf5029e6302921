"""What stages and runs leave, made up: enough of everything that the report shows."""

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage
from flows.engine.run_record import RUN_RECORD, FlowRun, run_record
from flows.engine.stage_outcome import Outcome, StageResult
from tasks.registry.gate_results import GateResult
from vocabgraft.storage.artifacts import MANIFEST, new_folder, read_json, write_json

UPSTREAM = {
    "validate_data": (),
    "extend_tokenizer": ("validate_data",),
    "resize_base": ("extend_tokenizer",),
    "train_adapter": ("resize_base",),
    "merge_adapter": ("train_adapter",),
    "check_consistency": ("merge_adapter",),
    "evaluate_model": ("merge_adapter",),
    "register_model": ("check_consistency", "evaluate_model"),
}
STAGES = [Stage(name, upstream, (Path("made") / name,)) for name, upstream in UPSTREAM.items()]
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = '<script>alert("x")</script>&amp;'
WORDS = ("nephrolithiasis thrombocytopenia cholecystitis pyelonephritis hyperkalemia rhabdomyolysis").split()
LONG = "pneumonoultramicroscopicsilicovolcanoconiosis" * 3
TOKENS = [*WORDS, LONG, HOSTILE, "\u222e", "<|IsA|>", "<|TreatedBy|>"]
GAIN = GateResult(
    kind="benefit",
    name="gain over the base",
    verdict="holds",
    limit="more than 0",
    figure=6.5997,
    low=2.5,
    high=10.9,
    items=119,
    needed=57,
    unit="points",
    claim="be better",
)
RETENTION = GateResult("retention", "retention drop", "holds", "at most 0.01", 0.0, 0.0, 0.0, 155, unit="rho")
CHAMPION = GateResult(
    kind="champion",
    name="gain over the champion, version 2",
    verdict="not met",
    limit="an interval not wholly below 0",
    figure=-0.5,
    low=-0.9,
    high=-0.1,
    items=119,
    unit="points",
    claim="be no worse than the champion, version 2",
    note="recorded on the same items",
)
GATES = [
    gate.as_json()
    for gate in (GateResult("consistency", "consistency", "holds", "every check passes"), GAIN, RETENTION, CHAMPION)
]
NOT_SHOWN = replace(GAIN, verdict="not shown", figure=0.01, low=-4.2, high=4.3, items=32, needed=5_800_000)


def kind_of(token: str) -> str:
    """The kind of a token of the sample."""
    return "special" if token.startswith("<|") else "symbol" if token == "\u222e" else "word"


def outputs() -> dict[str, dict[str, Any]]:
    """The files of every stage's output, by stage and name; a list of rows becomes a CSV file."""
    return {
        "validate_data": {
            "report.json": {
                "new_tokens": {"special": 2, "symbol": 1, "word": 8},
                "kept_tokens": 0,
                "contexts": 668,
                "retention": 310,
                "datasets": {
                    "relations": {"train": 1375, "validation": 149, "test": 152},
                    "terms": {"train": 862, "validation": 104, "test": 119},
                },
                "rejected": 2,
                "warnings": ["2 new words are common in general text (stone in 9 of 310 sentences)"],
            },
            "rejected.csv": [
                rejected("terms.csv", "17", "anchor", HOSTILE, "holds a control character; check the file's encoding"),
                rejected("vocabulary.csv", "3", "token", LONG, "is too long; allowed: 64 characters"),
            ],
            "base.json": {
                "model": "package:some/model",
                "revision": None,
                "sha256": "5" * 64,
                "tokenizer_sha256": "6" * 64,
            },
        },
        "extend_tokenizer": {
            "report.json": {
                "kept": [],
                "texts": 3767,
                "texts_changed": 2905,
                "tokens": [
                    {"id": 30522 + place, "kind": kind_of(token), "pieces": [1, 2], "read_as": ["ne", "##ph", "##ro"]}
                    | {"retrained": False, "text": token, "texts": 38 - place}
                    for place, token in enumerate(TOKENS)
                ],
            }
        },
        "resize_base": {"report.json": {"distillation": distillation()}},
        "train_adapter": {"report.json": training_report()},
        "merge_adapter": {"config.json": {}},
        "check_consistency": {"checks.json": {"passed": True, "checks": checks()}, "tokens.json": token_checks()},
        "evaluate_model": {
            "metrics.json": metrics(),
            "comparison.json": comparison(),
            "retention.json": drift(),
            "tokens.json": neighbours(),
            "searches.json": {"datasets": [searches("relations", ("<|IsA|>", 1)), searches("terms", (HOSTILE, 4000))]},
        },
        "register_model": {"registration.json": {"name": "sample", "content_digest": "2" * 64}},
    }


def rejected(file: str, row: str, column: str, value: str, reason: str) -> dict[str, str]:
    """A row of rejected.csv."""
    return {"file": file, "row": row, "column": column, "value": value, "reason": reason}


def distillation() -> dict[str, Any]:
    """How well new rows started."""
    figures = {"mean": 0.937897, "p10": 0.887352, "texts": 308}
    by_texts = [
        {"from": 0, "to": 0, "tokens": 2, "measured": 0, "mean": None, "p10": None},
        {"from": 64, "to": None, "tokens": 3, "measured": 3, "mean": 0.954321, "p10": 0.9},
    ]
    by_token = {token: {"mean": 0.9 + place / 200, "p10": 0.8, "texts": 5} for place, token in enumerate(TOKENS)}
    return {
        "after": {"all": figures, "words": figures},
        "by_token": by_token,
        "under_limit": [HOSTILE],
        "least_fidelity": 0.9,
        "by_texts": by_texts,
    }


def training_report() -> dict[str, Any]:
    """Two phases with validation losses."""
    draw = random.Random(1)
    log: list[dict[str, Any]] = []
    for phase in (1, 2):
        for step in range(1, 37):
            loss = 2.5 * math.exp(-(step + 36 * (phase - 1)) / 40) + 0.5 * draw.random()
            log.append({"phase": phase, "step": step, "epoch": phase * step / 36, "loss": loss, "learning_rate": 1e-3})
        log.append({"phase": phase, "step": 36, "epoch": phase, "eval_terms_loss": 1.7 - phase / 3})
        log.append({"phase": phase, "step": 36, "epoch": phase, "eval_relations_loss": 1.9 - phase / 3})
    return {
        "method": "lora_and_tokens",
        "precision": "float32",
        "trainable_parameters": 33792,
        "examples": 2237,
        "final_loss": 0.6,
        "tokens_without_training_text": [HOSTILE],
        "log": log,
    }


def checks() -> list[dict[str, Any]]:
    """A check of each verdict but failed."""
    return [
        check("old_rows_merged", "rows", 0.0, "at most 0"),
        check("merged_as_adapter", "encodings", 3.1e-7, "at most 1e-05", noise=2.4e-7),
        check("trained_differs", "silent identity", 0.3166, "at least 0.0001"),
        check("description", "meaning", 0.41, "at least 0.3", warnings=[f"{HOSTILE}: 0.12"]),
        check("relations", "meaning", None, "none", "too few to judge", "3 relations with 6 held-out triples"),
        check("onnx", "export", 0.0, "at most 0.0001", "waived", "the extra is not installed"),
        check("untouched_texts", "encodings", 0.0, "at most 0", "does not apply", "an adapter moves every text"),
    ]


def check(
    name: str,
    group: str,
    figure: float | None,
    limit: str,
    verdict: str = "passed",
    reason: str = "",
    details: Sequence[str] = (),
    noise: float | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """An entry of checks.json."""
    return {
        "name": name,
        "group": group,
        "protects": f"what {name} is there for",
        "figure": figure,
        "limit": limit,
        "verdict": verdict,
        "reason": reason,
        "details": list(details),
        "noise": noise,
        "warnings": list(warnings),
    }


def metrics() -> dict[str, Any]:
    """Figures of all four models."""
    gains = {"base": 0.0, "resized": 1.4, "control": 4.2, "merged": 6.6}
    return {
        model: {
            "terms": {
                "all": figures(57.85 + gain, 119),
                "new_word": figures(57.85 + gain, 119),
                "no_new_word": {"queries": 0},
            },
            "relations": {
                "all": figures(24.0 + gain, 152),
                "new_word": figures(7.0 + 1.3 * gain, 56),
                "no_new_word": figures(34.0 + 0.4 * gain, 12),
            },
            "sts": {"all": {"spearman": 81.0 - gain / 5, "pairs": 400}},
            "retention": {
                "all": {"spearman": 89.95 + gain / 6, "pairs": 310},
                "new_word": {"spearman": 86.3 + gain / 3, "pairs": 155},
                "no_new_word": {"spearman": 93.5791, "pairs": 155},
            },
            "tokens_per_text": 6.9133 if model == "base" else 4.821,
        }
        for model, gain in gains.items()
    }


def figures(mrr: float, queries: int) -> dict[str, float]:
    """What is measured of a retrieval set."""
    return {"mrr": mrr, "recall@10": mrr + 25, "queries": queries}


def comparison() -> dict[str, Any]:
    """The gains of the sample, one of each verdict."""
    verdicts = {
        ("terms", "new_word"): "better",
        ("terms", "all"): "better",
        ("relations", "new_word"): "could be chance",
        ("relations", "no_new_word"): "smoke figure",
        ("relations", "all"): "better",
    }
    found = metrics()
    items = [
        {"dataset": dataset, "subset": subset, "metric": "mrr", "queries": 119, "verdict": verdict, "p_value": 0.0004}
        | {model: found[model][dataset][subset]["mrr"] for model in found}
        | {"gain": gain, "low": gain - 4.1, "high": gain + 4.3}
        for (dataset, subset), verdict in verdicts.items()
        for gain in [found["merged"][dataset][subset]["mrr"] - found["base"][dataset][subset]["mrr"]]
    ]
    sts = {"dataset": "sts", "subset": "all", "metric": "spearman", "queries": 400, "verdict": "worse", "p_value": 0.02}
    items.append(sts | {"base": 81.0, "merged": 79.68, "gain": -1.32, "low": -2.4, "high": -0.3})
    said = ["terms, mrr: +6.60 over the base with the new words, +4.20 with an adapter and none"]
    return {"items": items, "smoke_under": 30, "control": {"trained": True, "says": said}, "problems": []}


def drift() -> dict[str, Any]:
    """Texts without a new word did not move, those with one did."""
    still = [{"text": f"a plain text, number {number}", "cosine": 1.0} for number in range(10)]
    moved = [{"text": f"{HOSTILE} {LONG} {number}", "cosine": 0.8 + number / 60} for number in range(10)]
    return {
        "corpus": 1250,
        "drift": {
            "no_new_word": {"texts": 400, "mean": 0.0, "p99": 0.0, "worst": still}
            | {"valid_share": 100.0, "neighbours_kept": 97.1},
            "new_word": {"texts": 850, "mean": 0.0312, "p99": 0.118, "worst": moved}
            | {"valid_share": 0.0, "neighbours_kept": 70.4},
        },
        "neighbours_kept": 78.9,
        "valid_share": 32.0,
        "spearman": {
            "no_new_word": {"gain": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "verdict": "could be chance"}
        },
        "problems": [],
    }


def held_out(place: int) -> dict[str, Any]:
    """What the held-out queries of a token say: the first gained most, the third lost, others have too few."""
    gains = {0: 12.5, 1: 0.4, 2: -20.5, 7: -8.25}
    if place not in gains:
        return {"queries": 0, "verdict": "too few to judge", "worst": None}
    verdict = {0: "better", 1: "could be chance", 2: "worse", 7: "too few to judge"}[place]
    worst = {"dataset": "terms", "query": HOSTILE, "rank": {"base": 1.0, "merged": 1402.5}}
    return {"queries": 12, "base": 40.0, "merged": 40.0 + gains[place], "gain": gains[place], "p_value": 0.01} | {
        "verdict": verdict,
        "worst": worst if gains[place] < 0 else None,
    }


def token_checks() -> dict[str, Any]:
    """The sixth token is a sink and the fifth mistaken for another."""
    sinks = {token: [0.97 if place == 5 else 0.41, place != 5] for place, token in enumerate(TOKENS)}
    return {"attention_sinks": sinks, "swapped_tokens": {TOKENS[4]: [6.5, False], TOKENS[0]: [0.1, True]}}


def searches(dataset: str, worse: tuple[str, int]) -> dict[str, Any]:
    """A query that was found worse, one that was found better, and a sample of one whose rank stayed."""
    query, rank = worse
    return {
        "dataset": dataset,
        "queries": 119,
        "documents": 7356,
        "improved": 70,
        "worsened": 9,
        "losses": [search(query, rank, 5000)],
        "gains": [search(f"acute {WORDS[0]}", 12.5, 1)],
        "sample": [search("kidney stone", 2, 2)],
    }


def search(query: str, before: float, after: float) -> dict[str, Any]:
    """A query with its five nearest documents; the right one is among the first five where its rank is."""
    documents = [LONG, HOSTILE, "a stone", "a kidney", "a doctor"]
    ranks = {"base": before, "merged": after}
    return {
        "query": query,
        "answers": ["the right one"],
        "rank": ranks,
        "tokens": {
            "base": [[piece, False] for piece in ("ne", "##ph", HOSTILE)],
            "merged": [["acute", False], [WORDS[0], True]],
        },
        "nearest": {
            model: [
                ["the right one" if place == rank else text, 0.9 - place / 10, "right" if place == rank else ""]
                for place, text in enumerate(documents, start=1)
            ]
            for model, rank in ranks.items()
        },
    }


def neighbours() -> dict[str, Any]:
    """Nearest tokens and the map."""
    draw = random.Random(2)
    near = [["kidney", 0.71], ["stone", 0.64], ["##itis", 0.52], [HOSTILE, 0.5], ["renal", 0.44]]
    return {
        "tokens": [
            {"token": token, "kind": kind_of(token), "id": 30522 + place, "nearest_old": near, "nearest_new": near[:2]}
            | {"before": {"nearest_old": [["##ro", 0.9]], "nearest_new": []}}
            | {"description": {"before": 0.31, "after": 0.31 + place / 50} if place else None}
            | {"held_out": held_out(place)}
            for place, token in enumerate(TOKENS)
        ],
        "map": {
            "explained": [0.124, 0.081],
            "old": [[draw.gauss(0, 1), draw.gauss(0, 1)] for _ in range(500)],
            "new": [[draw.gauss(0.9, 0.6), draw.gauss(0.4, 0.6), token] for token in TOKENS],
        },
    }


def write_outputs(root: Path, left: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the output of each stage, with its manifest."""
    for stage, files in left.items():
        with new_folder(root / "made" / stage) as work:
            for name, content in files.items():
                write_csv(work / name, content) if isinstance(content, list) else write_json(work / name, content)


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows with a header."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_run_record(run: FlowRun, root: Path) -> dict[str, Any]:
    """Write `reports/run.json`, as publishing a run does, and return what is in it."""
    record = run_record(run, root)
    write_json(root / RUN_RECORD, record)
    return record


def write_beside(root: Path) -> None:
    """What lies in reports/ after a run: Data Docs and the speed."""
    (root / "reports" / "data_docs").mkdir(parents=True)
    (root / "reports" / "data_docs" / "index.html").write_text("<p>Data Docs</p>", encoding="utf-8")
    manifest = root / "made" / "merge_adapter" / MANIFEST
    speed: dict[str, Any] = {"base_texts_per_second": 812.4, "merged_texts_per_second": 1010.9, "ratio": 1.244}
    speed["merged_digest"] = read_json(manifest)["digest"] if manifest.is_file() else "none"
    write_json(root / "reports" / "speed.json", speed)


def results(outcomes: Mapping[str, tuple[Outcome, str]] | None = None) -> list[StageResult]:
    """A result for each stage: completed, but for those that are given."""
    given = dict.fromkeys(UPSTREAM, (Outcome.COMPLETED, "")) | dict(outcomes or {})
    return [StageResult(name, outcome, 12.34, reason) for name, (outcome, reason) in given.items()]


def broken(stage: str, said: str) -> list[StageResult]:
    """The results of a run in which a stage failed and those behind it did not run."""
    lost = {stage}
    outcomes = {stage: (Outcome.FAILED, said)}
    for name, upstream in UPSTREAM.items():
        if waits := [other for other in upstream if other in lost]:
            lost.add(name)
            outcomes[name] = (Outcome.NOT_READY, f"{', '.join(waits)} did not succeed")
    return results(outcomes)


def registration(champion: bool) -> dict[str, Any]:
    """The version of a run, promoted or not."""
    gates = [gate | {"verdict": "holds"} if champion else gate for gate in GATES]
    version = {"name": "sample", "version": 3, "champion": champion, "content_digest": "2" * 64, "gates": gates}
    return version | {"changes": changes()}


def changes() -> dict[str, Any]:
    """What changed since version 2."""
    figure = {"dataset": "terms", "subset": "new_word", "metric": "mrr", "before": 63.2, "after": 64.45, "items": 119}
    return {
        "since": 2,
        "params": {"train_adapter.epochs": ["2", "3"], "merge_adapter.license": [None, HOSTILE]},
        "words": {"added": [WORDS[0], HOSTILE], "removed": ["calculus"]},
        "rows": {"terms.train": [800, 862], "terms.test": [119, 119]},
        "figures": [figure | {"gain": 1.25, "low": -0.4, "high": 2.9, "p_value": 0.13, "verdict": "could be chance"}],
        "problems": ["relations, mrr: the held-out items are others, so it is not compared"],
    }


def flow_run(stages: Sequence[StageResult], **changes: Any) -> FlowRun:
    """A run with these results."""
    return FlowRun(STARTED, STAGES, stages, **changes)
