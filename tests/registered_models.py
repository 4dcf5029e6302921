"""Made-up results of the stages before register_model, around a tiny real model."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.register_model import model_digest, register_model
from tasks.registry.gates import Measured
from tasks.registry.lookup import connect, find_by_alias
from vocabgraft.config.stages import BaseParams, GateParams, RegisterModelParams
from vocabgraft.evaluation.significance import compare_means
from vocabgraft.storage.artifacts import new_folder, write_json

GATES = GateParams(benefit="terms.new_word.mrr", min_gain=0.0, max_retention_drop=0.01)
# Words of the tiny base that stand for new ones.
NEW_WORDS = ("kidney", "liver")
QUESTIONS = 24
SEED = 17


@dataclass(frozen=True)
class Made:
    """What the stages before leave: one model's artifacts, with figures as a test wants them."""

    root: Path
    name: str

    def paths(self) -> dict[str, Path]:
        """The arguments of the stage."""
        return {
            "merged": self.root / "merged",
            "adapter": self.root / "adapter",
            "checks": self.root / "checks" / "checks.json",
            "evaluation": self.root / "evaluation",
            "base_identity": self.root / "data" / "base.json",
            "datasets": self.root / "data" / "datasets",
            "tokens": self.root / "extension" / "tokens.json",
            "out": self.root / "out",
        }

    def register(self, gates: GateParams = GATES, trust_remote_code: bool = False) -> None:
        """Run the stage."""
        register_model(
            **self.paths(),
            params=RegisterModelParams(name=self.name, gates=gates),
            base=BaseParams(model="a base", trust_remote_code=trust_remote_code),
        )

    def digest_at(self, alias: str) -> str | None:
        """The content digest of the version of this name that an alias names."""
        found = find_by_alias(connect(), self.name, alias)
        return found.tags["content_digest"] if found else None

    def versions(self) -> list[int]:
        """Every version of this name in the registry."""
        return sorted(int(found.version) for found in connect().search_model_versions() if found.name == self.name)

    @property
    def digest(self) -> str:
        """The content digest of the model."""
        return model_digest(self.root / "merged")


def figures(gain: float, drop: float) -> dict[str, Any]:
    """Figures of a base, and of a model that differs by `gain` points in benefit and `drop` in Spearman's rho."""
    return {
        name: {
            "terms": {"new_word": {"mrr": 50.0 + gain * share, "recall@10": 80.0, "queries": 9}},
            "retention": {"no_new_word": {"spearman": 100 * (0.8 - drop * share), "pairs": 20}},
            "tokens_per_text": 9.5,
        }
        for name, share in (("base", 0), ("resized", 0), ("merged", 1))
    }


def build(
    root: Path,
    base_folder: Path,
    name: str,
    mark: str,
    *,
    gain: float = 5.0,
    drop: float = 0.0,
    passed: bool = True,
    items: str = "the test items",
    base: str = "package:base/model",
    noise: Sequence[float] = (0.0,),
    blurred: bool = False,
) -> Made:
    """What the stages leave of one model.

    Args:
        root: of all models of a test.
        base_folder: the tiny base, which the model is a copy of.
        name: to be registered.
        mark: in the content, which makes it another model's.
        gain: over the base in percent, on every question.
        drop: of Spearman's rho on the retention pairs.
        passed: whether the checks did.
        items: in the words of every question, so that two models have the same or others.
        base: as base.json names it.
        noise: added to the gain of the questions in turn.
        blurred: whether it cannot tell words apart, so that it answers badly.
    """
    folder = root / mark
    with new_folder(folder / "merged") as work:
        shutil.copytree(base_folder, work, dirs_exist_ok=True)
        (work / "mark.txt").write_text(mark, encoding="utf-8")
        if blurred:
            blur_rows(work)
    with new_folder(folder / "adapter") as work:
        write_json(work / "curve.json", [{"step": 1, "loss": 2.0, "epoch": 0.5}])
    with new_folder(folder / "checks") as work:
        write_json(work / "checks.json", {"passed": passed, "checks": []})
    with new_folder(folder / "evaluation") as work:
        write_evaluation(work, gain, drop, items, noise)
    with new_folder(folder / "extension") as work:
        write_json(work / "tokens.json", tokens_of(base_folder))
        (work / "tokenizer").mkdir()
        shutil.copy(base_folder / "tokenizer.json", work / "tokenizer")
    with new_folder(folder / "data") as work:
        write_json(work / "base.json", {"model": base, "revision": None, "sha256": "0" * 64, "tokenizer_sha256": ""})
        # What only describes the data differs from model to model and stands in no comparison's way.
        write_json(work / "report.json", {"model": mark})
        write_datasets(work / "datasets", items)
    return Made(folder, name)


def write_evaluation(work: Path, gain: float, drop: float, items: str, noise: Sequence[float]) -> None:
    """The files of evaluate_model."""
    asked = questions(items)
    rows = len(asked)
    values = [(50.0 + gain + noise[place % len(noise)]) / 100 for place in range(rows)]
    measured = figures(sum(100 * value - 50 for value in values) / rows, drop)
    write_json(work / "metrics.json", measured)
    compared = {"items": gains([0.5] * rows, values), "without_labels": without_labels(gain), "problems": []}
    write_json(work / "comparison.json", compared)
    write_json(work / "retention.json", retention(drop))
    columns: dict[str, list[Any]] = {
        "dataset": ["terms"] * rows,
        "metric": ["mrr"] * rows,
        "item": [anchor for anchor, _ in asked],
        "answer": [answer for _, answer in asked],
        "group": [str(place) for place in range(rows)],
        "new_word": [True] * rows,
        "score": [None] * rows,
        "base": [0.5] * rows,
        "merged": values,
    }
    for name, found in items_without_labels([anchor for anchor, _ in asked], gain).items():
        columns[name] = [*columns[name], *found]
    pq.write_table(pa.table(columns), work / "items.parquet")


