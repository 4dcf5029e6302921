"""The try page as a person sees it: in Chromium, on a desk and on a phone, by the keyboard alone, light and dark."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from flows.service.servers import answers
from flows.try_page.app import create_app
from tests.flows.reporting.browser import CHROMIUM, Browser, chromium
from tests.flows.reporting.test_report_in_browser import PALE, WIDE
from tests.flows.service.test_ui import free_port
from tests.flows.try_page.try_samples import HOSTILE, NEW_WORD, comparison

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, e.g. Debian's package chromium")

DESK, PHONE = 1280, 400
QUERIES = {"search": f"?q=the+{NEW_WORD}", "pair": "?a=a+dog&b=a+cat", "word": "?w=dog", "nothing": ""}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served."""
    found = comparison(tiny_base, tmp_path_factory.mktemp("cache"))
    found.prepare()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(found, []), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not answers(f"http://127.0.0.1:{port}/health"):
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", QUERIES)
def test_the_page_fits_and_asks_no_other_host(
    browser: Browser, address: str, name: str, width: int, scheme: str
) -> None:
    browser.open(address + QUERIES[name], width, scheme)
    assert browser.troubles == []
    assert browser.requests == [address + QUERIES[name]]
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert browser.evaluate(WIDE) == []
    assert browser.evaluate(PALE) == []
    assert browser.evaluate("document.querySelectorAll('.model').length") == (0 if name == "nothing" else 2)


def test_a_query_is_typed_and_sent_by_the_keyboard_alone(browser: Browser, address: str) -> None:
    # A window without focus shows none.
    browser.send("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.open(address, DESK, "light")
    # Typing begins at the query.
    wait_for(browser, "document.activeElement.name === 'q'")
    browser.send("Input.insertText", text=f"the {NEW_WORD}")
    press(browser, "Enter", "\r", 13)
    wait_for(browser, "document.querySelectorAll('.model').length === 2")
    assert browser.evaluate("document.querySelector('[name=q]').value") == f"the {NEW_WORD}"
    assert browser.evaluate("[...document.querySelectorAll('code.new')].map(node => node.textContent)") == [NEW_WORD]
    wait_for(browser, "document.activeElement.name === 'q'")
    names = []
    for _ in range(7):
        names.append(browser.evaluate("document.activeElement.name || document.activeElement.textContent"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert browser.evaluate(outline) != "none", f"a person sees where they are: {names}"
        press(browser, "Tab", "", 9)
    assert names == ["q", "Search", "a", "b", "Compare", "w", "Find"]


def test_hostile_text_does_nothing(browser: Browser, address: str) -> None:
    for field in ("q", "w"):
        browser.open(f"{address}?{field}=%3Cscript%3Edocument.title%3D1%3C%2Fscript%3E", DESK, "light")
        assert browser.evaluate("document.title") == "Try it · vocabgraft"
        assert browser.troubles == []
    browser.open(f"{address}?q=dog", DESK, "light")
    assert HOSTILE in browser.evaluate("document.body.textContent")


def press(browser: Browser, key: str, text: str, code: int) -> None:
    """Press a key."""
    for kind in ("keyDown", "keyUp"):
        told = {"key": key, "code": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
        browser.send("Input.dispatchKeyEvent", type=kind, **told)


def wait_for(browser: Browser, condition: str) -> None:
    """Wait until a condition holds on the page."""
    deadline = time.monotonic() + 30
    while not browser.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.1)
