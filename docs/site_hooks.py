"""Pages of the site that are made at build: the files of the project's root, every setting, the API, the rooms.

MkDocs calls the functions `on_...` (mkdocs.yml names this file).
"""

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Files of the root and their pages. Links between them and docs/ work on a Git host, and are rewritten for the site.
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# Other files that pages link: the page that shows the same, or None, where the link's text is enough.
SHOWN_BY = {
    "docs/README.md": "index.md",
    "params.yaml": "params.md",
    "vocabgraft/__init__.py": "api.md",
    "LICENSE": None,
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ROOMS_MARK = "<!-- rooms -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    made |= {"params.md": params_page(), "api.md": api_page()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the rooms, and let links to files of the project lead to pages of the site."""
    source = {made: name for name, made in ROOT_PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return site_links(markdown.replace(ROOMS_MARK, "\n".join(rooms())), posixpath.dirname(source))


def site_links(markdown: str, folder: str) -> str:
    """A page's Markdown with its links to files as links to pages; `folder` is the page's, below the root."""

    def replaced(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        file = posixpath.normpath(posixpath.join(folder, target))
        if file in SHOWN_BY and SHOWN_BY[file] is None:
            return text
        page = SHOWN_BY.get(file) or ROOT_PAGES.get(file) or file.removeprefix("docs/")
        return f"[{text}]({page}{anchor})"

    return LINK.sub(replaced, markdown)


def params_page() -> str:
    """Every setting of params.yaml with its type, its default and its meaning, from the typed parameters."""
    from vocabgraft.config.params import Params

    schema = Params.model_json_schema()
    known = schema["$defs"]
    lines = [
        "# Every setting",
        "",
        "Made from the typed parameters (`vocabgraft/config/`). The shipped file with its comments is at the end.",
    ]
    rest = [name for name in known if any(True for _ in known[name].get("properties", {}))]
    lines += ["", "## Top level", "", *_table(schema, known)]
    for name in rest:
        lines += ["", f"## {name}", "", *_section(known[name], known)]
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return "\n".join([*lines, "", "## The shipped params.yaml", "", "```yaml", shipped.rstrip(), "```", ""])


def _section(schema: Any, known: Any) -> Iterator[str]:
    summary, _ = _described(schema)
    yield from (summary, "", *_table(schema, known))


def _table(schema: Any, known: Any) -> Iterator[str]:
    _, meanings = _described(schema)
    required = schema.get("required", ())
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for key, field in schema["properties"].items():
        default = "required" if key in required else f"`{json.dumps(_plain(field.get('default')))}`"
        meaning = meanings.get(key, "").replace("|", "\\|")
        yield f"| `{key}` | {_type(field, known)} | {default} | {meaning} |"


def _plain(default: Any) -> Any:
    """A default that is a section of its own is described there."""
    return {} if isinstance(default, dict) else default


def _described(schema: Any) -> tuple[str, dict[str, str]]:
    """The docstring of a section without its attributes, and the meaning of each attribute."""
    from griffe import Docstring, DocstringSectionKind

    prose, meanings = [], {}
    for part in Docstring(schema.get("description", "")).parse("google"):
        if part.kind is DocstringSectionKind.text:
            prose.append(part.value)
        elif part.kind is DocstringSectionKind.attributes:
            meanings |= {entry.name: " ".join(entry.description.split()) for entry in part.value}
    return "\n\n".join(prose), meanings


def _type(field: Any, known: Any) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})" if known[name].get("properties") else _type(known[name], known)
    if "anyOf" in field:
        return " or ".join(_type(choice, known) for choice in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), known)}"
    return f"{field.get('type', 'mapping')}{_limits(field)}"


def _limits(field: Any) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    told = [f"{word} {field[key]:g}" for key, word in words.items() if key in field]
    return f" ({', '.join(told)})" if told else ""


def api_page() -> str:
    """The reference of every public name; mkdocstrings fills it in from the docstrings."""
    import vocabgraft

    parts = ["# Python API", "", "All of these are names of `vocabgraft`. [Python](python.md) shows them at work.", ""]
    for name in sorted(vocabgraft._MODULES, key=lambda name: (name[0].isupper(), name)):
        module = f"vocabgraft.{vocabgraft._MODULES[name]}"
        parts += [f"::: {module}.{name}", ""]
    return "\n".join(parts)


def rooms() -> Iterator[str]:
    """A table for each room: its modules, each with the first sentence of its docstring."""
    for package in ("vocabgraft", "tasks", "flows"):
        for room in sorted({path.parent for path in (ROOT / package).rglob("__init__.py")}):
            modules = sorted(path for path in room.glob("*.py") if path.name != "__init__.py")
            name = room.relative_to(ROOT).as_posix()
            yield from (f"### {name}/", "", _summary(room / "__init__.py"), "")
            if modules:
                yield from ("| module | subject |", "|---|---|")
                yield from (f"| `{path.name}` | {_summary(path)} |" for path in modules)
                yield ""


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")
