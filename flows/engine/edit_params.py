"""`--set`: edits params.yaml and keeps its comments."""

import difflib
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from vocabgraft.config.params import parse_params_text, read_params_text
from vocabgraft.config.yaml_text import check_size, explain_yaml
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.atomic import replace_text


def edit_params(path: Path, assignments: Sequence[str]) -> str:
    """Set `SECTION.KEY=VALUE` in `params.yaml`, check and write it, and return the difference.

    Raises:
        VocabgraftError: as for `edited`; the file then stays unchanged.
    """
    before = read_params_text(path)
    after = edited(before, assignments, str(path))
    if after == before:
        return ""
    replace_text(path, after)
    return difference(before, after, str(path))


def difference(before: str, after: str, name: str) -> str:
    """The changed lines of a file, as a unified diff without context."""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, name, n=0))


def edited(text: str, assignments: Sequence[str], origin: str) -> str:
    """The checked text of a `params.yaml` with `SECTION.KEY=VALUE` set and comments kept.

    Args:
        text: the file's text.
        assignments: the assignments.
        origin: name of the file in errors.

    Raises:
        VocabgraftError: for a malformed assignment, an unknown key or a value that is not allowed.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class OwnRepresenter(RoundTripRepresenter):
        """Representers belong to a class. In the shared class, ours would change the dvc.lock that DVC writes."""

    yaml = YAML(typ="rt")
    yaml.Representer = OwnRepresenter
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), _represent_null)
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = _load(text, yaml, f"{origin} is not YAML; correct it first")
    for assignment in assignments:
        _assign(content, assignment, yaml)
    stream = StringIO()
    yaml.dump(content, stream)
    after = stream.getvalue()
    parse_params_text(after, origin)
    return after


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
    if isinstance(place, dict):
        place[last] = _load(text, yaml, f"--set {key}: {text!r} is not YAML")
        return
    _descend(place, last, key)
    place[int(last)] = _load(text, yaml, f"--set {key}: {text!r} is not YAML")


def _descend(place: Any, part: str, key: str) -> Any:
    try:
        if isinstance(place, dict):
            return place[part]
        if isinstance(place, list):
            return place[int(part)]
    except (KeyError, IndexError, ValueError) as error:
        raise _no_such(place, part, key) from error
    raise _no_such(place, part, key)


def _no_such(place: Any, part: str, key: str) -> VocabgraftError:
    if isinstance(place, dict):
        allowed = f"allowed: {', '.join(map(str, place))}"
    elif isinstance(place, list) and place:
        allowed = f"allowed: 0 to {len(place) - 1}"
    else:
        allowed = f"{place!r} cannot be set in part; set it as a whole"
    return VocabgraftError(f"--set {key}: there is no {part!r}; {allowed}")


def _load(text: str, yaml: Any, otherwise: str) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        check_size(text, otherwise.partition(" is not YAML")[0])
        return yaml.load(text)
    except RecursionError as error:
        raise VocabgraftError(f"{otherwise.partition(' is not YAML')[0]} nests its values too deeply") from error
    except YAMLError as error:
        raise VocabgraftError(f"{otherwise}: {explain_yaml(error)}") from error
