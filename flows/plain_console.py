"""A rich console that interprets no markup in the texts that it prints."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vocabgraft.printable import printable


class PlainConsole(Console):
    """A console that interprets no markup or emoji codes, highlights nothing, and prints no control characters.

    Cells, headings, titles and captions of tables may contain texts of users, models and stages.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make the text `printable` first: rich would remove only the bell at the end of an escape sequence."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that rich can render, with `printable` text."""
        if isinstance(renderable, Text):
            # Before rich wraps lines and measures columns, because the width changes.
            renderable = _printable(renderable)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def _printable(text: Text) -> Text:
    """The text without control characters; a text that has some also loses the styles of its parts."""
    plain = printable(text.plain)
    return text if plain == text.plain else Text(plain, style=text.style)
