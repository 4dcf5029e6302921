"""A console of rich that reads nothing into the texts that it prints."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vocabgraft.printable import printable


class PlainConsole(Console):
    """A console that shows every text as it is: no markup, no emoji code, no highlighting, no control character.

    Cells, headings, titles and captions of tables are texts of users, models and stages, whoever wrote the table.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text made `printable` before rich removes the bell alone, which ends a sequence that is to go whole."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that rich can render, those with text `printable`."""
        if isinstance(renderable, Text):
            # Before its lines are broken and its columns are measured by what will be seen.
            renderable = _printable(renderable)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def _printable(text: Text) -> Text:
    """The text without control characters; where it has some, its own styles go with them."""
    plain = printable(text.plain)
    return text if plain == text.plain else Text(plain, style=text.style)
