"""One night of a home at a time. The kernel drops the lock with its holder, so that it is never stale.

    run/night.lock    locked while a night is at work; says who, since when, which run and what it may know

What it says outlives a holder that was killed or failed, and tells the next one whose work it goes on with. A command that
is no night keeps what it finds there for the next night, whose work it is to tell Prefect.
"""

import contextlib
import fcntl
import getpass
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TextIO

from recsys.errors import HomeError
from tasks.adapters.disk import told
from tasks.adapters.settings import Settings

_LOOKED_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Holder:
    """Who is at work."""

    run: str  # name of the flow run
    run_id: str
    known: str  # what it may know, in words
    who: str
    pid: int
    since: str  # ISO 8601, UTC
    unfinished: "Holder | None" = None  # the night whose end nobody has told yet, where this is no night itself

    @classmethod
    def me(cls, run: str, run_id: str, known: str) -> Self:
        """This process, from now on."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(run, run_id, known, getpass.getuser(), os.getpid(), since)

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.run}, since {self.since}, by {self.who}, process {self.pid}, knowing {self.known}"


def at_work(settings: Settings) -> Holder | None:
    """The night that is at work in a home, if one is."""
    try:
        with _path(settings).open("r") as file:
            return None if _free(file, fcntl.LOCK_SH) else _said(file)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def alone_tonight(settings: Settings, me: Holder, on_wait: Callable[[Holder | None], None]) -> Iterator[Holder | None]:
    """Waits while another night of the home is at work; `on_wait` hears of it again and again.

    Yields the holder before, if it was killed at work or ended by an error.
    """
    path = _path(settings)
    with told(path):
        file = path.open("a+")
    with file:
        while not _free(file, fcntl.LOCK_EX):
            on_wait(_said(file))
            time.sleep(_LOOKED_EVERY)
        said = _said(file)
        unfinished = said if said is None or said.run_id else said.unfinished
        kept = None if me.run_id else unfinished
        _say(file, _text(replace(me, unfinished=kept)))
        yield unfinished
        _say(file, _text(kept))  # not after an error: where it could not be told to Prefect either, the next one does


@contextlib.contextmanager
def no_night(settings: Settings, command: str, mend: str) -> Iterator[None]:
    """Keeps nights away while a command works that must be alone. HomeError, with `mend`, while one is at work."""

    def refuse(holder: Holder | None) -> None:
        working = holder.sentence if holder else "it has just begun"
        raise HomeError(f"a night is at work: {working}", where=str(settings.home), mend=mend)

    with alone_tonight(settings, Holder.me(command, "", "nothing"), refuse):
        yield


def _path(settings: Settings) -> Path:
    return settings.servers_file.parent / "night.lock"


def _free(file: TextIO, lock: int) -> bool:
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _said(file: TextIO) -> Holder | None:
    file.seek(0)
    try:
        value = json.loads(file.read())
        before = value.pop("unfinished", None)
        return Holder(**value, unfinished=before and Holder(**before))
    except (ValueError, TypeError, AttributeError):  # empty, or just being written
        return None


def _text(holder: Holder | None) -> str:
    return "" if holder is None else json.dumps(asdict(holder), sort_keys=True)


def _say(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
