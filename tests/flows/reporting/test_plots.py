"""The report's plots as parts of a page."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flows.reporting import plots as report_plots
from flows.reporting.plots import COLOURS, PLOTS, PlotFolder, draw, standalone_plots
from tests.conftest import ROOT
from tests.flows.reporting.report_samples import HOSTILE

CURVE = {
    "label": f"Loss {HOSTILE}",
    "description": f"from 2 to 1 {HOSTILE}",
    "train": {"steps": [1, 2, 3], "losses": [2.0, 1.5, 1.0]},
    "validation": {"eval_terms_loss": {"steps": [3], "losses": [1.2]}},
    "phases": [[1, 0], [2, 2]],
}
GAIN = {"name": "terms $x_1$ & more", "detail": "MRR, 3 queries", "base": 50.0, "resized": None, "merged": 40.0}
MAP = {
    "label": "map",
    "description": "new among old",
    "old": [[0.0, 0.0], [1.0, 1.0]],
    "new": [[0.5, 0.2, HOSTILE], [0.1, 0.9, "a\u0007b"], [0.2, 0.1, "检查"]],
    "explained": [0.5, 0.25],
}


def of_rows(**changes: Any) -> dict[str, Any]:
    """A plot of one gain."""
    row = {**GAIN, "control": None, "gain": -10.0, "low": None, "high": None, **changes}
    return {"label": "gains", "description": "one row", "rows": [row]}


def texts(drawn: str) -> list[str]:
    """What is written in both widths of a plot."""
    root = ElementTree.fromstring(f"<div>{drawn}</div>")
    return ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text")]


@pytest.mark.parametrize(("name", "data"), [("curve", CURVE), ("gains", of_rows()), ("token_map", MAP)])
def test_a_plot_is_drawn_twice_with_words_for_those_who_do_not_see_it(name: str, data: Mapping[str, Any]) -> None:
    root = ElementTree.fromstring(f"<div>{draw(name, data)}</div>")
    plots = [node for node in root.iter() if node.tag.endswith("}svg")]
    assert [plot.get("role") for plot in plots] == ["img", "img"]
    for plot in plots:
        assert plot.get("aria-label") == data["label"]
        described = next(node for node in plot.iter() if node.get("id") == plot.get("aria-describedby"))
        assert described.text == data["description"]
        assert plot.get("width") is None and plot.get("viewBox") is not None, "the page gives it its width"


@pytest.mark.parametrize(
    ("name", "data"), [("curve", CURVE), ("gains", of_rows(low=-12.0, high=-8.0)), ("token_map", MAP)]
)
def test_every_colour_is_the_pages_own(name: str, data: Mapping[str, Any]) -> None:
    drawn = draw(name, data)
    assert not re.search(r"#[0-9a-f]{6}\b", drawn), "a fixed colour is wrong in the light or in the dark"
    style = (ROOT / "flows" / "reporting" / "templates" / "report.css").read_text(encoding="utf-8")
    for used in set(re.findall(r"var\((--[a-z]+)\)", drawn)):
        assert style.count(f"  {used}:") >= 1 and (used == "--sans" or style.count(f"  {used}:") == 2), used
    assert set(re.findall(r"var\(--([a-z]+)\)", drawn)) <= {*COLOURS, "sans"}


def test_texts_stay_texts_in_the_pages_typeface() -> None:
    drawn = draw("gains", of_rows())
    assert "terms $x_1$ & more" in texts(drawn), "no formula is made of a name"
    assert "\u221210.0" in texts(drawn), "the gain, with a minus sign"
    assert set(re.findall("font-family: ([^;]*);", drawn)) == {"var(--sans)"}


def test_a_dot_of_the_map_tells_its_token() -> None:
    drawn = draw("token_map", MAP)
    root = ElementTree.fromstring(f"<div>{drawn}</div>")
    titles = [node.text for node in root.iter() if node.tag.endswith("}title")]
    assert titles == [HOSTILE, "ab", "检查"] * 2
    assert "<script" not in drawn


def test_widths_have_ids_of_their_own() -> None:
    drawn = draw("curve", CURVE)
    ids = re.findall(r'\bid="([^"]+)"', drawn)
    assert len(ids) == len(set(ids)) > 4
    assert set(re.findall(r"url\(#([^)]+)\)", drawn)) | set(re.findall(r'href="#([^"]+)"', drawn)) <= set(ids)


def test_a_plot_is_drawn_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(report_plots, "draw", lambda name, data: f"<svg>{drawn.append(data['x'])}</svg>")
    for number in (1.0, 1.0, 2.0):
        folder = PlotFolder(tmp_path / "plots")
        folder("curve", {"x": number})
        folder.forget_others()
    assert drawn == [1.0, 2.0]
    assert len(list((tmp_path / "plots").iterdir())) == 1, "what the page does not show any more is gone"


def test_every_plot_has_a_name() -> None:
    assert sorted(PLOTS) == ["curve", "drift", "gains", "token_map"]
    with pytest.raises(KeyError):
        draw("nonsense", CURVE)


def test_plots_leave_the_page_as_documents_of_their_own(tmp_path: Path) -> None:
    folder = PlotFolder(tmp_path)
    folder("gains", of_rows(low=-12.0, high=-8.0))
    folder("token_map", MAP)
    found = standalone_plots(tmp_path)
    assert list(found) == ["gains", "token_map"]
    for svg in found.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg and "#1a1f26" in svg, "the page's light colors"
