"""Nights killed, out of disk and told to stop, at their file-system calls: `python -m benchmarks.faults --points 300`

A tiny night with Prefect, MLflow and Optuna (tests/faults/night.py) is stopped at a call that changes a file of its home,
drawn evenly over its steps. There the fault happens:

    kill      SIGKILL for all of it at once: flow, servers, workers; every fourth time its resumption is killed too
    orphan    SIGKILL for the flow alone: what it began must end by itself
    SIGTERM   all must end in ten seconds
    full      the disk is full from here on
    EIO       this one call fails

Then the same command is run again, and the law of tests/faults/night.py must hold. Of the nights every second one is the
first of its home, the others come after one that must not be harmed. A point is a line of docs/faults.jsonl, and one that
is there is not run again. The last lines are a table for docs/faults.md. Where ptrace is refused, signals are sent at random
times, and the other faults are left out. Best as root, who may mount the small disk that is filled.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.field import FRESH, Field
from tests.faults.night import STEPS, broken, left_in_temp
from tests.faults.tracer import possible

FAULTS = ("kill", "orphan", "SIGTERM", "full", "EIO")
DISK = "512m"
PATIENCE = 10.0
"""Seconds in which all must have ended after a SIGTERM, or after the flow was killed alone."""

_KEPT = ("store/blobs", "store/objects", "store/manifests", "ledger")


@dataclass(frozen=True)
class Point:
    """Where a fault happens: `share` of the way through a step's calls, as an undisturbed night makes them."""

    fault: str
    seed: int
    number: int

    @property
    def steps(self) -> tuple[str, ...]:
        """Evenly drawn from. What is new to a home cannot be harmed in it."""
        return (FRESH, *STEPS) if self.fault in ("kill", "SIGTERM") else STEPS

    @property
    def step(self) -> str:
        """At work when it happens."""
        return self.steps[self.number % len(self.steps)]

    @property
    def later(self) -> bool:
        """Whether the home has had a night before."""
        return self.step != FRESH and (self.number // len(self.steps) % 2 == 1 or self.fault in ("full", "EIO"))

    @property
    def share(self) -> float:
        """In [0, 1)."""
        return random.Random(f"{self.seed} {self.fault} {self.number}").random()

    @property
    def twice(self) -> bool:
        """Whether the resumption is killed as well."""
        return self.fault == "kill" and self.number % 4 == 3


@dataclass
class Row:
    """What became of a point."""

    fault: str
    seed: int
    number: int
    step: str
    later: bool
    call: str = ""  # the one it happened at; empty: the night came to its end before
    code: int | None = None  # how the night ended
    said: str = ""  # its last line on stderr
    ended: float = 0.0  # seconds from the fault to the end of the last process
    left: int = 0  # bytes in the home's tmp/ in the end
    seconds: float = 0.0  # of the whole trial
    defects: list[str] = field(default_factory=list)


def tried(place: Field, point: Point) -> Row:
    """One point: the fault, the same command again, the law."""
    began = time.monotonic()
    row = Row(point.fault, point.seed, point.number, point.step, point.later)
    place.reset(None if point.step == FRESH else point.later)
    before = sums(place.home)
    step = STEPS[0] if point.step == FRESH else point.step
    calls = place.calls.get((point.later, point.step), 3000)  # of a night that cannot be traced: milliseconds
    night = place.night(point.fault, step, 1 + int(point.share * calls), workers=2 if step == "distil" else 1)
    row.code, row.call, row.ended = night.code, night.hit, round(night.ended, 1)
    row.said = (place.watched.err.read_text().strip().splitlines() or [""])[-1][-300:]
    row.defects += _of_the_end(place, row)
    row.defects += harmed(place.home, before)
    place.ballast.unlink(missing_ok=True)
    if point.twice:
        place.night("kill", step, 1 + int(point.share * calls / 2))
    again = place.again()
    if again.returncode != 0:
        row.defects.append(f"run again it ends with {again.returncode}: {again.stderr.strip()[-300:]}")
    row.defects += harmed(place.home, before)
    row.defects += broken(place.home, place.truths[point.later])
    checked = place.again("fsck")
    if checked.returncode != 0:
        row.defects.append(f"fsck: {' '.join(checked.stdout.split())[-500:]}")
    row.left, row.seconds = left_in_temp(place.home), round(time.monotonic() - began, 1)
    return row


def _of_the_end(place: Field, row: Row) -> Iterator[str]:
    """What is wrong with how the disturbed night itself ended."""
    said = place.watched.out.read_text() + place.watched.err.read_text()
    if row.code is None:
        yield "it, or what it began, never ended"
    if row.fault in ("SIGTERM", "orphan") and row.ended > PATIENCE:
        yield f"ended only after {row.ended:.1f} s"
    if row.fault in ("SIGTERM", "full", "EIO") and "Traceback" in said:
        yield "a traceback"
    if row.fault in ("full", "EIO") and row.code not in (0, None):
        told = "".join(said.split())
        if str(place.home) not in told:
            yield "the message names no path"
        if row.fault == "full" and "byte" not in told:
            yield "the message names no bytes"


def sums(home: Path) -> dict[str, str]:
    """The sha256 of each file that stays as it is for ever."""
    files = [path for folder in _KEPT for path in (home / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def harmed(home: Path, before: dict[str, str]) -> Iterator[str]:
    """Which of the old files are gone or others."""
    now = sums(home)
    yield from (f"{name} was harmed" for name in before if now.get(name) != before[name])


def main() -> int:
    """Exit code 1 when there was a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=300, help="of the fault kill; of each other one a fifth of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join(FAULTS), help="only these of " + ", ".join(FAULTS))
    parser.add_argument("--only", type=int, help="try this point of the one fault named, and keep no line of it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "faults.jsonl")
    kept = Path(tempfile.gettempdir()) / "recsys-faults"
    parser.add_argument(
        "--work", type=Path, default=kept, help="where the trials are made; the homes they begin with stay there"
    )
    asked = parser.parse_args()
    untraced = set() if possible() else {"full", "EIO"}
    points = [
        Point(fault, asked.seed, number)
        for number in range(asked.points)
        for fault in asked.faults.split(",")
        if fault not in untraced
        if fault == "kill" or number < -(-asked.points // 5)
    ]
    if asked.only is not None:
        points = [Point(asked.faults, asked.seed, asked.only)]
    rows = list(_rows(points, asked.work, asked.out if asked.only is None else None))
    print(as_markdown(rows))
    defects = [
        f"{row.fault} {row.number} at {row.call or row.step}: {defect}" for row in rows for defect in row.defects
    ]
    print("\n".join(defects))
    return int(bool(defects))


def _rows(points: list[Point], work: Path, out: Path | None) -> Iterator[Row]:
    lines = out.read_text().splitlines() if out and out.exists() else []
    known = {(row.fault, row.seed, row.number): row for row in (Row(**json.loads(line)) for line in lines)}
    missing = [point for point in points if (point.fault, point.seed, point.number) not in known]
    yield from (known[key] for point in points if (key := (point.fault, point.seed, point.number)) in known)
    if not missing:
        return
    with _place(work) as place:
        for done, point in enumerate(missing, start=1):
            row = tried(place, point)
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(asdict(row), sort_keys=True) + "\n")
            what = "; ".join(row.defects) or "as it must be"
            print(
                f"{done} of {len(missing)}: {row.fault} {row.number} at {row.call or row.step}, {row.seconds:.0f} s: {what}",
                flush=True,
            )
            yield row


@contextmanager
def _place(work: Path) -> Iterator[Field]:
    """The folder of the trials, in it a small disk where one may be mounted."""
    disk = work / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield Field.of(work, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(disk)], check=False)


def as_markdown(rows: list[Row]) -> str:
    """A row a fault and one a step."""
    lines = []
    for title, name in (("fault", "fault"), ("kill, orphan: step", "step")):
        counted = [row for row in rows if name == "fault" or row.fault in ("kill", "orphan")]
        lines += [
            "",
            f"| {title} | points | happened | defects | all ended within | left in tmp/, at most |",
            "|---|---|---|---|---|---|",
        ]
        for each in dict.fromkeys(getattr(row, name) for row in counted):
            these = [row for row in counted if getattr(row, name) == each]
            cells = (
                each,
                f"{len(these):,}",
                f"{sum(bool(row.call) for row in these):,}",
                f"{sum(bool(row.defects) for row in these):,}",
                f"{max(row.ended for row in these):.1f} s",
                f"{max(row.left for row in these) / 1000:,.0f} kB",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
