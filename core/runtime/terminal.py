"""The console that everything for people goes through: what files and declarations say can't act on the terminal."""

import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from core.runtime.printable import clean, one_line


class Terminal(Console):
    """A rich console where a string is one line without markup, whatever it holds; paragraphs and styles are Texts.

    Control codes in Texts and in cells of tables are escaped too; their line breaks stay.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As of rich, but that a word which is longer than a line isn't broken: it may be a number or a path."""
        options.setdefault("crop", False)
        super().print(*(one_line(each) if isinstance(each, str) else each for each in objects), **options)

    def unwrapped(self, content: str | Text, style: str | None = None) -> None:
        """Print lines that aren't wrapped at the terminal's width, as they hold a path, a command or a sentence to copy."""
        self.print(content, style=style, soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As of rich, with what is shown made harmless."""
        if isinstance(renderable, str):
            renderable = clean(renderable)
        elif isinstance(renderable, Text):
            renderable = _harmless(renderable)
            width = (options or self.options).max_width
            if width == self.width and renderable.overflow is None and (options or self.options).no_wrap is not True:
                renderable = _wrapped(renderable, width)
        return super().render(renderable, options)


def _wrapped(text: Text, width: int) -> Text:
    """The text in lines of that width, broken between words only: rich breaks a word that is longer than a line."""
    if max(map(cell_len, text.plain.split()), default=0) <= width:
        return text
    lines: list[Text] = []
    for paragraph in text.split("\n", allow_blank=True):
        places, used = [], 0
        for word in re.finditer(r"\s*\S+\s*", paragraph.plain):
            if used and used + cell_len(word[0].rstrip()) > width:
                places.append(word.start())
                used = 0
            used += cell_len(word[0])
        lines += paragraph.divide(places)
    for each in lines:
        each.rstrip()
    made = text.blank_copy("\n").join(lines)
    made.no_wrap, made.overflow = True, "ignore"
    return made


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
