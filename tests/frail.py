"""Parts that end their worker. A worker finds them here by name."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any


class KillsAWorker(Executor):
    """Another executor, one of whose parts is killed with its worker when it is done and nobody has heard of it."""

    def __init__(self, executor: Executor, mark: Path, part: int) -> None:
        self.executor, self.mark, self.part, self.parts = executor, mark, part, 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.parts += 1
        if self.parts == self.part:
            return self.executor.submit(die_once, self.mark, fn, *args, **kwargs)
        return self.executor.submit(fn, *args, **kwargs)


def die_once(mark: Path, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Does the work, and then its process is killed; only the first time."""
    made = fn(*args, **kwargs)
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return made


def hold(megabytes: int) -> None:
    """So much memory, for longer than anybody should allow it."""
    held = b"x" * (megabytes << 20)
    time.sleep(60)
    del held


def duckdb_limit(union: Any) -> str:
    """What DuckDB may use where a union is read."""
    with union.reading() as read:
        return str(read._sql.sql("SELECT current_setting('memory_limit')").fetchall()[0][0])
