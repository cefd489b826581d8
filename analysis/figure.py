"""Figures as data, computed once: `analysis.figures.static` draws them on paper, `analysis.figures.interactive` for a page.

A `place` is a number among a figure's arms, families or budgets; it decides the colour, on paper and on pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Floats = Sequence[float] | np.ndarray

ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f", "#b2a300")


@dataclass(frozen=True)
class Dot:
    """A point with an interval, if it has one. what: its name; size, mark: on paper."""

    x: float
    y: float
    what: str = ""
    low: float | None = None
    high: float | None = None
    size: float = 5.0
    mark: str = ""


@dataclass(frozen=True)
class Series:
    """A named line with a band, dots and the lines of single seeds, as far as it has them.

    beyond: it is extrapolated. On paper alone: marks, further dots; limit, a value that it can't exceed.
    """

    name: str
    place: int
    x: Floats = ()
    y: Floats = ()
    low: Floats | None = None
    high: Floats | None = None
    seeds: Mapping[int, Floats] | None = None
    dots: tuple[Dot, ...] = ()
    beyond: bool = False
    marks: tuple[Dot, ...] = ()
    limit: float | None = None


@dataclass(frozen=True)
class View:
    """One panel of lines: a choice on a page, and on paper a panel of the picture that is named (none: it is left out).

    log_x, log_y: base of a logarithmic axis, 0 for a linear one. whole: x is a whole number. zero: a line at 0. rule: a value
    that is marked by a line, and its name. panel: title on paper (default: title). front: a line on paper through the best
    dots.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    picture: str = ""
    panel: str = ""
    log_x: int = 0
    log_y: int = 0
    whole: bool = False
    zero: bool = False
    rule: tuple[float, str] | None = None
    front: tuple[Floats, Floats] | None = None


@dataclass(frozen=True)
class Lines:
    """Views of lines. alts: descriptions of the pictures by name; height: inches of a picture without its legend."""

    views: tuple[View, ...]
    alts: Mapping[str, str]
    height: float = 2.9


@dataclass(frozen=True)
class Effect:
    """An arm's effect in one metric: estimate, low and high; ends is None where there is no comparison."""

    name: str
    tone: str
    verdict: str
    n: int
    ends: tuple[float, float, float] | None


@dataclass(frozen=True)
class Forest:
    """Effects with intervals, a panel for each metric: its label, unit, goal ("min" or "max"), margin and rows."""

    panels: tuple[tuple[str, str, str, float | None, tuple[Effect, ...]], ...]


@dataclass(frozen=True)
class Heat:
    """Shares of layers by experts along a slider.

    panels: arm, what is shown, and (T, L, E) shares of assignments. values: of the slider, (T,); sliding: all panels have
    them. ranked: a column is a place by load, not an expert. seed: the one whose run it is; None for means over seeds.
    """

    slider: str
    values: Sequence[str]
    panels: tuple[tuple[str, str, np.ndarray], ...]
    start: int
    ranked: bool = False
    sliding: bool = True
    seed: int | None = None


@dataclass(frozen=True)
class Parallel:
    """Lines over parallel axes.

    names: of the axes. heights: (N, axes), NaN where a line has no value. ticks: texts by height, for each axis. best: how
    many of the last lines are dark.
    """

    names: Sequence[str]
    heights: np.ndarray
    ticks: Sequence[Mapping[float, str]]
    best: int


@dataclass(frozen=True)
class Bars:
    """Named bars, each with a mark where it has one. x: label of the axis; mark: name of the marks."""

    rows: Sequence[tuple[str, float, float | None]]
    x: str
    mark: str


@dataclass(frozen=True)
class Figure:
    """A figure of an answer.

    place: the part of the page that it stands in, below the table that `after` names, or first. title, intro, caption: its
    heading there, a paragraph above it, and one below. alt: what it shows, in words.
    """

    name: str
    place: str
    alt: str
    data: Lines | Forest | Heat | Parallel | Bars
    title: str = ""
    intro: str = ""
    caption: str = ""
    after: str = ""
