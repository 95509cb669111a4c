"""How a night's cost grows: seconds and memory of each step against events, users and catalog. `python -m benchmarks.growth`

Whole nights of `recsys nightly` on generated shops, one a size, in a home of its own; each is a line of the results file,
written when it ended, and one that is there is not run again. Models are small and learn for one epoch (--set lines
below): it is growth that is asked for. `--draw` makes the pictures and tables of docs/scale.md from the file alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.generated_shop import write_shop
from benchmarks.growth_told import as_markdown, draw
from benchmarks.one_night import RECSYS, last_story

SAMPLED_EVERY = 0.1  # seconds between two looks at the memory
KNOBS = (
    "teacher.epochs=1", "teacher.width=64", "search.epochs=1", "search.trials=2", "search.widths=[32]",
    "compress.keep_ffn=[1.0,0.5]", "compress.keep_neighbours=[1.0]", "data.history_length=50",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A shop to be generated."""

    sweep: str  # what grows: events, users or items; everything else stands still
    events: int
    users: int
    items: int
    titled: bool = True  # whether items have a text to be read

    @property
    def at(self) -> int:
        """How much there is of what grows."""
        return int(getattr(self, self.sweep))


def sizes() -> Iterator[Size]:
    """Events with their users (twenty each), users at a million events, items at 300,000 events.

    Those of the last have no texts: reading them takes as long as there are new ones, and would hide what else grows.
    """
    for events in (300_000, 1_000_000, 3_000_000, 10_000_000, 50_000_000):
        yield Size("events", events, events // 20, 10_000)
    for users in (10_000, 30_000, 100_000, 300_000):
        yield Size("users", 1_000_000, users, 10_000)
    for items in (10_000, 30_000, 100_000, 300_000, 1_000_000):
        yield Size("items", 300_000, 15_000, items, titled=False)


@dataclass(frozen=True)
class StepCost:
    """What a step took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float  # the most memory of the night's process tree while it ran


def main() -> None:
    """Runs the sizes that are missing, or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/growth.jsonl"))
    parser.add_argument("--home", type=Path, default=Path("build/growth"), help="where shops and homes are made")
    parser.add_argument("--most-events", type=int, default=50_000_000, help="larger shops are left out")
    parser.add_argument("--draw", type=Path, metavar="PICTURE", help="only draw what is there, and print the tables")
    arguments = parser.parse_args()
    if not arguments.draw:
        for size in missing(arguments.out, arguments.most_events):
            row = {**asdict(size), "cpus": len(psutil.Process().cpu_affinity()), "steps": night(size, arguments.home)}
            with arguments.out.open("a") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
            print(f"{size.sweep} {size.at:,}: {sum(s['seconds'] for s in row['steps'].values()):,.0f} s", flush=True)
    rows = read(arguments.out)
    if arguments.draw:
        draw(rows, arguments.draw)
    print(as_markdown(rows))


def read(path: Path) -> list[dict]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(path: Path, most_events: int) -> list[Size]:
    """What has not been run, the smallest first."""
    there = {(row["sweep"], row["events"], row["users"], row["items"]) for row in read(path)}
    wanted = [size for size in sizes() if size.events <= most_events]
    left = [size for size in wanted if (size.sweep, size.events, size.users, size.items) not in there]
    return sorted(left, key=lambda size: (size.events, size.items, size.users))


def night(size: Size, place: Path) -> dict[str, dict[str, float]]:
    """One night on a new shop: what each of its steps took."""
    folder = place / f"{size.sweep}-{size.at}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_shop(folder, size.events, size.users, size.items, size.titled)
    files = ["--events", folder / "events.parquet", "--items", folder / "items.parquet", "--home", folder / "home"]
    knobs = [word for knob in KNOBS for word in ("--set", knob)]
    with (folder / "night.log").open("w") as log:
        command = [str(word) for word in (RECSYS, "nightly", "--preset", "quick", *files, *knobs)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        memory = Memory(process.pid)
        ended = [(line.split()[0], time.monotonic()) for line in _told(process, log) if " done in " in line]
        memory.stop()
    if process.returncode:
        raise SystemExit(f"the night of {size} failed with exit code {process.returncode}: read {log.name}")
    spent = {step["name"]: step for step in last_story(folder / "home")["steps"]}
    shutil.rmtree(folder)
    costs = {}
    for name, end in ended:
        if name in spent:
            seconds = spent[name]["seconds"] or 0.0
            peak = memory.peak(end - seconds, end)
            costs[name] = asdict(StepCost(round(seconds, 2), round(spent[name]["cpu_seconds"] or 0.0, 2), round(peak)))
    return costs


def _told(process: subprocess.Popen[str], log: object) -> Iterator[str]:
    """The lines of a night as they come."""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", file=log, flush=True)  # type: ignore[call-overload]
        yield line
    process.wait()


class Memory:
    """Samples the memory of a process and all below it, until stopped."""

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, int]] = []
        self._root, self._over = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more samples."""
        self._over.set()
        self._thread.join()

    def peak(self, begin: float, end: float) -> float:
        """The largest sample between two times, in MiB."""
        return max((size for at, size in self.samples if begin <= at <= end), default=0) / 2**20

    def _look(self) -> None:
        while not self._over.wait(SAMPLED_EVERY):
            self.samples.append((time.monotonic(), resident(self._root)))


def resident(root: psutil.Process) -> int:
    """Bytes of memory of a process and all below it, each page that several share once (PSS); what ends meanwhile counts nothing."""
    total = 0
    try:
        below: Sequence[psutil.Process] = (root, *root.children(recursive=True))
    except psutil.NoSuchProcess:
        return 0
    for process in below:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
