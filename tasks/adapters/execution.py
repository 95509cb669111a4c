"""Where work on shards runs: in this process, or spread over a pool of them, through one Executor either way."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from tasks.adapters.settings import Settings, limit_threads

P = ParamSpec("P")
T = TypeVar("T")


class InlineExecutor(Executor):
    """Runs each call at once, here. What it raises comes out of the future, as from any executor."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future that is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def executor(settings: Settings) -> Executor:
    """One worker: this process. More: a pool of fresh processes that share the threads evenly.

    Processes are spawned, not forked: a fork inherits locks of threads that it does not inherit.
    """
    if settings.workers == 1:
        return InlineExecutor()
    threads = max(1, settings.threads // settings.workers)
    return ProcessPoolExecutor(
        settings.workers, multiprocessing.get_context("spawn"), initializer=limit_threads, initargs=(threads,)
    )
