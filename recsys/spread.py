"""A map over parts through one Executor, in order and in bounded memory; what parts share is handed over once.

Any `concurrent.futures.Executor` will do: this process, a pool, a cluster. A part is computed from what it is given alone,
so the results are the same to the bit however many processes there are, and when a lost part is computed again.
"""

import os
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Generic, ParamSpec, Self, TypeVar

from recsys.fleet import hand_over, taken_over

P = ParamSpec("P")
Key = TypeVar("Key")
Part = TypeVar("Part")
Value = TypeVar("Value")
Result = TypeVar("Result")

AHEAD = 64
"""Parts that are under way or done and not yet taken: it bounds what is held."""


class InlineExecutor(Executor):
    """Runs each call at once, here. What it raises comes out of the future, as from any executor."""

    def submit(self, fn: Callable[P, Value], /, *args: P.args, **kwargs: P.kwargs) -> Future[Value]:
        """A future that is done."""
        future: Future[Value] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


HERE = InlineExecutor()
"""Where nothing else is said."""


def in_order(
    executor: Executor, call: Callable[[Part], Result], parts: Iterable[tuple[Key, Part]]
) -> Iterator[tuple[Key, Result]]:
    """What `call` makes of each part, beside its key, in the order of the parts. A key stays here.

    `parts` is read at most AHEAD parts ahead. What a call raises is raised here, and what is still to come is given up.
    """
    waiting: deque[tuple[Key, Future[Result]]] = deque()
    try:
        for key, part in parts:
            waiting.append((key, executor.submit(call, part)))
            while waiting and (len(waiting) >= AHEAD or waiting[0][1].done()):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


class Shared(Generic[Value]):
    """A value that all parts need. It crosses to another process by way of one file, and is there once.

    Where nothing crosses nothing is written. The file lies among the temporary files, which every worker must see, and goes
    at the end of `with`. A model of torch computes there with as many threads as here: other threads, other bits.
    """

    def __init__(self, value: Value) -> None:
        self._value, self._file, self._lock = value, "", threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            Path(self._file).unlink(missing_ok=True)

    @property
    def value(self) -> Value:
        """The value itself."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            if not self._file:
                descriptor, file = tempfile.mkstemp(prefix="shared-")
                os.close(descriptor)
                try:
                    hand_over(self._value, Path(file))
                except BaseException:
                    os.unlink(file)
                    raise
                self._file = file
        torch = sys.modules.get("torch")
        return _Crossed, (self._file, torch.get_num_threads() if torch else 0)


class _Crossed(Generic[Value]):
    """A shared value in another process, which keeps the last one."""

    _lock = threading.Lock()
    _last: tuple[str, Any] = ("", None)

    def __init__(self, file: str, threads: int) -> None:
        self.file, self.threads = file, threads

    def __reduce__(self) -> tuple[Any, ...]:
        return _Crossed, (self.file, self.threads)

    @property
    def value(self) -> Value:
        """The value, mapped into memory when it is first asked for."""
        with _Crossed._lock:
            if _Crossed._last[0] != self.file:
                _Crossed._last = ("", None)  # the one before goes first: two need not fit
                _Crossed._last = (self.file, taken_over(Path(self.file)))
            value: Value = _Crossed._last[1]
        torch = sys.modules.get("torch")
        if torch and self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return value
