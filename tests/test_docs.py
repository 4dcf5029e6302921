"""README.md and docs/: what they name exists, and what they list is complete. Each check is tried on a fault."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import vocabgraft
from flows.cli import COMMANDS, Entry, Group
from tests.conftest import ROOT
from tests.markdown_files import FENCED, blocks, markdown_files, without_blocks
from vocabgraft.config.evaluators import EVALUATORS
from vocabgraft.config.losses import LOSSES
from vocabgraft.config.params import parse_params_text
from vocabgraft.config.stages import CheckName

FOLDERS = ("vocabgraft", "tasks", "flows", "tests", "benchmarks", "examples", "docs", "deploy", ".ci")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
NAMED_FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*")
# A name that stands for another, such as tasks/NAME.py, is no file.
PLACEHOLDER = re.compile(r"[A-Z]{3,}")
FIRST_PARTY = ("vocabgraft", "tasks", "flows", "benchmarks")
MODULE = re.compile(rf"(?:-m |(?<![\w./`])`)((?:{'|'.join(FIRST_PARTY)})(?:\.\w+)+)")
MAKE = re.compile(r"(?<![\w-])make ([a-z][a-z0-9-]*)")
COMMAND = re.compile(r"(?:^|(?<=[ `/])(?<!import ))vocabgraft [a-z-].*", re.MULTILINE)
PUBLIC = frozenset(vocabgraft.__all__)
Check = Callable[[str, Path], Iterator[str]]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(text: str, page: Path) -> Iterator[str]:
    """Relative links to a file or a heading that is not there."""
    for target in LINK.findall(without_blocks(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        if not found.exists() or (
            anchor and anchor not in anchors(text if found == page else found.read_text("utf-8"))
        ):
            yield target


def code(text: str) -> list[str]:
    """What stands in code spans and fenced blocks."""
    return [*CODE.findall(without_blocks(text)), *(block for _, block in FENCED.findall(text))]


def missing_files(text: str, _: Path) -> Iterator[str]:
    """Files of the project in code spans and blocks that are not there."""
    for span in code(text):
        for name in NAMED_FILE.findall(span):
            if not PLACEHOLDER.search(name.removesuffix("README.md")) and not (ROOT / name).exists():
                yield name


def is_defined(module: str, name: str) -> bool:
    """Whether a module of the project defines a function or a class of that name."""
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    return source.is_file() and bool(re.search(rf"^(?:def|class) {name}\b", source.read_text("utf-8"), re.MULTILINE))


def missing_modules(text: str, _: Path) -> Iterator[str]:
    """Modules of the project that are not there; `module.name` may name what is in a module."""
    for name in MODULE.findall(text):
        path = ROOT / name.replace(".", "/")
        if PLACEHOLDER.search(name) or path.with_suffix(".py").is_file() or path.is_dir():
            continue
        if not is_defined(*name.rsplit(".", 1)):
            yield name


def missing_functions(text: str, _: Path) -> Iterator[str]:
    """Names in brackets after a file, as in `tasks/x.py` (`f`, `G`), that the file does not define."""
    for file, names in re.findall(r"`([\w/]+\.py)` \((`\w+`(?:, `\w+`)*)\)", text):
        source = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        for name in CODE.findall(names):
            if not re.search(rf"(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE):
                yield f"{file}: {name}"


def missing_targets(text: str, _: Path) -> Iterator[str]:
    """Commands `make X` in code that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for span in code(text):
        yield from (f"make {name}" for name in MAKE.findall(span) if name not in targets)


def missing_commands(text: str, _: Path) -> Iterator[str]:
    """Subcommands and options of `vocabgraft` in code that the command does not have."""
    for span in code(text):
        for line in COMMAND.findall(span.replace("\\\n", " ")):
            words = line.partition("#")[0].split()[1:]
            found: Any = Group("", COMMANDS)
            while isinstance(found, Group) and words and re.fullmatch(r"[a-z]+", words[0]):
                name = words.pop(0)
                found = found.entries.get(name)
            given = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
            if found is None or (isinstance(found, Entry) and given - options(found)):
                yield line.strip()


@cache
def options(entry: Entry) -> set[str]:
    """The options of a command, read from its source: importing all commands takes seconds."""
    module, _, function = entry.target.partition(":")
    source = (ROOT / "flows" / "commands" / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function]
    names = {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}
    return {f"--{name.replace('_', '-')}" for name in names} | set(re.findall(r'"(--[\w-]+)', source))


def missing_imports(text: str, _: Path) -> Iterator[str]:
    """Names that a Python block imports from the project, or takes from `vg`, and that are not there."""
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FIRST_PARTY:
                names = (alias.name for alias in node.names)
                yield from (f"{node.module}.{name}" for name in names if not is_defined(str(node.module), name))
            if (
                isinstance(node, ast.Attribute)
                and ast.unparse(node.value) == "vg"
                and node.attr not in vocabgraft.__all__
            ):
                yield f"vg.{node.attr}"


