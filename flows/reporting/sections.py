"""Sections of the report: converts results to the template's variables. Reads no files."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.reporting.numbers import capital, figure, metric_name, number, signed
from tasks.support.trainer_log import loss_lines
from vocabgraft.checks.result import count_verdicts, describe_counts
from vocabgraft.model_folder.remote_code import describe_code
from vocabgraft.models.gate import CODE
from vocabgraft.storage.artifacts import file_sha256

SUBSETS = {"new_word": "with a new word", "no_new_word": "without a new word", "all": "all"}
COUNTS = ("queries", "pairs", "triples", "items", "texts", "groups")  # in an order of preference
# With many more rows, browsers scroll the page badly; the files have all of them.
SHOWN_ROWS = 100
JUDGED = ("low", "high", "p_value", "verdict")
LIMIT = re.compile(r"^(at most|at least) ([-+.\de]+)$")


@dataclass(frozen=True)
class Found:
    """The content of a stage's file, or the reason why it is missing."""

    content: Any = None
    absence: str = ""


@dataclass(frozen=True)
class Gathered:
    """The contents of the page.

    Attributes:
        run: content of reports/run.json; None if the flow has not run.
        params: the run's parameters, or without a run the current ones; None if they are not valid.
        parts: files by the names in `flows.reporting.gather.PARTS`, and `speed`.
        registration: the registered version, if any.
        changed: stages whose output has changed since the run.
        docs: why there is no link to the Data Docs; empty if there is one.
    """

    run: Mapping[str, Any] | None
    params: Mapping[str, Any] | None
    parts: Mapping[str, Found]
    registration: Mapping[str, Any] | None
    changed: Sequence[str] = ()
    docs: str = ""

    def content(self, part: str) -> Any:
        """The content of a part; None if it is missing."""
        return self.parts[part].content

    def absences(self, *parts: str) -> list[str]:
        """The reasons why parts are missing, each only once."""
        missing = [self.parts[part].absence for part in parts if self.parts[part].content is None]
        return list(dict.fromkeys(reason for reason in missing if reason))


def gate_settings(gathered: Gathered) -> Mapping[str, Any]:
    """The section `register_model.gates` of the parameters."""
    settings: Mapping[str, Any] = (gathered.params or {}).get("register_model", {}).get("gates", {})
    return settings


