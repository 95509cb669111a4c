"""The picture of a lineage: files at the top, the artifact at the bottom, and what was made from what between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise, permutations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from recsys.canvas import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SMALL,
    VERMILION,
    Picture,
    canvas,
    picture,
    style,
)
from recsys.story import LineageNode, Story
from recsys.wording import count, plain, size

MOST_FILES = 2
"""Of more input files only the newest is drawn, and how many more there are is said."""

NAMES: Mapping[str, str] = {
    "validate": "events",
    "items": "items",
    "build": "dataset",
    "teach": "teacher",
    "label": "soft labels",
    "distil": "student",
    "compress": "compressed",
    "language model": "language model",
}
"""What people call the object of a step, where it is not the step's own name."""

_READ = ("validate", "items")  # what is read from a file: which items were known then is left out

_COLORS: Mapping[str, str] = {
    "validate": QUIET,
    "items": QUIET,
    "build": GREEN,
    "teach": BLUE,
    "language model": BLUE,
    "label": PURPLE,
    "distil": ORANGE,
    "compress": ORANGE,
    "artifact": VERMILION,
}
LINE = "#9aa5b1"
_BOX, _ROW, _GAP = 0.48, 0.74, 0.14  # inches: height of a box, of a row, between boxes
_WIDTH, _WIDEST, _NARROW, _EDGE = 5.0, 1.75, 0.1, 0.075  # inches: of all, of a box, of a line, of a box's edge
_CHARACTER = 0.07  # inches of a letter, on the safe side: the page's own font is not known here
_DIGEST_ROOM = 8  # letters of a title's line; where they are not free the digest stands below
_FOLD, _LINE = "more", "|"
_SWEEPS, _MOST_ORDERED = 3, 6  # of a longer row not every order is tried


@dataclass(frozen=True)
class _Box:
    """One or several objects as they are drawn."""

    title: str
    digest: str  # its beginning; of a file, of its own bytes
    below: str
    step: str
    parents: tuple[str, ...]
    faint: bool = False


@dataclass(frozen=True)
class _Place:
    """The middle of something, and how wide it is, in inches."""

    x: float
    y: float
    width: float


