"""The documentation site: its generated pages are complete, its links lead to pages, and it asks no other host."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vocabgraft
from tests.conftest import ROOT
from vocabgraft.config.params import Params

OTHER_HOST = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^\s\">]+")


@pytest.fixture(scope="module")
def hooks() -> Any:
    """The module of mkdocs.yml's hooks."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_has_every_key(hooks: Any) -> None:
    page = hooks.params_page()
    schema = Params.model_json_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    assert {"rows_learning_rate", "max_cost_ratio", "held_out"} <= keys
    assert [key for key in keys if f"| `{key}` |" not in page] == []
    assert "| `epochs` | integer (at least 1) | `2` |" in page


def test_the_settings_page_gives_the_meaning_of_every_key(hooks: Any) -> None:
    rows = [line for line in hooks.params_page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_headings_of_the_settings_page_are_the_keys_of_params_yaml(hooks: Any) -> None:
    page = hooks.params_page()
    headings = re.findall(r"^## `([\w.]+)`$", page, re.MULTILINE)
    assert {"base", "train_adapter", "train_adapter.lora", "validate_data.datasets.loss"} <= set(headings)
    linked = set(re.findall(r"\]\(#(\w+)\)", page))
    assert linked == {heading.replace(".", "") for heading in headings}


def test_the_reference_has_every_public_name(hooks: Any) -> None:
    page = hooks.api_page()
    named = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE))
    assert named == set(vocabgraft.__all__) - {"__version__"}


def test_the_rooms_are_all_there_with_their_modules(hooks: Any) -> None:
    text = "\n".join(hooks.rooms())
    for package in ("vocabgraft", "tasks", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            expected = f"### {path.parent.relative_to(ROOT)}/" if path.name == "__init__.py" else f"| `{path.name}` |"
            assert expected in text


def test_no_room_has_more_than_twelve_modules() -> None:
    rooms = {path.parent for package in ("vocabgraft", "tasks", "flows") for path in (ROOT / package).rglob("*.py")}
    sizes = {room.relative_to(ROOT): len([*room.glob("*.py")]) - 1 for room in rooms}
    assert {room: size for room, size in sizes.items() if size > 12} == {}


@pytest.mark.parametrize(
    ("folder", "link", "expected"),
    [
        ("", "[a](docs/registry.md#gates)", "[a](registry.md#gates)"),
        ("docs", "[a](../README.md)", "[a](index.md)"),
        ("docs", "[a](../params.yaml)", "[a](params.md)"),
        ("docs", "[a](checks.md)", "[a](checks.md)"),
        ("docs", "[a](#here)", "[a](#here)"),
        ("", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("", "[a](LICENSE)", "a"),
    ],
)
def test_links_between_files_lead_to_pages(hooks: Any, folder: str, link: str, expected: str) -> None:
    assert hooks.site_links(link, folder) == expected


@pytest.mark.parametrize("tag", ['<script src="https://a.b/c.js">', '<link rel=stylesheet href="//a.b/c.css">'])
def test_a_request_to_another_host_is_seen(tag: str) -> None:
    assert OTHER_HOST.search(tag)


def test_the_site_is_built_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the site's tools are not installed; pip install -e '.[docs]' has them")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert {"index.html", "params.html", "api.html", "architecture.html"} <= set(pages)
    asking = {name: OTHER_HOST.findall(text) for name, text in pages.items()}
    assert {name: found for name, found in asking.items() if found} == {}
    assert all(
        f'id="vocabgraft.{vocabgraft._MODULES[name]}.{name}"' in pages["api.html"] for name in ("extend", "train")
    )