def main_row(gathered: Gathered, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The metric that decides on promotion; if it was not measured, the first one with a new word."""
    wanted = gate_settings(gathered).get("benefit")
    return next((row for row in rows if row["key"] == wanted), rows[0] if rows else None)


def benefit(gathered: Gathered) -> dict[str, Any]:
    """Quality on held-out items: every metric of every dataset, with the computed intervals."""
    metrics = gathered.content("metrics")
    if metrics is None:
        return {"absent": gathered.absences("metrics")}
    compared = gathered.content("comparison") or {}
    judged = {(item["dataset"], item["subset"], item["metric"]): item for item in compared.get("items", ())}
    champion = _compared_with(gathered)
    rows = [
        _row(metrics, *key, champion["figures"]) | {name: judged.get(key, {}).get(name) for name in JUDGED}
        for key in _measured(metrics)
    ]
    deciding = (gate_settings(gathered).get("benefit") or "").partition(".")[0]
    rows.sort(key=lambda row: row["dataset"] != deciding)
    drawn = [row for row in rows if row["gain"] is not None and row["drawn"]]
    view = {
        "absent": gathered.absences("comparison"),
        "rows": rows,
        "tables": [("", drawn), ("All other metrics", [row for row in rows if row not in drawn])],
        "control": any(row["control"] is not None for row in rows),
        "champion": champion if any(row["champion"] is not None for row in rows) else None,
        "intervals": bool(judged),
        "smoke_under": compared.get("smoke_under"),
        "lead": _benefit_lead(main_row(gathered, rows)),
        "says": (compared.get("control") or {}).get("says", []),
        "problems": compared.get("problems", []),
    }
    return view | ({"plot": ("gains", _gains_plot(drawn))} if drawn else {})


def _measured(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (dataset, subset, metric)
        for dataset, subsets in metrics["merged"].items()
        if isinstance(subsets, dict) and dataset != "retention"
        for subset in sorted(subsets, key=lambda name: [*SUBSETS, name].index(name))
        for metric in sorted(subsets[subset], key=lambda name: name != "mrr")
        if metric not in COUNTS
    ]


def _compared_with(gathered: Gathered) -> Mapping[str, Any]:
    """The champion with which the model was compared, and its metrics on the same items; empty if outputs changed."""
    found = (gathered.registration or {}).get("compared_with") if not gathered.changed else None
    return found or {"version": None, "how": "", "figures": {}}


def _row(
    metrics: Mapping[str, Any], dataset: str, subset: str, metric: str, champion: Mapping[str, Any]
) -> dict[str, Any]:
    by_model = {**metrics, "champion": champion}
    models = ("base", "resized", "champion", "merged", "control")
    figures = {model: by_model.get(model, {}).get(dataset, {}).get(subset, {}).get(metric) for model in models}
    counts = metrics["merged"][dataset][subset]
    measured_on = {name for name, found in metrics["merged"][dataset].items() if metric in found}
    # Metrics such as recall@10 follow the rank, so they are drawn only if there is no other metric.
    plain = "@" not in metric or not any("@" not in name for name in counts.keys() - COUNTS)
    base, merged = figures["base"], figures["merged"]
    return {
        "key": f"{dataset}.{subset}.{metric}",
        "dataset": dataset,
        "subset": SUBSETS.get(subset, subset),
        "metric": metric_name(metric),
        "count": next((f"{counts[name]:,} {name}" for name in COUNTS if name in counts), ""),
        "gain": None if base is None or merged is None else merged - base,
        # The subsets say more than all items together.
        "drawn": plain and (subset != "all" or measured_on == {"all"}),
        **figures,
    }


def _benefit_lead(row: Mapping[str, Any] | None) -> str:
    if row is None or row["gain"] is None:
        return "No pairs are held out, so no gain over the base was measured. The fidelity is in the next sections."
    lead = f"{row['metric']} of {row['dataset']} {row['subset']} went from {figure(row['base'])} to "
    lead += f"{figure(row['merged'])} percent: {signed(row['gain'])} points"
    if row["low"] is not None:
        lead += f", with 95\N{NO-BREAK SPACE}% confidence between {signed(row['low'])} and {signed(row['high'])}"
    endings = {
        "better": ", more than chance explains.",
        "worse": ", a loss that chance does not explain.",
        "could be chance": ", which could be chance.",
        "smoke figure": ". So few items only show that the pipeline works.",
    }
    return lead + endings.get(row["verdict"], ".")


def _gains_plot(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("base", "resized", "merged", "control", "gain", "low", "high")
    drawn = [
        {"name": f"{row['dataset']}, {row['subset']}", "detail": ", ".join(filter(None, (row["metric"], row["count"])))}
        | {name: row[name] for name in names}
        for row in rows
    ]
    told = [
        f"{row['name']}: {row['detail']}: base {figure(row['base'])}, trained {figure(row['merged'])}" for row in drawn
    ]
    label = "Base, resized and trained model on held-out items, in percent"
    return {"label": label, "description": "; ".join(told), "rows": drawn}


def retention(gathered: Gathered) -> dict[str, Any]:
    """Whether texts without a new word keep their embeddings and similarities."""
    metrics, moved = gathered.content("metrics"), gathered.content("retention") or {}
    if metrics is None:
        return {"absent": gathered.absences("metrics")}
    pairs = {model: metrics[model].get("retention", {}) for model in ("base", "resized", "merged")}
    groups = [
        {"subset": SUBSETS[name], "neighbours_kept": None, "valid_share": None, **group}
        for name, group in moved.get("drift", {}).items()
        if group["mean"] is not None
    ]
    view = {
        "absent": gathered.absences("retention"),
        "rows": _retention_rows(pairs, moved.get("spearman", {})),
        "intervals": bool(moved.get("spearman")),
        "groups": groups,
        "corpus": moved.get("corpus"),
        "neighbours_kept": moved.get("neighbours_kept"),
        "valid_share": moved.get("valid_share"),
        "problems": moved.get("problems", []),
    }
    return view | ({"plot": ("drift", _drift_plot(groups))} if groups else {})


def _retention_rows(figures: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for subset in (subset for subset in SUBSETS if subset in figures["merged"]):
        found = {model: figures[model].get(subset, {}).get("spearman") for model in figures}
        change = None if None in (found["base"], found["merged"]) else found["merged"] - found["base"]
        row = {"key": subset, "subset": SUBSETS[subset], "pairs": figures["merged"][subset].get("pairs"), **found}
        rows.append(row | {"change": change} | {name: judged.get(subset, {}).get(name) for name in JUDGED})
    return rows


def _drift_plot(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [
        {
            "name": f"texts {group['subset']}",
            "detail": f"{group['texts']:,} texts" if "texts" in group else "",
            "mean": group["mean"],
            "p99": group["p99"],
            "worst": [round(1 - text["cosine"], 6) for text in group["worst"]],
        }
        for group in groups
    ]
    told = [f"{row['name']}: mean {number(row['mean'])}, 99th percentile {number(row['p99'])}" for row in rows]
    label = "Drift of vectors: 1 minus the cosine to the base's vector"
    return {"label": label, "description": "; ".join(told), "rows": rows}


def consistency(gathered: Gathered) -> dict[str, Any]:
    """Every check, failed ones first."""
    checks = gathered.content("checks")
    if checks is None:
        return {"absent": gathered.absences("checks")}
    entries = [
        {"group": "checks", "reason": "", "details": [], "warnings": [], "noise": None, **check}
        | {"limit": "" if check["limit"] == "none" else check["limit"]}
        | {"used": share_of_limit(check), "state": check["verdict"].replace(" ", "-")}
        for check in checks["checks"]
    ]
    failed = [entry for entry in entries if entry["verdict"] == "failed"]
    rest = [entry for entry in entries if entry["verdict"] != "failed"]
    groups = [("Failed", failed)] if failed else []
    groups += [
        (capital(group), [entry for entry in rest if entry["group"] == group])
        for group in dict.fromkeys(entry["group"] for entry in rest)
    ]
    counts = count_verdicts(entry["verdict"] for entry in entries)
    return {"absent": [], "groups": groups, "counts": counts, "counted": describe_counts(counts)}


def share_of_limit(check: Mapping[str, Any]) -> float | None:
    """A value as a percentage of its limit, at most 100; None if that has no meaning."""
    stated = LIMIT.match(check["limit"])
    if stated is None or check["figure"] is None or check["verdict"] not in ("passed", "failed"):
        return None
    limit, seen = float(stated.group(2)), float(check["figure"])
    most, least = (limit, seen) if stated.group(1) == "at most" else (seen, limit)
    return min(100.0, 100 * least / most) if most > 0 and least >= 0 else None


def training(gathered: Gathered) -> dict[str, Any]:
    """The loss curves, and what was trained."""
    report = gathered.content("training")
    if report is None:
        return {"absent": gathered.absences("training")}
    lines = loss_lines(report["log"])
    losses, steps = lines["train"]["losses"], lines["train"]["steps"]
    last = {name: line["losses"][-1] for name, line in lines["validation"].items()}
    view = {
        "absent": [],
        "report": report,
        "steps": steps[-1] if steps else 0,
        "epochs": max((entry.get("epoch", 0) for entry in report["log"]), default=0),
        "without_text": report.get("tokens_without_training_text", []),
        "validation": [validated(name) for name in last],
    }
    if not losses:
        lead = {"lead": "Nothing was trained: the rows stay as distilled."} if not report["examples"] else {}
        return view | lead
    # The loss of one step is that of one batch.
    tenth = max(1, len(losses) // 10)
    first, final = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    told = f"Training loss went from {number(first)} in the first tenth of the steps to {number(final)} in the last"
    told += "".join(f"; {validated(name)} ended at {number(loss)}" for name, loss in last.items()) + "."
    return view | {"lead": told, "plot": ("curve", {"label": "Loss over the steps", "description": told, **lines})}


def validated(name: str) -> str:
    """A validation loss for a sentence: `eval_terms_loss` is the validation loss of terms."""
    dataset = name.removeprefix("eval_").removesuffix("loss").strip("_")
    return f"validation loss of {dataset}" if dataset else "mean validation loss"


def data(gathered: Gathered) -> dict[str, Any]:
    """The accepted data, and the rejected rows."""
    report, rows = gathered.content("validation"), gathered.content("rejected")
    splits = ("train", "validation", "test")
    return {
        "absent": gathered.absences("validation"),
        "report": report,
        "datasets": [
            {"name": name, **{split: sizes.get(split, 0) for split in splits}}
            for name, sizes in (report or {}).get("datasets", {}).items()
        ],
        "rejected": (rows or [])[:SHOWN_ROWS],
        "total": None if rows is None else len(rows),
        "docs": gathered.docs,
        "warnings": (report or {}).get("warnings", []),
    }


def _code_of(gathered: Gathered) -> Mapping[str, str] | None:
    """The code files that loading the merged model runs: the base's, if allowed, and the gate's."""
    code: Mapping[str, str] | None = (gathered.content("base") or {}).get("code")
    if (gathered.content("training") or {}).get("method") != "gated":
        return code
    return {**(code or {}), CODE.name: file_sha256(CODE)}


def lineage(gathered: Gathered) -> dict[str, Any]:
    """The inputs, code and versions from which the model was made."""
    run = gathered.run or {}
    inputs = run.get("inputs") or {}
    files, done = inputs.get("files", {}), inputs.get("stages", [])
    return {
        "absent": [] if gathered.run else ["The flow has not run here, so there is no reports/run.json."],
        "base": gathered.content("base"),
        "base_absence": gathered.parts["base"].absence,
        "remote_code": describe_code(_code_of(gathered)),
        "digest": inputs.get("digest"),
        "stages": done,
        "data": {path: digest for path, digest in files.items() if not path.endswith(".py")},
        "code": sum(path.endswith(".py") for path in files),
        "versions": run.get("versions", {}),
        "params": [(key, json.dumps(value, ensure_ascii=False)) for key, value in flat(gathered.params or {})],
        "outputs": {
            name: digest for name, digest in run.get("outputs", {}).items() if name in inputs.get("stages", ())
        },
        "registration": gathered.registration,
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A mapping as pairs of `SECTION.KEY` and value, as `--set` takes them."""
    pairs: list[tuple[str, Any]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        pairs += flat(inner, f"{name}.") if isinstance(inner, dict) and inner else [(name, inner)]
    return pairs


SECTIONS: dict[str, Callable[[Gathered], dict[str, Any]]] = {
    "benefit": benefit,
    "retention": retention,
    "consistency": consistency,
    "training": training,
    "data": data,
    "lineage": lineage,
}
