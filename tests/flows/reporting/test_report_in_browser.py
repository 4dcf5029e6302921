"""The report as a reader sees it: headless Chromium opens the file, offline, on a desk and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.reporting.gather import gather, write_report
from tests.conftest import ROOT
from tests.flows.reporting.browser import CHROMIUM, Browser, chromium
from tests.flows.reporting.report_samples import (
    STAGES,
    broken,
    check,
    flow_run,
    outputs,
    registration,
    results,
    write_beside,
    write_outputs,
    write_run_record,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, e.g. Debian's package chromium")

DESK, PHONE = 1280, 390
SECTIONS = [
    "verdict",
    "benefit",
    "searches",
    "changes",
    "retention",
    "consistency",
    "vocabulary",
    "training",
    "data",
    "lineage",
]
PAGES = ["promoted", "registered", "failed", "nothing"]
OPEN_ALL = "document.querySelectorAll('details').forEach(entry => entry.open = true)"
SHOWN = """
[...document.querySelectorAll('header, section')].filter(part => part.getClientRects().length).map(part => part.id)
"""
HEADINGS = "[...document.querySelectorAll('h1, section > h2')].map(node => node.textContent)"
# The colours of the page and of a plot's texts.
COLOURS = """
[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.plot text')).fill]
"""
# Texts whose colour is too near to that of what lies under them, by WCAG 2.2: 4.5 is asked of small texts.
PALE = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => colour.slice(0, 3).map(part => part / 255)
    .map(part => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgb('white');
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    if (!node.getClientRects().length) continue;
    const style = getComputedStyle(node), colour = node.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(rgb(colour)), light(ground(node))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${node.tagName} ${node.textContent.trim().slice(0, 30)}`);
  }
  return found;
})()
"""
# Elements that reach beyond the window, or whose content reaches beyond themselves.
WIDE = """
[...document.querySelectorAll('body *')].filter(node => !node.closest('svg') && node.getClientRects().length)
  .filter(node => node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(node => `${node.tagName} ${node.className} ${node.textContent.trim().slice(0, 40)}`)
"""
# Texts of the visible plots that are cut off at the plot's edge or smaller than a reader reads.
POOR_LABELS = """
[...document.querySelectorAll('.plot svg')].filter(plot => plot.getClientRects().length).flatMap(plot => {
  const edge = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('text')].map(text => [text, text.getBoundingClientRect()])
    .filter(([text, box]) => box.left < edge.left - 2 || box.right > edge.right + 2
      || parseFloat(getComputedStyle(text).fontSize) * edge.width / plot.viewBox.baseVal.width < 10)
    .map(([text, box]) => `${text.textContent}: ${box.left - edge.left} to ${box.right - edge.right}`);
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of each kind of run."""
    found = {}
    for name in PAGES:
        root = tmp_path_factory.mktemp(name)
        if name != "nothing":
            write_sample(root, name)
        found[name] = write_report(gather(STAGES, root), root)
    return found


def write_sample(root: Path, name: str) -> None:
    """What a run of this kind leaves."""
    left = outputs()
    run = flow_run(results(), registration=registration(champion=name == "promoted"), prefect_run="1234")
    if name == "failed":
        run = flow_run(broken("check_consistency", "check_consistency: 1 of 7 checks failed\n  segmentation: 3"))
        entry = check("segmentation", "segmentation", 3.0, "at most 0", "failed")
        left["check_consistency"]["checks.json"]["checks"].append(entry)
        del left["register_model"]
    shutil.copy(ROOT / "params.yaml", root)
    write_outputs(root, left)
    write_beside(root)
    write_run_record(run, root)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", PAGES)
def test_the_page_opens_offline_without_a_complaint(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.open(pages[name], width, scheme)
    browser.evaluate(OPEN_ALL)
    assert browser.troubles == []
    assert browser.requests == [pages[name].resolve().as_uri()]
    assert browser.evaluate(SHOWN) == SECTIONS
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert browser.evaluate(WIDE) == []
    assert browser.evaluate(PALE) == []
    assert browser.evaluate(POOR_LABELS) == []


@pytest.mark.parametrize(("width", "shown"), [(DESK, "wide"), (PHONE, "narrow")])
def test_each_plot_is_shown_once_and_fits(browser: Browser, pages: dict[str, Path], width: int, shown: str) -> None:
    browser.open(pages["promoted"], width, "light")
    plots = """
    [...document.querySelectorAll('.plot')].map(plot => [plot.className, plot.getClientRects().length > 0,
      plot.querySelector('svg').getBoundingClientRect().height > 80])
    """
    visible = [(name, tall) for name, there, tall in browser.evaluate(plots) if there]
    assert visible == [(f"plot {shown}", True)] * 4


def test_a_press_on_a_heading_sorts_the_tokens_and_a_second_one_turns_them_round(
    browser: Browser, pages: dict[str, Path]
) -> None:
    for width in (DESK, PHONE):
        browser.open(pages["promoted"], width, "light")
        names = "[...document.querySelector('.sortable').tBodies[0].rows].map(row => row.cells[0].dataset.key)"
        gains = "[...document.querySelector('.sortable').tBodies[0].rows].map(row => row.cells[5].dataset.key)"
        worst_first = browser.evaluate(names)
        press(browser, "Token")
        plain = [name for name in browser.evaluate(names) if name.isalpha() and name.isascii()]
        assert plain == sorted(plain) != [name for name in worst_first if name in plain]
        press(browser, "Gain")
        measured = [gain for gain in browser.evaluate(gains) if gain]
        assert measured == sorted(measured, key=float) and len(measured) == 4
        press(browser, "Gain")
        assert browser.evaluate(gains)[:4] == measured[::-1], "what was not measured stays last"
        assert browser.evaluate("document.querySelectorAll('[aria-sort=descending]').length") == 1
        press(browser, "Verdict")
        assert browser.evaluate(names)[:2] == worst_first[:2]
        assert browser.troubles == []


def press(browser: Browser, heading: str) -> None:
    """Press a heading of the first table of tokens by the keyboard."""
    found = f"[...document.querySelectorAll('.sortable button')].find(button => button.textContent === '{heading}')"
    browser.evaluate(f"{found}.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )


def test_dark_readers_get_a_dark_page(browser: Browser, pages: dict[str, Path]) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        browser.open(pages["promoted"], DESK, scheme)
        seen[scheme] = browser.evaluate(COLOURS)
    (light_page, light_text), (dark_page, dark_text) = seen["light"], seen["dark"]
    assert brightness(light_page) > 200 and brightness(dark_page) < 60
    assert brightness(light_text) < 120 and brightness(dark_text) > 140, "plots take the page's colours"


def brightness(colour: str) -> float:
    """The mean of the parts of `rgb(r, g, b)`."""
    parts = [float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(parts) / 3


def test_a_heading_leads_every_section_and_the_verdict_comes_first(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["failed"], PHONE, "light")
    first, *others = browser.evaluate(HEADINGS)
    assert first == "Failed: check_consistency"
    assert others == [
        "Benefit", "Search, before and after", "Since the champion", "Retention", "Consistency", "Vocabulary",
        "Training", "Data validation", "Lineage",
    ]  # fmt: skip
    first_screen = browser.evaluate("document.querySelector('h1').getBoundingClientRect().bottom < 300")
    assert first_screen is True


def test_the_checks_of_this_test_see_a_fault(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><p style='color:#999'>pale</p>"
        "<div style='width:900px'>wide</div><div class=plot><svg viewBox='0 0 1000 50' width=300>"
        "<text x=10 y=20 style='font-size:11px'>small</text></svg></div>"
        "<script>console.error('told'); nonsense()</script><img src='http://127.0.0.1:9/none.png'>",
        encoding="utf-8",
    )
    browser.open(page, PHONE, "light")
    assert len(browser.troubles) >= 2
    assert "http://127.0.0.1:9/none.png" in browser.requests
    assert browser.evaluate("document.scrollingElement.scrollWidth") > PHONE
    assert [entry.split()[0] for entry in browser.evaluate(WIDE)] == ["DIV"]
    assert "pale" in browser.evaluate(PALE)[0]
    assert browser.evaluate(POOR_LABELS)[0].startswith("small")
