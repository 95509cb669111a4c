"""Where nights are disturbed: one home, made anew for each trial, and the call of a night at which something happens."""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self, TypeVar

from tests import fork_server
from tests.faults.aim import Aim, Watched
from tests.faults.night import ROOT, STEPS, Shop, Truth, broken, processes, step_at_work
from tests.faults.tracer import possible

FRESH = "fresh"
"""Instead of a step: its first part in a home whose databases are not made yet."""

_MAKE_DATABASES = """
import sys; from pathlib import Path
from flows.cli.early import made_ready; from flows.cli.home import make_home
with made_ready(make_home(Path(sys.argv[1]))):
    import flows.nightly
"""
Got = TypeVar("Got")


@dataclass(frozen=True)
class Disturbed:
    """A night to which something happened, or nothing."""

    code: int | None  # how it ended; None: not at all
    hit: str  # the call it happened at; empty: none was reached
    ended: float  # seconds from then to the end of the last process
    calls: Mapping[str, int]  # by step, until then


class Field:
    """The place of the trials, and how nights come out in it that nothing disturbs."""

    def __init__(self, work: Path, disk: bool) -> None:
        """`disk`: the folder of this name in `work` is a small disk of its own, which may be filled."""
        self.work, self.disk, self.traced = work, disk, possible()
        self.home, self.ballast = work / "disk" / "home", work / "disk" / "ballast"
        self.watched = Watched(self.home, work / "out", work / "err")
        self.shop = Shop(work / "shop")
        self.calls: dict[tuple[bool, str], int] = {}  # of an undisturbed night, by `later` and step
        self.truths: dict[bool, Truth] = {}

    @classmethod
    def of(cls, work: Path, disk: bool) -> Self:
        """The place in a folder; what an earlier one of this code found out there is not found out again."""
        known = work / "known.pkl"
        paths = (path for part in ("recsys", "tasks", "flows") for path in sorted((ROOT / part).rglob("*.py")))
        code = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        made = cls(work, disk)
        if known.exists():
            of, made.calls, made.truths = pickle.loads(known.read_bytes())
            if of == code:
                return made
        for old in ("prepared", "later", "shop"):
            shutil.rmtree(work / old, ignore_errors=True)
        made = cls(work, disk)
        made.prepare()
        known.write_bytes(pickle.dumps((code, made.calls, made.truths)))
        return made

    def prepare(self) -> None:
        """The homes that trials begin with: with their databases made, and after a night. Five nights."""
        self.home.parent.mkdir(exist_ok=True)
        self.shop.make()
        for later in (False, True):
            self.reset(None)
            made = self.again(events="early/events.parquet") if later else self._make_databases()
            if made.returncode != 0:
                raise SystemExit(f"a home cannot be made: {made.stderr[-2000:]}")
            copied(self.home, self._kept(later))
            for step, number in self._undisturbed().items():
                self.calls[later, step] = number
            self.truths[later] = Truth.of(self.home)
            if wrong := broken(self.home, self.truths[later]):
                raise SystemExit(f"a night that nothing disturbs breaks the law: {wrong}")
        self.reset(None)
        self.calls[False, FRESH] = self._undisturbed().get(STEPS[0], 0)

    def _kept(self, later: bool) -> Path:
        """The copy of a home that trials begin with."""
        return self.work / ("later" if later else "prepared")

    def reset(self, later: bool | None) -> None:
        """The home as it is before a trial; None: there is none."""
        self.ballast.unlink(missing_ok=True)
        shutil.rmtree(self.home, ignore_errors=True)
        if later is not None:
            copied(self._kept(later), self.home)

    def fill(self) -> None:
        """Takes all the room that the disk has."""
        with self.ballast.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(1 << 16))

    def night(self, fault: str = "", step: str = "", at: int = 0, workers: int = 1) -> Disturbed:
        """A night as a process of its own, to which a fault happens at the call with this number of a step."""
        words = [sys.executable, "-m", "flows.cli.app", *self.shop.words(self.home)]
        environment = self.shop.environment({"RECSYS_WORKERS": str(workers)})
        if not self.traced:
            return self._by_time(words, environment, fault, step, at / 1000)
        aim = Aim(self.watched.out, fault, step, at, self.fill if self.disk else None)

        def begin() -> NoReturn:
            os.chdir(self.work)
            os.execve(words[0], words, environment)

        def run() -> Disturbed:
            code = self.watched.run(aim, begin)
            return Disturbed(code, aim.hit, time.monotonic() - aim.when if aim.hit else 0.0, aim.counts)

        return apart(run)

    def _by_time(
        self, words: list[str], environment: Mapping[str, str], fault: str, step: str, seconds: float
    ) -> Disturbed:
        """Where nothing can be traced: SIGKILL, or SIGTERM, so many seconds after a step began."""
        with self.watched.out.open("w") as out, self.watched.err.open("w") as err:
            night = subprocess.Popen(words, env=environment, cwd=self.work, stdout=out, stderr=err)
        while night.poll() is None and step_at_work(self.watched.out.read_text()) != step:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            night.wait(seconds)
        hit, when = f"{step}: {seconds:.2f} s after its beginning" if night.poll() is None else "", time.monotonic()
        if hit:
            night.send_signal(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
        while left := processes(self.home):
            for pid in left if fault == "kill" else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            if time.monotonic() - when > 60:
                return Disturbed(None, hit, 60.0, {})
        return Disturbed(night.wait(), hit, time.monotonic() - when, {})

    def again(self, command: str = "nightly", events: str = "events.parquet") -> subprocess.CompletedProcess[str]:
        """A command of the home, in a process that need not import everything."""
        return fork_server.run(self.shop.words(self.home, command, events), self.shop.environment(), self.work, 900)

    def _make_databases(self) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", _MAKE_DATABASES, str(self.home)]
        environment = self.shop.environment()
        return subprocess.run(words, env=environment, capture_output=True, text=True, cwd=self.work, check=False)

    def _undisturbed(self) -> Mapping[str, int]:
        night = self.night()
        if night.code != 0:
            raise SystemExit(
                f"a night that nothing disturbs ends with {night.code}: {self.watched.err.read_text()[-2000:]}"
            )
        return night.calls


def copied(source: Path, target: Path) -> None:
    """With its hard links, of which a store is made."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def apart(work: Callable[[], Got]) -> Got:
    """Does it in a child: a tracer has no other children."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(work()))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()
