"""What goes wrong, and the test that holds it; our figures beside what we aim at. `python -m benchmarks.reliability`

Writes docs/reliability.md from docs/reliability.toml and, where a run of the suite was scored (benchmarks/ml_test_score.py),
docs/ml_test_score.json. A row names tests as "recsys/test_gate.py::test_x", below tests/; one that does not exist is refused, so that
a test which is renamed takes its rows with it. Edit the .toml, never the .md.
"""

import ast
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import ConfigError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs" / "reliability.toml"
PAGE = ROOT / "docs" / "reliability.md"
SCORED = ROOT / "docs" / "ml_test_score.json"
GROUPS = ("data", "model", "infrastructure", "monitoring")


@dataclass(frozen=True)
class Figure:
    """`trials` without a failure; 0 where there is nothing to count."""

    what: str
    aim: str
    ours: str
    command: str
    trials: int

    @property
    def bound(self) -> str:
        """The rate of failure that so many trials without one rule out with 95 % confidence: 3/N, as per cent."""
        return f"{min(100, 300 / self.trials):.3g} %" if self.trials else "–"


@dataclass(frozen=True)
class Failure:
    """Something that goes wrong. `by`: the tests that hold what is asked; `but`: what they do not show, or why there is none."""

    when: str
    asked: str
    by: Sequence[str] = ()
    but: str = ""

    def __post_init__(self) -> None:
        if not self.by and not self.but:
            raise ConfigError(
                "a failure is held by no test, and it is not said why", where=self.when, mend="Add `by` or `but`."
            )

    @property
    def standing(self) -> str:
        return "not held" if not self.by else "in part" if self.but else "held"


@dataclass(frozen=True)
class Item:
    """One of the 28 tests of the ML Test Score. `most`: the points it earns when all tests of `by` ran green."""

    code: str
    what: str
    most: float
    by: Sequence[str] = ()
    but: str = ""


@dataclass(frozen=True)
class Reliability:
    """The contents of docs/reliability.toml."""

    texts: Mapping[str, str]
    figures: Sequence[Figure]
    failures: Mapping[str, Sequence[Failure]]
    items: Mapping[str, Sequence[Item]]

    @classmethod
    def load(cls, path: Path = SOURCE) -> "Reliability":
        """Raises ConfigError when a row names a test that does not exist."""
        plain = tomllib.loads(path.read_text())
        read = cls(
            plain["texts"],
            [Figure(**row) for row in plain["figures"]],
            {group: [Failure(**row) for row in rows] for group, rows in plain["failures"].items()},
            {group: [Item(**row) for row in plain["items"][group]] for group in GROUPS},
        )
        lost = sorted(set(read.named()) - names_below(ROOT / "tests"))
        if lost:
            raise ConfigError(
                f"there is no such test: {', '.join(lost)}", where=path.name, mend="Name those there are."
            )
        return read

    def named(self) -> Iterator[str]:
        """Every test that a row names, as often as it is named."""
        for rows in (*self.failures.values(), *self.items.values()):
            for row in rows:
                yield from row.by


def names_below(folder: Path) -> set[str]:
    """All tests, by the path of their file below the folder and their name; the files are parsed and not imported."""
    return {
        f"{path.relative_to(folder).as_posix()}::{node.name}"
        for path in folder.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def page_of(read: Reliability, scored: Mapping[str, Any] | None) -> str:
    """The whole page. `scored`: what benchmarks/ml_test_score.py wrote; None where no run was scored yet."""
    rows = [row for group in read.failures.values() for row in group]
    counts = [f"{sum(row.standing == each for row in rows)} {each}" for each in ("held", "in part", "not held")]
    parts = [
        "# Reliability",
        "Written by `python -m benchmarks.reliability` from [reliability.toml](reliability.toml).",
        "## Figures",
        read.texts["figures"].strip(),
        _table(
            ("figure", "asked", "ours", "command", "trials", "failures below"),
            [(f.what, f.aim, f.ours, _code(f.command), f"{f.trials:,}", f.bound) for f in read.figures],
        ),
        "## What goes wrong",
        read.texts["failures"].strip(),
        f"Of {len(rows)}: {', '.join(counts)}.",
    ]
    number = itertools.count(1)
    for group, failures in read.failures.items():
        cells = [(str(next(number)), f.when, f.asked, f.standing, _tests(f.by), f.but) for f in failures]
        parts += [f"### {group}", _table(("", "when", "what is asked", "", "tests", "not shown"), cells)]
    parts += ["## The ML Test Score", read.texts["score"].strip(), *_score(read.items, scored)]
    return "\n\n".join(parts) + "\n"


def _score(items: Mapping[str, Sequence[Item]], scored: Mapping[str, Any] | None) -> Iterator[str]:
    sums = [f"{group} {sum(item.most for item in items[group]):g}" for group in GROUPS]
    yield f"At most: {', '.join(sums)}, so {min(sum(i.most for i in items[group]) for group in GROUPS):g}."
    if scored is None:
        yield "No run has been scored yet."
    else:
        sums = [f"{group} {scored['groups'][group]:g}" for group in GROUPS]
        yield f"**Scored: {scored['score']:g}** ({', '.join(sums)}), by the run of {scored['ran'][:10]}."
    cells = []
    for group in GROUPS:
        for item in items[group]:
            earned = "–" if scored is None else f"{scored['items'][item.code]['points']:g}"
            cells.append((item.code, item.what, f"{item.most:g}", earned, _tests(item.by), item.but))
    yield _table(("", "item", "at most", "earned", "tests", "missing"), cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _tests(names: Sequence[str]) -> str:
    return "; ".join(_code(name) for name in names)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def read_scored() -> dict[str, Any] | None:
    """The last score that was written; None where there is none."""
    return json.loads(SCORED.read_text()) if SCORED.exists() else None


if __name__ == "__main__":
    PAGE.write_text(page_of(Reliability.load(), read_scored()))