CHECKS: tuple[Check, ...] = (
    broken_links,
    missing_files,
    missing_modules,
    missing_targets,
    missing_commands,
    missing_imports,
)


def test_readme_and_docs_are_among_the_pages() -> None:
    pages = {str(page.relative_to(ROOT)) for page in markdown_files()}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/README.md", "docs/python.md"} <= pages


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path, check: Check) -> None:
    assert list(check(page.read_text(encoding="utf-8"), page)) == []


@pytest.mark.parametrize(
    ("check", "text", "found"),
    [
        (broken_links, "[a](docs/nowhere.md)", "docs/nowhere.md"),
        (broken_links, "[a](docs/registry.md#nowhere)", "docs/registry.md#nowhere"),
        (broken_links, "# Here\n[a](#there)", "#there"),
        (missing_files, "see `vocabgraft/nowhere.py`", "vocabgraft/nowhere.py"),
        (missing_files, "```\npython flows/nowhere.py\n```\n", "flows/nowhere.py"),
        (missing_modules, "`python -m flows.nowhere`", "flows.nowhere"),
        (missing_modules, "`flows.prefect_flow.nowhere`", "flows.prefect_flow.nowhere"),
        (missing_functions, "`flows/cli.py` (`main`, `nowhere`)", "flows/cli.py: nowhere"),
        (missing_targets, "```\nmake nowhere\n```\n", "make nowhere"),
        (missing_commands, "`vocabgraft nowhere`", "vocabgraft nowhere"),
        (missing_commands, "```\n.venv/bin/vocabgraft pack nowhere x\n```\n", "vocabgraft pack nowhere x"),
        (
            missing_commands,
            "```\nvocabgraft vocab plan x \\\n  --nowhere 2\n```\n",
            "vocabgraft vocab plan x    --nowhere 2",
        ),
        (
            missing_imports,
            "```python\nfrom vocabgraft.packs.bank import Nowhere\n```\n",
            "vocabgraft.packs.bank.Nowhere",
        ),
        (missing_imports, "```python\nvg.nowhere()\n```\n", "vg.nowhere"),
    ],
)
def test_what_is_missing_is_found(check: Check, text: str, found: str) -> None:
    assert list(check(text, ROOT / "README.md")) == [found]


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (broken_links, "# Here it is\n[a](#here-it-is) [b](docs/registry.md#gates) [c](https://example.org/x)"),
        (missing_files, "`vocabgraft/packs/bank.py`, `flows/`, `tasks/NAME.py`, `data/vocabgraft/x.py`"),
        (missing_modules, "`python -m flows.build_model`, `flows.prefect_flow.build_model`"),
        (missing_targets, "`make run ARGS=...`, and words that make sense"),
        (
            missing_commands,
            "`vocabgraft run --plan`, `vocabgraft registry list  # --nowhere`, `.venv/bin/vocabgraft ui`",
        ),
    ],
)
def test_what_is_there_is_accepted(check: Check, text: str) -> None:
    assert list(check(text, ROOT / "README.md")) == []


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_contents_link_every_page() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - linked == set()


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("checks.md", get_args(CheckName)),
        ("formats_and_losses.md", (*LOSSES, *EVALUATORS)),
        ("pipeline.md", tuple(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))),
    ],
)
def test_a_page_lists_all_that_the_code_has(page: str, names: tuple[str, ...]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [name for name in names if not re.search(rf"(?<!\w){name}(?!\w)", text)] == []


def test_checks_are_counted() -> None:
    counted = re.search(r"runs (\d+) checks", (ROOT / "docs" / "checks.md").read_text(encoding="utf-8"))
    assert counted and int(counted[1]) == len(get_args(CheckName))


def readme_params() -> str:
    """The params.yaml of the README."""
    (found,) = [block for block in blocks("yaml") if block.page.name == "README.md" and "base:" in block.text]
    return found.text


def test_the_small_params_are_accepted() -> None:
    params = parse_params_text(readme_params(), "README.md")
    assert params.train_adapter.method == "tokens"
    assert (ROOT / "data" / "raw" / params.validate_data.retention).is_file()


def test_the_small_params_have_every_key_that_dvc_reads() -> None:
    params = yaml.safe_load(readme_params())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for key in {key for stage in stages.values() for key in stage.get("params", ())}:
        found: Any = params
        for part in key.split("."):
            assert part in found, key
            found = found[part]


def test_the_five_lines_of_the_readme_are_those_that_the_python_page_runs() -> None:
    (lines,) = [block for block in blocks("python") if block.page.name == "README.md" and "vg.extend" in block.text]
    body = lines.text.partition("import vocabgraft as vg\n")[2].strip()
    assert body in (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
