"""Answers of MLflow and Prefect that are lost, and servers that are killed under a night: `python -m benchmarks.lost_answers`

A tiny night (tests/faults/night.py) works with a Prefect and an MLflow that no home owns, each behind a proxy on loopback
(tests/faults/dropping.py). A night that is left alone tells the truth, and which requests write. Then, a fresh home and a
fresh MLflow each time:

    once, twice    a request is forwarded, has its effect, and its answer is lost; twice: its repetition's too. All requests of
                   a night, all of a kind, and single ones of those that make something
    for good       every repetition's too, until the night has ended
    restarted      SIGKILL for a server at a step; it is started again at once
    away           the same; it is started again only after the night has ended

A night that ended in a sentence is run again, undisturbed, and the law must hold: the objects of the night that was left
alone; one version of the teacher, one of the student, one record of the ledger, the aliases at them; one finished night
in MLflow, none open; one completed run in Prefect, none open. What is there twice and does not count is counted as left.
A point is a line of docs/lost_answers.jsonl, and one that is there is not run again. The last lines are tables for
docs/faults.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.dropping import ALWAYS, EVERY, Loss
from tests.faults.outside import Outside

CREATES = ("create", "POST /api/flow_runs/", "/flows/", "POST /api/artifacts/", "POST /api/2.0/mlflow/logged-models")
"""What is in a kind that makes something new."""

STEPS = ("validate", "teach", "distil", "evaluate", "promote", "tell")
"""In which a server is killed."""

TIMES = {"once": 1, "twice": 2, "for good": ALWAYS}


@dataclass(frozen=True)
class Point:
    """Of a server's requests the `number`-th of a kind, or the step at which it is killed."""

    server: str
    fault: str  # of TIMES; "restarted", "away"
    what: str
    number: int = 1

    @property
    def kills(self) -> bool:
        return self.fault not in TIMES


@dataclass
class Row:
    """What became of a point."""

    server: str
    fault: str
    what: str
    number: int
    happened: bool = False
    lost: int = 0  # answers
    asked: int = 0  # how often the requests came whose answers were lost
    code: int = 0  # how the disturbed night ended
    said: str = ""  # its last words, where it was not well
    commands: int = 1  # that it took in all
    seconds: float = 0.0  # of the disturbed night
    left: dict[str, int] = field(default_factory=dict)  # there twice, and does not count
    defects: list[str] = field(default_factory=list)


def tried(outside: Outside, point: Point) -> Row:
    """One point: the fault, the same command again where it did not end well, the law."""
    row = Row(point.server, point.fault, point.what, point.number)
    outside.reset()
    began = time.monotonic()
    if point.kills:
        done, row.happened = outside.killed_night((point.server,), point.what, back=point.fault == "restarted")
    else:
        proxy = outside.proxies[point.server]
        proxy.lose(Loss(point.what, point.number, TIMES[point.fault]))
        done = outside.night()
        row.happened, row.lost, row.asked = proxy.lost > 0, proxy.lost, proxy.asked
    row.seconds, row.code = round(time.monotonic() - began, 1), done.returncode
    for each in outside.proxies.values():
        each.lose(None)
    if row.code != 0:
        row.said = " ".join(done.stderr.split())[-400:]
        row.defects += _of_the_end(outside, point, done)
        row.commands += 1
        again = outside.night()
        if again.returncode != 0:
            row.defects.append(f"run again it ends with {again.returncode}: {' '.join(again.stderr.split())[-300:]}")
    row.defects += outside.broken(row.commands)
    row.left = outside.left()
    return row


def _of_the_end(outside: Outside, point: Point, done: subprocess.CompletedProcess[str]) -> Iterator[str]:
    """What is wrong with how a night ended that did not end well."""
    if "Traceback" in done.stdout + done.stderr:
        yield "a traceback"
    if outside.proxies[point.server].url.split("/")[2] not in "".join(done.stderr.split()):
        yield "the message names no address"


