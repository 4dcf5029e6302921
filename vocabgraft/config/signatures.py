"""The arguments of other libraries' classes, read from their source.

`params.yaml` is checked by them in every process, and importing sentence-transformers, peft or transformers takes
seconds; parsing the one file that has a class takes milliseconds.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def arguments_of(module: str, name: str) -> tuple[str, ...]:
    """The arguments of a class, as its `__init__` or its dataclass fields have them, in their order.

    Args:
        module: where the class can be imported from, such as `peft`; it may be defined in another one.
        name: of the class.

    Returns:
        The names; empty for a class whose source is not found.
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
    """The file of a module, whose packages are not imported."""
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
