"""Pages that the build of the site generates: the files of the project's root, the settings, the API, the rooms.

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
# Files of the root and their pages. Links between them and docs/ work on a Git host; the site gets rewritten ones.
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# Other files that pages link to: the page with the same content, or None to show the link's text alone.
SHOWN_BY = {
    "docs/README.md": "index.md",
    "params.yaml": "params.md",
    "vocabgraft/__init__.py": "api.md",
    "LICENSE": None,
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ROOMS_MARK = "<!-- rooms -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not files of docs/."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    made |= {"params.md": params_page(), "api.md": api_page()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the rooms, and rewrite links to files of the project as links to pages."""
    source = {made: name for name, made in ROOT_PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return site_links(markdown.replace(ROOMS_MARK, "\n".join(rooms())), posixpath.dirname(source))


def site_links(markdown: str, folder: str) -> str:
    """Rewrite links to files as links to pages; `folder` is the page's folder, relative to the root."""

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


class Settings:
    """The sections of params.yaml.

    Attributes:
        schema: the JSON schema of `Params`.
        known: the schema of each class of parameters, by its name.
        keys: the dotted key of each of these classes in params.yaml, in the order of the file.
    """

    def __init__(self) -> None:
        from vocabgraft.config.params import Params

        self.schema = Params.model_json_schema()
        self.known = self.schema["$defs"]
        self.keys = dict(self._sections(self.schema, ""))

    def _sections(self, schema: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for key, field in schema["properties"].items():
            for name in re.findall(r"#/\$defs/(\w+)", json.dumps(field)):
                if self.known[name].get("properties"):
                    yield name, prefix + key
                    yield from self._sections(self.known[name], f"{prefix}{key}.")

    def page(self) -> Iterator[str]:
        """Lines of a table of the top-level keys, and of a chapter for each section."""
        yield from ("", "## Top level", "", *self._table(self.schema))
        for name, key in self.keys.items():
            summary, _ = _described(self.known[name])
            yield from ("", f"## `{key}`", "", summary, "", *self._table(self.known[name]))

    def _table(self, schema: Any) -> Iterator[str]:
        _, meanings = _described(schema)
        required = schema.get("required", ())
        yield from ("| key | type | default | meaning |", "|---|---|---|---|")
        for key, field in schema["properties"].items():
            default = "required" if key in required else f"`{json.dumps(_plain(field.get('default')))}`"
            meaning = meanings.get(key, "").replace("|", "\\|")
            yield f"| `{key}` | {self._type(field)} | {default} | {meaning} |"

    def _type(self, field: Any) -> str:
        if "$ref" in field:
            name = field["$ref"].rsplit("/", 1)[1]
            if name not in self.keys:
                return self._type(self.known[name])
            # Python-Markdown drops the dots of a heading from its anchor.
            return f"[{self.keys[name]}](#{self.keys[name].replace('.', '')})"
        if "anyOf" in field:
            return " or ".join(self._type(choice) for choice in field["anyOf"])
        if field.get("type") == "array":
            return f"list of {self._type(field.get('items', {}))}"
        if isinstance(values := field.get("additionalProperties"), dict):
            return f"mapping to {self._type(values)}"
        return _simple_type(field)


def params_page() -> str:
    """Every setting of params.yaml with its type, its default and its meaning, from the typed parameters."""
    lines = [
        "# Every setting",
        "",
        "Generated from the typed parameters (`vocabgraft/config/`). The shipped file with its comments is at the end.",
        *Settings().page(),
    ]
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return "\n".join([*lines, "", "## The shipped params.yaml", "", "```yaml", shipped.rstrip(), "```", ""])


def _plain(default: Any) -> Any:
    """The default; that of a section is in the section's own table."""
    return {} if isinstance(default, dict) else default


def _described(schema: Any) -> tuple[str, dict[str, str]]:
    """A section's docstring without its attributes, and the meaning of each attribute."""
    from griffe import Docstring, DocstringSectionKind

    prose, meanings = [], {}
    for part in Docstring(schema.get("description", "")).parse("google"):
        if part.kind is DocstringSectionKind.text:
            prose.append(part.value)
        elif part.kind is DocstringSectionKind.attributes:
            meanings |= {entry.name: " ".join(entry.description.split()) for entry in part.value}
    return "\n\n".join(prose), meanings


def _simple_type(field: Any) -> str:
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return ", ".join(f"`{value}`" for value in values)
    return f"{field.get('type', 'mapping').replace('object', 'mapping')}{_limits(field)}"


def _limits(field: Any) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    limits = [f"{word} {field[key]:g}" for key, word in words.items() if key in field]
    return f" ({', '.join(limits)})" if limits else ""


def api_page() -> str:
    """The reference of every public name, which mkdocstrings fills in from the docstrings."""
    import vocabgraft

    parts = [
        "# Python API",
        "",
        "All of these are names in `vocabgraft`. [Python](python.md) shows how to use them.",
        "",
    ]
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
