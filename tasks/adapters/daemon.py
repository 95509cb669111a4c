"""A program that runs beside us: in a session of its own, with a log, and with its home's mark.

The mark is a variable of the environment, and so everything a daemon starts bears it too, whatever session or parent
that ends up with. It is how what a killed supervisor left behind is found, and how nothing is left behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import RecsysError
from recsys.wording import plain
from tasks.adapters.settings import Settings

MARK = "RECSYS_DAEMON_OF"
LARGEST_LOG = 16 << 20  # bytes; with the one before it, twice as much

_LONGEST_WORDS = 200  # characters
_Patience = tuple[tuple[signal.Signals, float], ...]  # seconds for each

_STOPPING: _Patience = ((signal.SIGINT, 2.0), (signal.SIGTERM, 0.8), (signal.SIGKILL, 1.0))
# A flow that is told twice is disturbed while it reports that it was stopped.
_SWEEPING: _Patience = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 1.0))


@dataclass(frozen=True)
class Daemon:
    """A started program, and how to start it again."""

    name: str
    command: tuple[str, ...]  # what follows `python -m`
    environment: Mapping[str, str]
    log: Path
    folder: Path  # it works in
    since: int  # bytes of the log that are older than it
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, settings: Settings, name: str, command: Iterable[str], environment: Mapping[str, str]) -> "Daemon":
        """Starts a Python module in a session of its own, so that a Ctrl-C meant for us does not reach it first."""
        marked = {**environment, MARK: _mark(settings), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"}
        return cls._start(name, tuple(command), marked, settings.logs / f"{name}.log", settings.temp)

    @classmethod
    def _start(
        cls, name: str, command: tuple[str, ...], environment: Mapping[str, str], log: Path, folder: Path
    ) -> "Daemon":
        bound(log)
        with log.open("ab") as output:  # appending, so that the log may be cut while it is written
            since = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(name, command, environment, log, folder, since, process)

    def again(self) -> "Daemon":
        """The same, started once more."""
        return self._start(self.name, self.command, self.environment, self.log, self.folder)

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def said(self) -> list[str]:
        """What it has written so far: the lines that are not empty."""
        with self.log.open("rb") as file:
            file.seek(self.since if self.log.stat().st_size >= self.since else 0)
            return [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]

    def farewell(self) -> str:
        """How it ended, and its last words."""
        words = plain((self.said() or ["it said nothing"])[-1], _LONGEST_WORDS)
        return f"{self.name} ended with {self.process.returncode}: {words}"

    def require_alive(self) -> None:
        """RecsysError when the process has ended."""
        if not self.alive():
            raise RecsysError(self.farewell(), where=str(self.log), mend="Read its log, then start it again.")


def bound(log: Path) -> None:
    """Moves what a log holds to `<name>.1` when it has grown large. Its writer goes on writing at the beginning."""
    if log.exists() and log.stat().st_size > LARGEST_LOG:
        before = log.with_name(log.name + ".1")
        draft = before.with_name(before.name + ".part")
        draft.write_bytes(log.read_bytes())
        draft.rename(before)
        os.truncate(log, 0)


def stop(daemons: Iterable[Daemon]) -> None:
    """Asks, then tells, then kills; four seconds later at most nothing of their sessions is left."""
    leaders = {daemon.process.pid: daemon for daemon in daemons}
    _press(leaders, _STOPPING, lambda pid: leaders[pid].alive(), os.killpg)
    for pid in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what a leader left behind


def sweep(settings: Settings, but: Iterable[Daemon] = ()) -> int:
    """Stops all that bears this home's mark, in six seconds at most, `but` not what these daemons lead.

    How many processes that were.
    """
    spared = {daemon.process.pid for daemon in but}
    pids = [pid for pid, session in marked(settings).items() if session not in spared]
    _press(pids, _SWEEPING, _exists, os.kill)
    return len(pids)


def marked(settings: Settings) -> Mapping[int, int]:
    """The processes that bear this home's mark, each with its session: its daemons and all they started, not us."""
    sought = f"{MARK}={_mark(settings)}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if pid != os.getpid() and sought in (entry / "environ").read_bytes().split(b"\0"):
                found[pid] = os.getsid(pid)
    return found


def _mark(settings: Settings) -> str:
    return os.path.realpath(settings.home)


def _press(
    pids: Iterable[int], patience: _Patience, is_there: Callable[[int], bool], send: Callable[[int, int], None]
) -> None:
    left = list(pids)
    for number, seconds in patience:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                send(pid, number)
        deadline = time.monotonic() + seconds
        while left and time.monotonic() < deadline:
            left = [pid for pid in left if is_there(pid)]
            time.sleep(0.05)


def _exists(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
