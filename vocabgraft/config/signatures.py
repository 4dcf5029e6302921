"""The arguments of other libraries' classes, read from their source.

Every process checks `params.yaml` against them. Importing sentence-transformers, peft or transformers takes seconds;
parsing the one file that defines a class takes milliseconds.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def arguments_of(module: str, name: str) -> tuple[str, ...]:
    """The arguments of a class, from its `__init__` or its dataclass fields, in order.

    Args:
        module: module that exports the class, such as `peft`; another module may define it.
        name: name of the class.

    Returns:
        The names; empty if the source of the class is not found.
    """
    file = _source(module)
    if file is None:
        return ()
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return tuple(dict.fromkeys(_arguments(node, module)))
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    above = package[: len(package) - node.level + 1] if node.level else []
                    return arguments_of(".".join([*above, *([node.module] if node.module else [])]), alias.name)
    return ()


def _source(module: str) -> Path | None:
    """The file of a module, without importing its packages."""
    top, *inner = module.split(".")
    found = find_spec(top)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent.joinpath(*inner)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file if file.is_file() else None


def _arguments(node: ast.ClassDef, module: str) -> Iterator[str]:
    for own in node.body:
        if isinstance(own, ast.FunctionDef) and own.name == "__init__":
            yield from (argument.arg for argument in [*own.args.args[1:], *own.args.kwonlyargs])
            return
    for base in node.bases:
        if isinstance(base, ast.Name):
            yield from arguments_of(module, base.id)
    for own in node.body:
        if isinstance(own, ast.AnnAssign) and isinstance(own.target, ast.Name):
            yield own.target.id
