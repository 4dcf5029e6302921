"""No text of the data runs as script in a page that the project writes, nor calls home from there."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest

from flows.engine.run_record import FlowRun
from flows.reporting.gather import gather, write_report
from flows.reporting.page import TEMPLATES
from tasks.support.expectations import write_data_docs
from tests.flows.reporting.browser import CHROMIUM, Browser, chromium
from tests.flows.reporting.report_samples import STAGES, flow_run, outputs, results, write_outputs, write_run_record
from vocabgraft.data.judgement import JudgedTable
from vocabgraft.data.rules import Matches, Rule

ATTACK = (
    '<img src=x onerror="window.attacked = 1"><script>window.attacked = 2</script>'
    '</td><svg onload="window.attacked = 3"> $x {{ 7654321 * 9 }} ${7654321 * 9} \'"&lt;'
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="(default-src \'none\';[^"]*)">')
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, e.g. Debian's package chromium")


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data Docs of a table whose every refused cell is an attack."""
    table = JudgedTable(
        "terms", pd.DataFrame({"text": [ATTACK, "fine", f"{ATTACK}2"], "file": "a.csv", "row": [1, 2, 3]})
    )
    table.judge([Rule("text", Matches("^[a-z]+$", True), "holds more than letters: {value}", "text")])
    site = tmp_path_factory.mktemp("docs") / "site"
    (result,) = write_data_docs([table], site)["terms"]
    assert result.result["unexpected_list"] == [ATTACK, f"{ATTACK}2"], "what is returned is as it was judged"
    return site


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose failure and rejected rows are attacks."""
    root = tmp_path_factory.mktemp("report")
    left = outputs()
    left["validate_data"]["rejected.csv"] = [dict.fromkeys(("file", "row", "column", "value", "reason"), ATTACK)]
    write_outputs(root, left)
    run: FlowRun = flow_run(results(), failure=ATTACK)
    write_run_record(run, root)
    return write_report(gather(STAGES, root), root)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


def pages(docs: Path) -> list[Path]:
    """Every page of the Data Docs."""
    return sorted(docs.rglob("*.html"))


def test_every_page_forbids_all_scripts_but_its_own(docs: Path, report: Path) -> None:
    found = [*pages(docs), report]
    assert len(found) == 4
    for page in found:
        text = page.read_text(encoding="utf-8")
        policy = POLICY.search(text)
        assert policy is not None, page
        assert text.index("<head>") < policy.start() < text.index("</head>")
        assert "connect-src" not in policy[1], "none but the default, which is none"
        allowed = re.findall(r"script-src ([^;]*)", policy[1])
        own = [(TEMPLATES / "sort.js").read_text(encoding="utf-8")] if page == report else []
        assert allowed == [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in own]
        scripts = re.findall("<script>(.*?)</script>", text, re.DOTALL)
        assert set(scripts) <= set(own) and text.count("<script") == len(scripts)


def test_values_are_shown_escaped(docs: Path) -> None:
    (page,) = (docs / "validations").rglob("*.html")
    text = page.read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=&quot;window.attacked = 1&quot;&gt;" in text
    assert "<img src=x" not in text and "<svg onload" not in text and "68888889" not in text


def test_the_index_leads_to_each_table_without_scripts(docs: Path) -> None:
    index = (docs / "index.html").read_text(encoding="utf-8")
    (target,) = re.findall(r'<a href="([^"]+)">terms</a>', index)
    assert (docs / target).is_file() and "0 of 1" in index


@needs_chromium
def test_a_browser_runs_nothing_of_the_data(browser: Browser, docs: Path, report: Path) -> None:
    for page in (*pages(docs), report):
        browser.open(page, 1280, "light")
        assert browser.evaluate("window.attacked") is None, page
        assert not [address for address in browser.requests if address.endswith(("/x", ".js"))]
    (page,) = (docs / "validations").rglob("*.html")
    browser.open(page, 1280, "light")
    shown = "[...document.querySelectorAll('.show-scrollbars')].map(cell => cell.textContent)"
    assert ATTACK in browser.evaluate(shown)


@needs_chromium
def test_the_policy_holds_by_itself_where_a_value_is_not_escaped(browser: Browser, docs: Path, tmp_path: Path) -> None:
    for number, page in enumerate(pages(docs)):
        planted = tmp_path / f"{number}.html"
        text = page.read_text(encoding="utf-8").replace("</body>", f"{ATTACK}</body>")
        planted.write_text(text, encoding="utf-8")
        browser.open(planted, 1280, "light")
        assert browser.evaluate("window.attacked") is None
        planted.write_text(POLICY.sub("", text), encoding="utf-8")
        browser.open(planted, 1280, "light")
        assert browser.evaluate("window.attacked") is not None, "without the policy the attack runs"
