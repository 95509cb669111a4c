"""A case: a valid input and one to three mutators, all drawn by a seed and a number; tried, it is accepted, refused or a defect."""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa

from tests.fuzz import asks, files, knobs, tables  # noqa: F401 - they register their mutators
from tests.fuzz.law import CANARY, SPEAKING, BreachError, read_file, read_words
from tests.fuzz.mutator import Ask, Delivery, Mutator, Stage, Words, fitting
from tests.fuzz.shelf import Shelf

LONGEST_SECONDS = 10
"""Of processor time: how busy the machine is does not count."""
MOST_BYTES = 1 << 30
"""By which the process may grow over one case."""
KINDS = {"events": 40, "items": 20, "users": 5, "set": 15, "columns": 2, "as_of": 2, "request": 14, "wire": 2}
"""What is fuzzed, and its share in percent."""

BOMBS = 0.03
"""Share of Parquet files that are one: each takes as long as a hundred others."""


@dataclass(frozen=True)
class Case:
    """What `draw` makes of a seed and a number."""

    seed: int
    number: int
    subject: Delivery | Words | Ask
    mutators: tuple[Mutator, ...]  # in the order of their turns

    def __str__(self) -> str:
        return f"--seed {self.seed} --only {self.number}: {self.subject.kind} with {', '.join(each.name for each in self.mutators)}"


@dataclass(frozen=True)
class Outcome:
    """What became of a case; `why` where the law was broken."""

    result: str  # accepted, refused, defect
    why: str = ""


def draw(seed: int, number: int) -> tuple[Case, Random]:
    """The case, and the generator that its mutators go on with."""
    rng = Random(f"{seed} {number}")
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    subject = _subject(kind, rng)
    bombs, known = [], []
    for each in fitting(subject.tags):
        (bombs if each.name.startswith("bomb") else known).append(each)
    chosen = rng.sample(known, min(len(known), rng.choice((1, 1, 2, 3))))
    if bombs and rng.random() < BOMBS:
        chosen[0] = rng.choice(bombs)
    return Case(seed, number, subject, tuple(sorted(chosen, key=lambda each: each.stage))), rng


def _subject(kind: str, rng: Random) -> Delivery | Words | Ask:
    if kind in ("events", "items", "users"):
        csv = rng.random() < 0.5
        return Delivery(kind, csv, _table(kind, rng), name=f"{kind}.{'csv' if csv else 'parquet'}")
    if kind in ("request", "wire"):
        return Ask(kind, {"history": ["item-4", "item-9"], "k": 5}, batch=rng.random() < 0.2)
    return Words(kind, {"set": [], "columns": ["timestamp=when"], "as_of": ["2023-11-14"]}[kind])


def _table(kind: str, rng: Random) -> pa.Table:
    n = rng.choice((1, 6, 40))
    user_ids = [f"{CANARY}-{rng.randrange(8)}" for _ in range(n)]
    if kind == "users":
        return pa.table({"user_id": user_ids, "note": ["x"] * n})
    if kind == "items":
        ids = pa.array([f"i{row}" for row in range(n)])
        texts = {
            name: [rng.choice((f"{name} {row}", f"Ä {row}")) for row in range(n)]
            for name in ("title", "category", "description")
        }
        return pa.table({"item_id": ids, **texts})
    times = pa.array([1_700_000_000 + 43_200 * row for row in range(n)])
    events = {"user_id": user_ids, "item_id": [f"i{rng.randrange(9)}" for _ in range(n)], "timestamp": times}
    return pa.table({**events, "event": ["view"] * n, "rating": [float(rng.randrange(6)) for _ in range(n)]})


class Bench:
    """Where cases are tried: a folder, and the server that is made when the first request comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def shelf(self) -> Shelf:
        """The served model."""
        return Shelf(self.folder / "model")

    def close(self) -> None:
        """Ends the server."""
        if "shelf" in vars(self):
            self.shelf.close()

    def tried(self, seed: int, number: int) -> tuple[Case, Outcome]:
        """Draws a case, spoils it, reads it. A breach of the law, in time and memory too, is a defect."""
        case, rng = draw(seed, number)
        if case.subject.kind in ("request", "wire"):
            _ = self.shelf  # made outside of the clock
        with TemporaryDirectory(dir=self.folder) as place:
            _spoil(case, rng)
            before, began = _peak(anew=True), time.process_time()
            outcome = self._outcome(case, Path(place))
            seconds, grown = time.process_time() - began, _peak() - before
        if outcome.result != "defect" and seconds > LONGEST_SECONDS:
            outcome = Outcome("defect", f"it took {seconds:.0f} s")
        if outcome.result != "defect" and grown > MOST_BYTES:
            outcome = Outcome("defect", f"it took {grown >> 20} MiB")
        return case, outcome

    def _outcome(self, case: Case, place: Path) -> Outcome:
        subject, quiet = case.subject, bool({each.name for each in case.mutators} & SPEAKING)
        try:
            if isinstance(subject, Delivery):
                return Outcome(read_file(subject, place, quiet, building=case.number % 5 == 0))
            return Outcome(self.shelf.ask(subject) if isinstance(subject, Ask) else read_words(subject, place))
        except BreachError as breach:
            return Outcome("defect", str(breach)[:500])
        except Exception as error:
            frames = [
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
            ][-6:]
            return Outcome("defect", f"{type(error).__name__}: {str(error)[:200]} at {' '.join(frames)}"[:500])


def _spoil(case: Case, rng: Random) -> None:
    """The mutators' turns, the writing among them at its place."""
    write: dict[type, Callable] = {Delivery: files.write, Ask: asks.write, Words: lambda words: None}
    late = [each for each in case.mutators if each.stage >= Stage.BYTES]
    for each in case.mutators[: len(case.mutators) - len(late)]:
        each.spoil(case.subject, rng)
    write[type(case.subject)](case.subject)
    for each in late:
        each.spoil(case.subject, rng)


def _peak(*, anew: bool = False) -> int:
    """Bytes of the largest resident set so far; `anew`: counted from now."""
    if anew:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
