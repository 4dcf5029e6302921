"""What changed between two versions: by hand, and read back from a registry."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.register_model import RECORD
from tasks.registry.changes import CHANGES_TAG, Snapshot, changes, recorded, summary
from tasks.registry.lookup import Registered, connect
from tests.registered_models import QUESTIONS, build
from vocabgraft.storage.artifacts import read_json

CHAMPION = Registered("clinic", 2, ("champion",), {})


def items(values: Sequence[float], named: str = "q", metric: str = "mrr") -> dict[str, list[Any]]:
    """Items with a value of the merged model each; the first half has a new word."""
    rows = len(values)
    return {
        "dataset": ["terms"] * rows,
        "metric": [metric] * rows,
        "item": [f"{named}{place}" for place in range(rows)],
        "answer": ["a"] * rows,
        "group": [str(place) for place in range(rows)],
        "score": [None] * rows,
        "new_word": [place < rows / 2 for place in range(rows)],
        "merged": list(values),
    }


def snapshot(**changed: Any) -> Snapshot:
    """A version with two words, one split and twenty items."""
    fields: dict[str, Any] = {
        "base": "package:base/model",
        "params": {"train_adapter.epochs": "2", "seed": "17"},
        "words": ["kidney", "liver"],
        "rows": {"terms.train": (100, "aa"), "terms.test": (20, "bb")},
        "items": items([0.5] * 20),
    }
    return Snapshot(**(fields | changed))


def test_two_equal_versions_differ_in_nothing() -> None:
    found = changes(snapshot(), snapshot(), CHAMPION, 17)
    assert (found["params"], found["words"], found["rows"]) == ({}, {"added": [], "removed": []}, {})
    assert {(entry["subset"], entry["gain"], entry["verdict"]) for entry in found["figures"]} == {
        (subset, 0.0, "could be chance") for subset in ("all", "new_word", "no_new_word")
    }


def test_parameters_words_and_rows_that_differ_are_named_with_both_values() -> None:
    after = snapshot(
        params={"train_adapter.epochs": "3", "seed": "17", "train_adapter.scale": "20.0"},
        words=["liver", "spleen"],
        rows={"terms.train": (120, "cc"), "terms.test": (20, "dd"), "codes.train": (5, "ee")},
    )
    found = changes(snapshot(), after, CHAMPION, 17)
    assert found["since"] == 2
    assert found["params"] == {"train_adapter.epochs": ["2", "3"], "train_adapter.scale": [None, "20.0"]}
    assert found["words"] == {"added": ["spleen"], "removed": ["kidney"]}
    assert found["rows"] == {"codes.train": [0, 5], "terms.test": [20, 20], "terms.train": [100, 120]}
    assert summary(found).startswith("since version 2: 2 parameters; 1 word added; 1 word removed; codes.train: 0")


def test_a_model_grown_on_the_champion_removed_none_of_its_words() -> None:
    found = changes(snapshot(), snapshot(base="models:/clinic/2", words=["spleen"]), CHAMPION, 17)
    assert found["words"] == {"added": ["spleen"], "removed": []}


def test_metrics_have_a_paired_interval_on_the_same_items() -> None:
    # Every item gains the same, though items differ much among themselves: only a pairing shows it.
    before = [place / 20 for place in range(20)]
    after = [value + 0.02 for value in before]
    found = changes(snapshot(items=items(before)), snapshot(items=items(after)), CHAMPION, 17)
    (entry,) = [entry for entry in found["figures"] if entry["subset"] == "all"]
    assert entry["gain"] == pytest.approx(2.0) and entry["low"] == pytest.approx(2.0)
    assert (entry["verdict"], entry["items"]) == ("better", 20)
    worse = changes(snapshot(items=items(after)), snapshot(items=items(before)), CHAMPION, 17)
    assert worse["figures"][0]["verdict"] == "worse"


def test_fewer_tokens_are_a_gain() -> None:
    before, after = (items([tokens] * 20, metric="tokens") for tokens in (9.0, 6.0))
    found = changes(snapshot(items=before), snapshot(items=after), CHAMPION, 17)["figures"][0]
    assert (found["before"], found["after"], found["gain"], found["verdict"]) == (9.0, 6.0, 3.0, "better")


def test_other_held_out_items_are_not_compared_and_that_is_reported() -> None:
    found = changes(snapshot(), snapshot(items=items([0.9] * 20, named="other")), CHAMPION, 17)
    assert found["figures"] == []
    (problem,) = found["problems"]
    assert problem.startswith("terms, mrr: ") and "not compared" in problem
    assert "not recorded" in changes(snapshot(items=None), snapshot(), CHAMPION, 17)["problems"][0]


def test_a_version_says_in_tag_card_and_record_what_changed_since_the_champion(
    in_folder: Path,
    tiny_base: Path,
    tiny_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_store: Callable[[Path], str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(in_folder / "mlflow.db"))
    first = build(in_folder, tiny_base, "clinic", "first", gain=5.0)
    first.register()
    assert read_json(RECORD)["changes"] is None
    assert CHANGES_TAG not in connect().get_model_version("clinic", "1").tags
    second = build(in_folder, tiny_base, "clinic", "second", gain=6.0)
    tokens = second.root / "extension" / "tokens.json"
    changed = json.loads(tokens.read_text(encoding="utf-8"))
    changed[0]["text"] = "spleen"
    tokens.write_text(json.dumps(changed), encoding="utf-8")
    second.register()
    found = read_json(RECORD)["changes"]
    assert (found["since"], found["words"]) == (1, {"added": ["spleen"], "removed": ["kidney"]})
    (mrr,) = [entry for entry in found["figures"] if entry["metric"] == "mrr"]
    assert (mrr["before"], mrr["after"], mrr["gain"], mrr["items"]) == (55.0, 56.0, pytest.approx(1.0), QUESTIONS)
    version = connect().get_model_version("clinic", "2")
    assert version.tags[CHANGES_TAG].startswith("since version 1:") and "terms mrr +1.00" in version.tags[CHANGES_TAG]
    assert "## What changed since version 1" in version.description and "`spleen`" in version.description
    # What was written from files is what is read from the registry.
    client = connect()
    before, after = (
        recorded(client, Registered("clinic", number, (), {}, client.get_model_version("clinic", str(number)).run_id))
        for number in (1, 2)
    )
    assert changes(before, after, Registered("clinic", 1, (), {}), 17) == found
    # The champion itself is compared with the one before.
    second.register()
    assert read_json(RECORD)["changes"] == found
