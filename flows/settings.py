"""Editing params.yaml from the command line, comments kept."""

import difflib
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.params import parse_params


def edit_params(path: Path, assignments: Sequence[str]) -> str:
    """Set `SECTION.KEY=VALUE` in `params.yaml`, check the whole, write it, and return the difference.

    Raises:
        VocabgraftError: for an assignment that is none, an unknown key or a value that is not allowed; the file is
            then left as it was.
    """
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), _represent_null)
    yaml.indent(mapping=2, sequence=4, offset=2)
    before = path.read_text(encoding="utf-8")
    content = yaml.load(before)
    for assignment in assignments:
        _assign(content, assignment, yaml)
    stream = StringIO()
    yaml.dump(content, stream)
    after = stream.getvalue()
    parse_params(YAML(typ="safe").load(after), str(path))
    if after == before:
        return ""
    path.write_text(after, encoding="utf-8")
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(path), str(path), n=0))


def _represent_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _assign(content: Any, assignment: str, yaml: Any) -> None:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise VocabgraftError(f"--set takes SECTION.KEY=VALUE, not {assignment!r}")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = _descend(place, parent, key)
    if isinstance(place, list):
        place[int(last)] = yaml.load(text)
    else:
        place[last] = yaml.load(text)


def _descend(place: Any, part: str, key: str) -> Any:
    try:
        return place[int(part)] if isinstance(place, list) else place[part]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        allowed = ", ".join(map(str, place)) if isinstance(place, dict) else f"0 to {len(place) - 1}"
        raise VocabgraftError(f"--set {key}: there is no {part!r}; allowed: {allowed}") from error
