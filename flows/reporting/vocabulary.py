"""The report's section on new tokens: a table, worst first, with verdicts and reasons, and a map."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.reporting.numbers import counted, figure, number, p_value, rank, signed
from flows.reporting.sections import Gathered

# From the worst to the best.
VERDICTS = {
    "attention sink": "bad",
    "mistaken for another": "bad",
    "worse": "worse",
    "not trained": "open",
    "could be chance": "could-be-chance",
    "too few to judge": "too-few-to-judge",
    "better": "better",
}
# Ordered by gain together: a large loss over few queries must not hide below small gains.
UNDECIDED = ("could be chance", "too few to judge")
KINDS = {"word": "word", "symbol": "symbol", "special": "special token"}
# With many more rows, browsers scroll the page badly; the files have all of them.
SHOWN_TOKENS, SHOWN_OLD_ROWS, SHOWN_NEW_ROWS = 500, 2000, 400
NEAREST = 4
SINKS, SWAPS = "attention_sinks", "swapped_tokens"
NOTHING: Mapping[str, Any] = {}


def vocabulary(gathered: Gathered) -> dict[str, Any]:
    """The added tokens, with the results of each."""
    extension, placed = gathered.content("extension"), gathered.content("tokens") or {}
    if extension is None:
        return {"absent": gathered.absences("extension")}
    distilled = (gathered.content("resizing") or {}).get("distillation") or {}
    kinds = [token["kind"] for token in extension["tokens"]]
    view = {
        "absent": gathered.absences("tokens"),
        "total": len(kinds),
        "kinds": [counted(kinds.count(kind), KINDS[kind]) for kind in dict.fromkeys(kinds)],
        "kept": len(extension.get("kept", ())),
        "changed": extension["texts_changed"],
        "texts": extension["texts"],
        "fidelity": [
            {"group": name.replace("_", " "), **figures}
            for name, figures in (distilled.get("after") or {}).items()
            if name != "all"
        ],
        "under_limit": distilled.get("under_limit", []),
        "least_fidelity": distilled.get("least_fidelity", "the limit"),
        "by_texts": distilled.get("by_texts", []),
        **_token_table(gathered),
    }
    points = placed.get("map") or {}
    return view | ({"plot": ("token_map", _map_plot(points))} if points.get("new") else {})


def _token_table(gathered: Gathered) -> dict[str, Any]:
    found = token_rows(gathered)
    rows = found[:SHOWN_TOKENS]
    special = [row for row in rows if row["kind"] == "special"]
    words = [row for row in rows if row["kind"] != "special"]
    groups = [("Words and symbols", words), ("Relations and other special tokens", special)]
    return {"rows": rows, "groups": groups, "verdicts": summary(found)}


def _map_plot(points: Mapping[str, Any]) -> dict[str, Any]:
    old, new = points["old"][:SHOWN_OLD_ROWS], points["new"][:SHOWN_NEW_ROWS]
    return {
        "label": "Map of new and old tokens",
        "description": f"{len(new)} new tokens among {len(old)} old ones, by the first two principal components.",
        "old": [[round(x, 4), round(y, 4)] for x, y in old],
        "new": new,
        # A matrix of rank one has no second component.
        "explained": [*points["explained"], 0.0, 0.0][:2],
    }


def token_rows(gathered: Gathered) -> list[dict[str, Any]]:
    """One row per new token, the worst first."""
    extension, evaluated = gathered.content("extension") or {}, gathered.content("tokens") or {}
    fidelity = ((gathered.content("resizing") or {}).get("distillation") or {}).get("by_token", {})
    known = {entry["token"]: entry for entry in evaluated.get("tokens", ())}
    checked = gathered.content("token_checks") or {}
    untrained = set((gathered.content("training") or {}).get("tokens_without_training_text", ()))
    rows = [
        _row(token, known.get(token["text"], NOTHING), fidelity.get(token["text"], NOTHING), checked, untrained)
        for token in extension.get("tokens", ())
    ]
    return sorted(rows, key=_badness)


def _badness(row: Mapping[str, Any]) -> tuple[int, float, float]:
    """A sort key, the worst first."""
    order = list(VERDICTS).index(UNDECIDED[0]) if row["verdict"] in UNDECIDED else row["order"]
    return order, _worth(row["gain"]), _worth(row["fidelity"])


def _worth(figure: float | None) -> float:
    """A sort key by value, with unmeasured values last."""
    return float("inf") if figure is None else figure


def _row(
    token: Mapping[str, Any],
    known: Mapping[str, Any],
    fidelity: Mapping[str, Any],
    checked: Mapping[str, Any],
    untrained: set[str],
) -> dict[str, Any]:
    name, held_out, description = token["text"], known.get("held_out") or NOTHING, known.get("description") or NOTHING
    ratio, is_word = checked.get(SINKS, {}).get(name, (None, True))
    swapped, is_itself = checked.get(SWAPS, {}).get(name, checked.get("swapped_relations", {}).get(name, (None, True)))
    verdict, reason = held_out.get("verdict", "too few to judge"), _reason(held_out)
    if name in untrained:
        verdict, reason = "not trained", "no training text contains it"
    if not is_itself:
        verdict, reason = (
            "mistaken for another",
            f"nearer to another token's texts by {number(swapped)} standard errors",
        )
    if not is_word:
        verdict, reason = (
            "attention sink",
            f"ratio {figure(ratio)}: it acts as the first token of a text, not as a word",
        )
    return {
        "token": name,
        "kind": token["kind"],
        "pieces": token["read_as"],
        "texts": token["texts"],
        "fidelity": fidelity.get("mean"),
        "description": (description.get("before"), description.get("after")),
        "sink": ratio,
        "queries": held_out.get("queries"),
        "gain": held_out.get("gain"),
        "nearest": (_nearest(known.get("before") or NOTHING), _nearest(known)),
        "verdict": verdict,
        "order": list(VERDICTS).index(verdict),
        "state": VERDICTS[verdict],
        "reason": reason,
    }


def _nearest(entry: Mapping[str, Any]) -> list[Sequence[Any]]:
    """The nearest tokens, old and new."""
    near: list[Sequence[Any]] = [*entry.get("nearest_old", ()), *entry.get("nearest_new", ())]
    return sorted(near, key=lambda found: -found[1])[:NEAREST]


def _reason(held_out: Mapping[str, Any]) -> str:
    if "queries" not in held_out:
        return "not measured"
    if not held_out["queries"]:
        return "no held-out query contains it"
    told = f"MRR {figure(held_out['base'])} to {figure(held_out['merged'])} % ({signed(held_out['gain'])})"
    told += f" over {counted(held_out['queries'], 'held-out query', 'held-out queries')}"
    if held_out["verdict"] != "too few to judge":
        told += f", p {p_value(held_out['p_value'])}"
    if (worst := held_out["worst"]) is not None:
        ranks = worst["rank"]
        told += f"; largest loss: \N{LEFT DOUBLE QUOTATION MARK}{worst['query']}\N{RIGHT DOUBLE QUOTATION MARK}"
        told += f" from rank {rank(ranks['base'])} to {rank(ranks['merged'])}"
    return told


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The number of tokens with each verdict, in words."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
    return ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items() if count)
