"""Reads a user's YAML within limits, and explains its errors without quoting it."""

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from ruamel.yaml.error import YAMLError

# Characters, values with all aliases expanded, and depth of nesting; the project's own params.yaml has 8,000, 250 and
# 3. The parser in Python takes 8 s for 50,000 values, and its time grows with the square of the depth.
LONGEST_TEXT, MOST_VALUES, DEEPEST = 100_000, 10_000, 100
BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


def load_yaml(text: str, origin: str) -> Any:
    """The content of a YAML 1.2 text, as DVC reads it: in PyYAML's 1.1 `5e-4` is a string and `on` is true.

    Args:
        text: the text.
        origin: its name in errors.

    Raises:
        VocabgraftError: when it is not YAML, is too long or nested too deeply, or its aliases expand to too many
            values.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        check_size(text, origin)
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise VocabgraftError(f"{origin} is not YAML: {explain_yaml(error)}") from error
    except RecursionError as error:
        raise VocabgraftError(f"{origin} nests its values too deeply; is it the right file?") from error


def check_size(text: str, origin: str) -> None:
    """Refuse a text on which a parser, or a program that expands its aliases, would not finish.

    Raises:
        VocabgraftError: when it is too long, or its aliases expand to too many values.
        YAMLError: when it is not YAML.
        RecursionError: when it nests too deeply.
    """
    from ruamel.yaml import YAML

    if max(accumulate((BRACKETS.get(mark, 0) for mark in text), initial=0)) > DEEPEST:
        raise RecursionError
    if len(text) > LONGEST_TEXT:
        raise VocabgraftError(
            f"{origin} has {len(text):,} characters; allowed: {LONGEST_TEXT:,}; is it the right file?"
        )
    # Without an anchor there is no alias, and nothing to expand.
    if "&" in text and _values(YAML(typ="safe", pure=True).compose(text), {}) > MOST_VALUES:
        raise VocabgraftError(
            f"{origin} has more than {MOST_VALUES:,} values once its aliases (*NAME) are expanded; write the "
            "values without aliases"
        )


def explain_yaml(error: "YAMLError") -> str:
    """A parser's message with the line but without the text, since a failure hook's address in it may be a secret."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return type(error).__name__
    return f"line {mark.line + 1}: {problem.partition(' with value ')[0]}"


def _values(node: Any, known: dict[int, int]) -> int:
    """The number of values in a node: an alias counts like the node that it repeats."""
    if id(node) not in known:
        # A node that contains itself has infinitely many values.
        known[id(node)] = MOST_VALUES + 1
        content = getattr(node, "value", None)
        items = content if isinstance(content, list) else []
        # A mapping's values are pairs of nodes.
        parts = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
