"""Who works on the parts of a step: this process, a pool of them, or a Dask cluster; one Executor either way."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from recsys.errors import HomeError
from recsys.spread import HERE
from tasks.adapters.settings import Settings, limit_threads


@dataclass(frozen=True)
class Workers:
    """An executor, and what each of its processes may use. None of it changes a result."""

    executor: Executor
    name: str  # for people
    threads: int  # of DuckDB or the serving runtime
    memory_mb: int  # of DuckDB
    page: str = ""  # where a cluster shows what it does

    def __str__(self) -> str:
        return self.name


@contextmanager
def open_workers(settings: Settings) -> Iterator[Workers]:
    """As RECSYS_EXECUTOR and RECSYS_WORKERS say. HomeError when a worker is lost and cannot be replaced."""
    if settings.cluster:
        from tasks.adapters.dask_cluster import dask_workers  # the extra `dask`

        with dask_workers(settings, settings.cluster) as workers:
            yield workers
    elif settings.workers == 1:
        yield Workers(HERE, "this process", settings.threads, settings.memory_mb)
    else:
        with _pool(settings) as workers:
            yield workers


@contextmanager
def _pool(settings: Settings) -> Iterator[Workers]:
    """Fresh processes that share threads and memory evenly.

    Spawned, not forked: a fork inherits locks of threads that it does not inherit.
    """
    count = settings.workers
    threads, memory_mb = max(1, settings.threads // count), max(1, settings.memory_mb // count)
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, spawn, initializer=limit_threads, initargs=(threads,)) as pool:
            yield Workers(pool, f"{count} processes", threads, memory_mb)
    except BrokenExecutor as error:
        mend = "Was it killed for want of memory? Lower RECSYS_WORKERS, then start again: what is made is kept."
        raise HomeError("a worker process ended by itself", where="RECSYS_WORKERS", mend=mend) from error
