"""The call of a night at which something happens to it."""

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.faults.night import STEPS, step_at_work
from tests.faults.tracer import Call, Then, traced

_NEEDS_ROOM = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "fallocate", "mkdir", "openat", "open", "link")
_THEN = {"kill": Then.KILL_ALL, "orphan": Then.KILL_PROGRAM, "EIO": errno.EIO, "full": errno.ENOSPC}

Begin = Callable[[Sequence[str], Mapping[str, str]], NoReturn]
"""Becomes the command of these words and this environment."""


@dataclass(frozen=True)
class Watched:
    """A night of a home, and where it prints."""

    home: Path
    out: Path
    err: Path

    def run(self, decide: Callable[[Call], Then | int | None], begin: Callable[[], NoReturn]) -> int | None:
        """How it ended, or None if it never did. `begin` is called in a process of its own."""

        def program() -> NoReturn:
            os.setsid()
            for number, path in ((1, self.out), (2, self.err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
            begin()

        for path in (self.out, self.err):
            path.write_text("")
        return traced(program, self.home, decide, 900)


class Aim:
    """Decides at each call of a night what happens: nothing, until it is number `at` of a step."""

    def __init__(self, out: Path, fault: str, step: str, at: int, fill: Callable[[], None] | None = None) -> None:
        """`out`: what the night prints. `fill` takes all room of the disk; without it calls that need room are refused."""
        self.out, self.fault, self.step, self.at, self.fill = out, fault, step, at, fill
        self.counts: Counter[str] = Counter()
        self.hit = ""
        self.when = 0.0
        self._read, self._now = -1, STEPS[0]

    def __call__(self, call: Call) -> Then | int | None:
        """What the tracer asks."""
        if self.hit:
            return errno.ENOSPC if self.fault == "full" and not self.fill and call.name in _NEEDS_ROOM else None
        now = self._step()
        self.counts[now] += 1
        if now != self.step or self.counts[now] != self.at:
            return None
        self.hit, self.when = f"{now}: {call.name} {call.path}", time.monotonic()
        if self.fault == "SIGTERM":
            os.kill(call.program, signal.SIGTERM)
        elif self.fault == "full" and self.fill:
            self.fill()
            return None
        return _THEN.get(self.fault)

    def _step(self) -> str:
        """By what the night has printed."""
        size = self.out.stat().st_size
        if size != self._read:
            self._read, self._now = size, step_at_work(self.out.read_text(errors="replace"))
        return self._now
