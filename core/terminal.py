"""The console that everything for people goes through: what files and declarations say can't act on the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from core.printable import clean, one_line


class Terminal(Console):
    """A rich console where a string is one line without markup, whatever it holds; paragraphs and styles are Texts.

    Control codes in Texts and in cells of tables are escaped too; their line breaks stay.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As of rich."""
        super().print(*(one_line(each) if isinstance(each, str) else each for each in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As of rich, with what is shown made harmless."""
        if isinstance(renderable, str):
            renderable = clean(renderable)
        elif isinstance(renderable, Text):
            renderable = _harmless(renderable)
        return super().render(renderable, options)


def _harmless(text: Text) -> Text:
    plain = text.plain
    if plain.replace("\n", "").isprintable():
        return text
    parts = [clean(letter) for letter in plain]
    places = [0]
    for part in parts:
        places.append(places[-1] + len(part))
    made = text.blank_copy("".join(parts))
    last = len(plain)
    made.spans = [Span(places[min(s.start, last)], places[min(s.end, last)], s.style) for s in text.spans]
    return made


def line(text: object, style: str = "") -> Text:
    """A line of a paragraph or a cell that repeats what somebody else wrote: without line breaks of its own."""
    return Text(one_line(text), style=style)
