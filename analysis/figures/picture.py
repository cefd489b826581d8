"""Picture: a matplotlib figure that is inlined in a page as SVG or saved as a file, with the style that all of them share.

Text and axes take the page's own colour (light or dark), ids are unique to the figure, and equal data give equal bytes.
"""

import functools
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, GRID = "#010203", "#040506"  # stand-ins, replaced by what the page says
PAPER_GRID = "#d9dde3"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a label with two dollar signs is a label
}

P = ParamSpec("P")


@dataclass(frozen=True)
class Picture:
    """A finished figure. name: what its ids begin with; alt: what it shows, in words."""

    figure: Figure
    name: str
    alt: str

    def svg(self) -> str:
        """An SVG to be inlined in a page, in the page's own colours."""
        with matplotlib.rc_context(STYLE):
            return _svg(self.figure, self.name, self.alt)

    def on_paper(self) -> Figure:
        """The figure in colours of paper. It can't be inlined in a page after that."""
        for axis in self.figure.axes:
            for part in (*axis.spines.values(), *axis.get_xgridlines(), *axis.get_ygridlines()):
                part.set(color=PAPER_GRID)
        return self.figure

    def save(self, path: Path) -> None:
        """Write a file on white, as its suffix says: .svg, .png or .pdf. The figure can't be inlined after that."""
        self.on_paper()
        dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)  # equal data give equal bytes
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": self.name}):
            metadata = {dated: None} if dated else {}
            self.figure.savefig(path, dpi=200, facecolor="white", metadata=metadata)


def styled(draw: Callable[P, Picture]) -> Callable[P, Picture]:
    """Hold the style from the first axis to the last byte: matplotlib reads it at every step."""

    @functools.wraps(draw)
    def drawn(*arguments: P.args, **options: P.kwargs) -> Picture:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn


class DisplayedFigure(Figure):
    """A figure that a notebook displays without pyplot, which would keep every figure in memory."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()


def figure_of(width: float, height: float) -> Figure:
    return DisplayedFigure(figsize=(width, height), layout="constrained")


def _lay_out(figure: Figure) -> None:
    """Place everything, once: `savefig` would draw the whole figure a first time for that."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.dpi = 72  # of SVG
        FigureCanvasSVG(figure)
        engine.execute(figure)
        figure.set_layout_engine(None)


def _svg(figure: Figure, name: str, alt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        _lay_out(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id="|href="#)', rf"\1{name}-", svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--rule)")
    svg = re.sub(r"font: ([\d.]+)px 'DejaVu Sans'[^;\"]*", r"font: \1px var(--font)", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" xmlns="http://www.w3.org/2000/svg" '
                 rf'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{escape(alt)}</title>', svg, count=1)  # fmt: skip
    return svg
