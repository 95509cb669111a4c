"""What every picture is drawn on: one style, one palette, and SVG text that is equal for equal drawings."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with any common colour blindness. Marks differ in shape as well.
BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7"
INK, QUIET, FAINT = "#1f2933", "#52606d", "#cbd2d9"

SMALL = 8.5
"""Points, of a text beside a mark."""

_WIDTH = 5.0  # inches, of every picture; the page scales it
_SIZE = 9.5  # points, of text
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "font.size": _SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a title may hold dollar signs
    "axes.edgecolor": FAINT,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Picture:
    """`svg` is an element ready to stand in a page; `alt` says what it shows to those who cannot see it."""

    svg: str
    alt: str


@contextmanager
def style() -> Iterator[None]:
    """Our style and nothing of the user's; afterwards all is as it was."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def canvas(height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of its own, without pyplot: nothing global, no window system. Height in inches."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.012, ha="left", fontsize=_SIZE, color=QUIET)
    return figure, axes


def picture(figure: Figure, name: str, alt: str) -> Picture:
    """The figure as an SVG element. Its ids begin with `name`, so that several may stand in one page."""
    text = io.StringIO()
    undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=undated)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    return Picture(re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg), alt)