def essential(parents: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The parents that are not also parents of a parent: enough to know all the others by."""
    above: dict[str, frozenset[str]] = {}
    for digest in _parents_first(parents):
        there = [parent for parent in parents[digest] if parent in parents]
        above[digest] = frozenset(there).union(*(above[parent] for parent in there if parent in above))
    return {
        digest: tuple(
            parent
            for parent in dict.fromkeys(own)
            if parent in parents
            and not any(parent in above[other] for other in own if other in above and other != parent)
        )
        for digest, own in parents.items()
    }


@style()
def pedigree(story: Story) -> Picture | None:
    """The lineage as boxes and lines; None in a story that does not know it."""
    boxes = _boxes(story.lineage)
    if len(boxes) < 2:
        return None
    parents = essential({name: box.parents for name, box in boxes.items()})
    lines, rows = _laid_out(parents)
    places = _places(rows, lines)
    figure, axes = canvas(0.1 + _ROW * len(rows), "")
    for line in lines:
        _draw_line(axes, [places[name] for name in line], boxes[line[0]].faint)
    for name, box in boxes.items():
        _draw_box(axes, places[name], box)
    axes.set_axis_off()
    axes.set_xlim(-0.03, _WIDTH + 0.03)
    axes.set_ylim(_ROW * len(rows) - (_ROW - _BOX) / 2, -0.05)
    seen = "; ".join(
        f"{box.title} from {_listed(boxes, parents[name])}" for name, box in boxes.items() if parents[name]
    )
    return picture(figure, "pedigree", f"What was made from what: {seen}.")


def _listed(boxes: Mapping[str, _Box], names: Sequence[str]) -> str:
    return " and ".join(boxes[name].title for name in names)


def _parents_first(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Every name after those it was made from. A story is only text: one that goes in circles is cut open somewhere."""
    done: dict[str, None] = {}
    begun: set[str] = set()
    waiting = list(reversed(list(parents)))
    while waiting:
        name = waiting.pop()
        missing = [parent for parent in parents[name] if parent in parents and parent not in begun]
        if name in begun or not missing:
            done[name] = None
        else:
            waiting += [name, *missing]
        begun.add(name)
    return list(done)


# --- which boxes there are -----------------------------------------------------------------------------------------


def _boxes(nodes: Sequence[LineageNode]) -> dict[str, _Box]:
    """By name. Segments of labels are one box, an input file is one with what was accepted of it."""
    by_digest = {node.digest: node for node in nodes}
    folded = _folded(nodes)
    drawn: dict[str, _Box] = {}
    for node in nodes:
        name = folded.get(node.digest, node.digest)
        if name and name not in drawn:
            alike = [each for each in nodes if folded.get(each.digest, each.digest) == name]
            own = {folded.get(p, p) for each in alike if each.step not in _READ for p in each.parents if p in by_digest}
            drawn[name] = _box(alike, tuple(sorted(own - {name, ""})))
    return drawn


def _folded(nodes: Sequence[LineageNode]) -> dict[str, str]:
    """Which box an object is part of, where that is not its own; empty: it is not drawn."""
    folded = {node.digest: "labels" for node in nodes if node.step == "label"}
    folded |= {node.digest: "" for node in nodes if node.step == "input"}
    files = [node for node in nodes if node.step == "validate"]
    if len(files) > MOST_FILES:
        folded |= {node.digest: _FOLD for node in files[:-1]}
    needed = {
        p for node in nodes if node.step in ("artifact", "teach", "distil") and not node.earlier for p in node.parents
    }
    folded |= {node.digest: "" for node in nodes if node.step == "build" and node.digest not in needed}
    return folded


def _box(alike: Sequence[LineageNode], parents: tuple[str, ...]) -> _Box:
    first, several = alike[0], len(alike) > 1
    name = NAMES.get(first.step, first.step)
    counts = [node.count for node in alike if node.count is not None]
    facts = [f"{count(sum(counts))} {first.of}" if counts else size(first.bytes) if first.bytes else ""]
    if several and first.step == "label":
        facts.insert(0, f"{len(alike)} segments")
    elif first.made:
        facts.append(f"{datetime.fromtimestamp(first.made, UTC):%-d %b}")
    title = first.name or (f"earlier {name}" if first.earlier else name)
    title = f"{count(len(alike))} more files" if several and first.step == "validate" else title
    below = " · ".join(fact for fact in facts if fact)
    digest = "" if several else (first.parents or [first.digest])[0] if first.step in _READ else first.digest
    return _Box(title, digest[:8], below, first.step, parents, first.earlier)


# --- where they stand ----------------------------------------------------------------------------------------------


def _laid_out(parents: Mapping[str, Sequence[str]]) -> tuple[list[tuple[str, ...]], list[list[str]]]:
    """Lines from each parent to its child, and what stands in each row.

    A line over several rows has a place of its own in each row between, so that it passes beside the boxes there.
    """
    row = _row_of(parents)
    rows: list[list[str]] = [[] for _ in range(1 + max(row.values()))]
    for name in _parents_first(parents):
        rows[row[name]].append(name)
    lines = []
    for child, own in parents.items():
        for parent in own:
            between = [f"{parent}{_LINE}{child}{_LINE}{y}" for y in range(row[parent] + 1, row[child])]
            for y, name in enumerate(between, start=row[parent] + 1):
                rows[y].append(name)
            lines.append((parent, *between, child))
    return lines, rows


def _row_of(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Each box below all it was made from; what has no parents just above the first that was made from it."""
    row: dict[str, int] = {}
    for name in _parents_first(parents):
        row[name] = 1 + max((row.get(parent, -1) for parent in parents[name]), default=-1)
    for name, own in parents.items():
        below = [row[child] for child, theirs in parents.items() if name in theirs]
        if not own and below:
            row[name] = max(0, min(below) - 1)
    return row


def _places(rows: Sequence[Sequence[str]], lines: Sequence[Sequence[str]]) -> dict[str, _Place]:
    """Where everything stands, so that lines are short: row by row the best order, down and up, a few times."""
    beside: dict[str, list[str]] = {name: [] for names in rows for name in names}
    for line in lines:
        for upper, lower in pairwise(line):
            beside[upper].append(lower)
            beside[lower].append(upper)
    order: list[Sequence[str]] = list(rows)
    places = {name: place for y, names in enumerate(order) for name, place in _row_places(names, y).items()}
    for _ in range(_SWEEPS):
        for y in [*range(len(order)), *reversed(range(len(order)))]:
            if len(order[y]) <= _MOST_ORDERED:
                order[y] = min(permutations(order[y]), key=lambda names: _strain(_row_places(names, y), places, beside))
            places = {**places, **_row_places(order[y], y)}
    return places


def _strain(row: Mapping[str, _Place], places: Mapping[str, _Place], beside: Mapping[str, Sequence[str]]) -> float:
    """How far a row's lines go sideways."""
    return sum(abs(place.x - places[other].x) for name, place in row.items() for other in beside[name])


def _row_places(names: Sequence[str], y: int) -> dict[str, _Place]:
    """One row, centred: boxes equally wide, lines between them narrow."""
    lines = sum(_LINE in name for name in names)
    boxes = len(names) - lines
    room = _WIDTH - _GAP * (len(names) - 1) - _NARROW * lines
    width = min(_WIDEST, max(_NARROW, room / boxes)) if boxes else _NARROW
    left = (_WIDTH - width * boxes - _NARROW * lines - _GAP * (len(names) - 1)) / 2
    places = {}
    for name in names:
        own = _NARROW if _LINE in name else width
        places[name] = _Place(left + own / 2, _ROW * y + _BOX / 2, own)
        left += own + _GAP
    return places


# --- how they look -------------------------------------------------------------------------------------------------


def _draw_box(axes: Axes, place: _Place, box: _Box) -> None:
    x, y = place.x - place.width / 2, place.y - _BOX / 2
    color, alpha = _COLORS.get(box.step, QUIET), 0.45 if box.faint else 1.0
    paper, line = ("#fdf6f1", VERMILION) if box.step == "artifact" else ("white", FAINT)
    for width, size_of_corner, face, rim in ((place.width, 0.05, paper, line), (_EDGE, 0.03, color, "none")):
        shape = f"round,pad=0,rounding_size={size_of_corner}"
        patch = FancyBboxPatch((x, y), width, _BOX, shape, facecolor=face, edgecolor=rim, linewidth=0.8, zorder=3)
        patch.set_alpha(alpha if rim == "none" else None)
        axes.add_patch(patch)
    left, right = x + _EDGE + 0.07, x + place.width - 0.07
    letters = int((right - left) / _CHARACTER)
    beside = len(box.title) <= letters - _DIGEST_ROOM and bool(box.below)
    below = box.below if beside else " · ".join(part for part in (box.digest, box.below) if part)
    words: dict[str, Any] = {"va": "center", "zorder": 5, "alpha": alpha}
    bold: dict[str, Any] = {"fontsize": SMALL, "fontweight": "bold", "color": INK}
    axes.text(left, y + 0.32 * _BOX, plain(box.title, letters - 1), ha="left", **bold, **words)
    small: dict[str, Any] = {"fontsize": SMALL - 1, "color": QUIET}
    axes.text(left, y + 0.7 * _BOX, plain(below, int(1.2 * letters)), ha="left", **small, **words)
    if beside:
        axes.text(right, y + 0.32 * _BOX, box.digest, ha="right", **small, **words)


def _draw_line(axes: Axes, places: Sequence[_Place], faint: bool) -> None:
    """From the lower edge of one box to the upper edge of another, bending between rows, straight beside boxes."""
    points, codes = [(places[0].x, places[0].y + _BOX / 2)], [Path.MOVETO]
    for upper, lower in pairwise(places):
        y0, y1 = upper.y + _BOX / 2, lower.y - _BOX / 2
        middle = (y0 + y1) / 2
        points += [(upper.x, middle), (lower.x, middle), (lower.x, y1)]
        codes += [Path.CURVE4] * 3
        if lower is not places[-1]:
            points.append((lower.x, lower.y + _BOX / 2))
            codes.append(Path.LINETO)
    style_of_line = (0, (2, 2)) if faint else "solid"
    path = Path(points, codes)
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=LINE, linewidth=1.1, linestyle=style_of_line, zorder=1))
