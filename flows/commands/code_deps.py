"""`make deps`: writes the code deps of dvc.yaml from the import graph.

python -m flows.commands.code_deps

A stage depends on its own module, `tasks/<stage>.py`, and on every first-party module that it imports, directly or
indirectly, also inside functions. So a code change reruns exactly the stages that may be affected.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from vocabgraft.printable import warn

FIRST_PARTY = ("tasks", "vocabgraft")
STAGE = re.compile(r"  (?P<name>[\w-]+):\s*(#.*)?")
ENTRY = re.compile(r"(?P<indent> +)- (?P<path>\S+)\s*(#.*)?")


def imported_modules(file: Path, root: Path) -> Iterator[str]:
    """Dotted names that a module may import, also inside functions."""
    package = file.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def first_party_files(root: Path, file: str) -> set[str]:
    """The file and every first-party module that it reaches, relative to the root."""
    found: set[str] = set()
    open_files = [file]
    while open_files:
        current = open_files.pop()
        if current in found:
            continue
        found.add(current)
        names = [name for name in imported_modules(root / current, root) if name.split(".")[0] in FIRST_PARTY]
        candidates = [name.replace(".", "/") + ".py" for name in names]
        open_files += [candidate for candidate in candidates if (root / candidate).is_file()]
    return found


def with_code_deps(text: str, root: Path) -> str:
    """The text of a dvc.yaml with code deps below the data deps of every stage that has a module.

    Everything else stays the same. A stage without `tasks/<stage>.py`, or without deps, stays as it is.
    """
    lines = (text if text.endswith("\n") else f"{text}\n").splitlines(keepends=True)
    written: list[str] = []
    stage, block, place = None, False, 0
    for line in [*lines, ""]:
        entry = ENTRY.match(line) if block else None
        if entry is None and block and not line.startswith("      "):
            written[place:place] = _entries(root, stage) if stage else []
            block = False
        if entry is not None and stage and entry["path"].endswith(".py"):
            continue
        written.append(line)
        if block:
            place = len(written)
        if line[:1].strip():
            stage = None
        elif found := STAGE.fullmatch(line.rstrip("\n")):
            stage = found["name"] if (root / "tasks" / f"{found['name']}.py").is_file() else None
        elif line.rstrip() == "    deps:":
            block, place = True, len(written)
    return "".join(written)


def _entries(root: Path, stage: str) -> list[str]:
    return [f"      - {file}\n" for file in sorted(first_party_files(root, f"tasks/{stage}.py"))]


def rewrite(root: Path) -> bool:
    """Write the code deps into the root's dvc.yaml; returns whether that changed anything."""
    file = root / "dvc.yaml"
    before = file.read_text(encoding="utf-8")
    after = with_code_deps(before, root)
    if after != before:
        file.write_text(after, encoding="utf-8")
    return after != before


if __name__ == "__main__":
    warn("dvc.yaml: code deps written" if rewrite(Path.cwd()) else "dvc.yaml: code deps are up to date")