def items_without_labels(texts: Sequence[str], gain: float) -> dict[str, list[Any]]:
    """Fidelity, tokens and retention pairs of every text; the first two are the better the more the model gains."""
    rows = len(texts)
    values = {
        ("fidelity", "cosine"): [0.9 + gain / 200] * rows,
        ("tokens_per_text", "tokens"): [20.0 - gain] * rows,
        ("retention", "spearman"): [place / rows for place in range(rows)],
    }
    scores = [(place * 7 % rows) / rows for place in range(rows)]
    return {
        "dataset": [dataset for dataset, _ in values for _ in texts],
        "metric": [metric for _, metric in values for _ in texts],
        "item": [*texts] * 3,
        "answer": [None] * (2 * rows) + [f"like {text}" for text in texts],
        "group": [*texts] * 3,
        "new_word": [True] * (3 * rows),
        "score": [None] * (2 * rows) + scores,
        "base": [1.0] * rows + [20.0] * rows + [0.5] * rows,
        "merged": [value for found in values.values() for value in found],
    }


def without_labels(gain: float) -> dict[str, Any]:
    """What was measured of texts that nobody labelled, without any spread."""
    shown = {"p_value": 0.0005, "standard_error": 0.0, "queries": QUESTIONS, "groups": QUESTIONS}
    fidelity = 0.9 + gain / 200
    return {
        "fidelity": {"gain": fidelity, "low": fidelity, "high": fidelity, **shown},
        "tokens_per_text": {"gain": gain, "low": gain, "high": gain, **shown},
    }


def gains(before: Sequence[float], after: Sequence[float]) -> list[dict[str, Any]]:
    """The comparison of `terms`, from the values of its questions, 0 to 1; recall@10 is made up."""
    item = {"dataset": "terms", "subset": "new_word", "verdict": "better", "queries": len(after), "groups": len(after)}
    names = [str(place) for place in range(len(after))]
    found = asdict(compare_means(100 * np.array(before), 100 * np.array(after), names, SEED))
    recall = {"gain": 5.0, "low": 1.0, "high": 9.0, "p_value": 0.01, "standard_error": 2.0}
    return [item | {"metric": "mrr"} | found, item | {"metric": "recall@10"} | recall]


def retention(drop: float, width: float = 0.0, pairs: int = 20) -> dict[str, Any]:
    """retention.json of a model whose rho fell by `drop`, give or take `width`."""
    drifted = {"no_new_word": {"mean": 0.25, "p99": None, "worst": [{"text": "a", "cosine": 0.5}]}}
    interval = {"gain": -100 * drop, "low": -100 * (drop + width), "high": -100 * (drop - width), "p_value": 0.5}
    entry = {**interval, "standard_error": 50 * width, "queries": pairs, "groups": pairs, "verdict": "could be chance"}
    spearman = {"no_new_word": entry, "all": entry}
    return {"valid_share": 60.0, "neighbours_kept": None, "drift": drifted, "spearman": spearman, "problems": []}


def evaluated(gain: float, drop: float = 0.0, **changes: Mapping[str, Any]) -> Measured:
    """What was measured of a model that gains `gain` points on every question; whole files may be changed."""
    files: dict[str, Mapping[str, Any]] = {
        "metrics": figures(gain, drop),
        "comparison": {"items": gains([0.5] * QUESTIONS, [(50 + gain) / 100] * QUESTIONS), "problems": []},
        "retention": retention(drop),
    }
    return Measured(**(files | changes))


def questions(items: str) -> list[tuple[str, str]]:
    """Questions with a new word and their answers."""
    others = "dog cat animal house wood stone blood heart pain water doctor patient".split()
    return [(f"{NEW_WORDS[i % 2]} {items} {i}", f"{others[i % 12]} {NEW_WORDS[i % 2]} {i}") for i in range(QUESTIONS)]


def write_datasets(folder: Path, items: str) -> None:
    """The accepted dataset `terms`."""
    (folder / "terms").mkdir(parents=True)
    write_json(folder / "index.json", [{"name": "terms", "format": "pairs"}])
    asked = questions(items)
    for split, rows in (("train", asked[:4]), ("validation", []), ("test", asked)):
        columns = {
            "anchor": [anchor for anchor, _ in rows],
            "positive": [answer for _, answer in rows],
            "group": [f"{split} {place}" for place in range(len(rows))],
        }
        schema = pa.schema([(name, pa.string()) for name in columns])
        pq.write_table(pa.table(columns, schema=schema), folder / "terms" / f"{split}.parquet")


def tokens_of(base_folder: Path) -> list[dict[str, Any]]:
    """Words of the tiny base as if they were added."""
    vocabulary = json.loads((base_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return [
        {"text": word, "kind": "word", "description": "", "id": vocabulary[word]}
        | {"pieces": [5], "description_pieces": []}
        for word in NEW_WORDS
    ]


def blur_rows(folder: Path) -> None:
    """Give every token the same row, so that the model cannot tell texts of one length apart."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] = weights[name] * 0 + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