def points_of(diaries: Mapping[str, Sequence[str]]) -> list[Point]:
    """All points: first each request of a whole night, then each kind, then single ones of those that create."""
    points = [Point(server, fault, EVERY, 0) for fault in ("once", "twice") for server in diaries]
    points += [Point(server, fault, step) for step in STEPS for server in diaries for fault in ("restarted", "away")]
    counts = [(server, kind, count) for server, diary in diaries.items() for kind, count in Counter(diary).items()]
    creates = [(server, kind, count) for server, kind, count in counts if any(word in kind for word in CREATES)]
    points += [Point(server, "for good", kind, 1) for server, kind, _ in creates]
    points += [Point(server, fault, kind, 0) for server, kind, _ in counts for fault in ("once", "twice")]
    for server, kind, count in creates:
        for number in sorted({1, (count + 1) // 2, count}) if count > 4 else range(1, count + 1):
            points += [Point(server, fault, kind, number) for fault in ("once", "twice")]
    return points


def main() -> int:
    """Exit code 1 when there was a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000, help="at most so many more")
    parser.add_argument(
        "--only", default="", help="only points with this in server, fault or kind; none of them is kept"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "lost_answers.jsonl")
    parser.add_argument("--work", type=Path, help="where the trials are made")
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    given = parser.parse_args()
    rows = [Row(**json.loads(line)) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if not given.table:
        with ExitStack() as stack:
            work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-lost-")))
            outside = stack.enter_context(Outside.open(work))
            rows = list(_rows(outside, rows, given))
    print(as_markdown(rows))
    defects = [f"{row.server} {row.fault} {row.what} {row.number}: {each}" for row in rows for each in row.defects]
    print("\n".join(defects))
    return int(bool(defects))


def _rows(outside: Outside, known: list[Row], given: argparse.Namespace) -> Iterator[Row]:
    """What is known, and what is found out now."""
    there = {(row.server, row.fault, row.what, row.number) for row in known}
    if given.only:
        points = [p for p in points_of(outside.diaries) if given.only in f"{p.server} {p.fault} {p.what} {p.number}"]
    else:
        yield from known
        points = [p for p in points_of(outside.diaries) if (p.server, p.fault, p.what, p.number) not in there]
    for done, point in enumerate(points[: given.points], start=1):
        row = tried(outside, point)
        if not given.only:
            with given.out.open("a") as file:
                file.write(json.dumps(asdict(row), sort_keys=True) + "\n")
        what = "; ".join(row.defects) or (f"{row.said}; run again" if row.code else "went on")
        print(
            f"{done} of {len(points)}: {row.server} {row.fault} {row.what} {row.number}, {row.lost} answers lost, asked {row.asked} times, "
            f"{row.seconds:.0f} s, left {row.left}: {what}",
            flush=True,
        )
        yield row


def as_markdown(rows: list[Row]) -> str:
    """A row a kind of request and a fault of it; and one a server that was killed."""
    lines = []
    for title, killed in (("request", False), ("killed at", True)):
        lines += [
            "",
            f"| server | {title} | fault | points | answers lost | went on | ended in a sentence | left, and does not count | defects | s, at most |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        counted = [row for row in rows if row.happened and (row.fault not in TIMES) == killed]
        for server, what, fault in dict.fromkeys((row.server, row.what, row.fault) for row in counted):
            these = [row for row in counted if (row.server, row.what, row.fault) == (server, what, fault)]
            left = sum((Counter(row.left) for row in these), Counter())
            cells = (
                server,
                f"`{what}`",
                fault,
                f"{len(these)}",
                f"{sum(row.lost for row in these)}",
                f"{sum(row.code == 0 for row in these)}",
                f"{sum(row.code != 0 for row in these)}",
                ", ".join(f"{count} {name}" for name, count in left.items()),
                f"{sum(bool(row.defects) for row in these)}",
                f"{max(row.seconds for row in these):.0f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
