"""Tasks of MTEB where the package is absent, and how it is called where it is there."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vocabgraft.data.mteb import load_tasks, require_mteb, score_tasks
from vocabgraft.errors import VocabgraftError


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for refused in (require_mteb, load_tasks):
        with pytest.raises(VocabgraftError, match=r"mteb_tasks lists NFCorpus.*package mteb.*\[mteb\]"):
            refused(["NFCorpus"])


def test_no_task_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    require_mteb([])
    assert load_tasks([]) == []
    model: Any = None
    assert score_tasks([], model, 8) == {}


class Package:
    """Stands for mteb: knows one task, whose data may be absent."""

    def __init__(self, has_data: bool) -> None:
        self.has_data, self.asked = has_data, list[dict[str, Any]]()

    def get_task(self, name: str) -> Any:
        if name != "NFCorpus":
            raise KeyError(f"KeyError: '{name}' not found. Did you mean: 'NFCorpus'?")
        return SimpleNamespace(metadata=SimpleNamespace(name=name), load_data=self.load_data)

    def load_data(self) -> None:
        if not self.has_data:
            raise ConnectionError("Couldn't reach 'mteb/nfcorpus' on the Hub\nmore of it")

    def evaluate(self, model: Any, task: Any, **options: Any) -> Any:
        self.asked.append(options)
        return SimpleNamespace(task_results=[SimpleNamespace(get_score=lambda: 0.312345678)])


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    """The package in place of the real one."""
    stand_in = Package(has_data=True)
    monkeypatch.setitem(sys.modules, "mteb", stand_in)  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return stand_in


def test_a_score_is_in_percent_and_never_from_a_cache(package: Package) -> None:
    model: Any = object()
    assert score_tasks(load_tasks(["NFCorpus"]), model, 8) == {"NFCorpus": {"all": {"main_score": 31.2346}}}
    assert package.asked[0]["cache"] is None
    assert package.asked[0]["encode_kwargs"]["batch_size"] == 8


def test_an_unknown_task_and_absent_data_are_reported(package: Package) -> None:
    with pytest.raises(VocabgraftError, match=r"MTEB has no task 'NFCorps' .*Did you mean: 'NFCorpus'"):
        load_tasks(["NFCorps"])
    package.has_data = False
    with pytest.raises(VocabgraftError, match=r"the data of NFCorpus cannot be loaded \(Couldn't reach .* Hub\)"):
        load_tasks(["NFCorpus"])
