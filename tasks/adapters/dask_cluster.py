"""Dask's workers as an Executor: those of a scheduler somewhere, or a cluster of this machine for as long as it is wanted.

A part travels as one pickle, which a worker opens: neither the scheduler nor Dask looks into it. A worker that dies has its
parts computed again elsewhere, and one whose packages are others than here is refused: it could compute other bits.
"""

import pickle
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from recsys.errors import ConfigError, HomeError
from tasks.adapters.execution import Workers
from tasks.adapters.settings import LOCAL, Settings

if TYPE_CHECKING:
    from distributed import Client

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE = 60  # seconds, for a scheduler to answer and a first worker to be there
_PRODUCT = "recsys-factory"
_COMPUTED_WITH = (_PRODUCT, "numpy", "pyarrow", "duckdb", "scipy", "torch", "onnxruntime")
_FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile"}
_WHERE = "RECSYS_EXECUTOR"
_MEND = "Install the same packages everywhere: other versions may compute other bits."


@contextmanager
def dask_workers(settings: Settings, cluster: str) -> Iterator[Workers]:
    """The workers of `cluster`, as the settings read it. ConfigError where there is none or it is not like this process.

    HomeError when a part is lost with four workers one after another, or the scheduler goes away.
    """
    try:
        import distributed
    except ImportError as error:
        mend = "Install the extra: pip install 'recsys-factory[dask]'."
        raise ConfigError("Dask is not installed", where=_WHERE, mend=mend) from error
    with ExitStack() as stack:
        address = stack.enter_context(_local(settings)) if cluster == LOCAL else cluster
        client = stack.enter_context(_connected(address))
        try:
            yield _workers(settings, client)
        except distributed.KilledWorker as error:
            mend = (
                "Was it killed for want of memory? Give the workers more, or a home more shards; what is made is kept."
            )
            raise HomeError(
                f"a part was lost with every worker that took it: {error}", where=address, mend=mend
            ) from error
        except CancelledError as error:
            mend = "Start it and what it runs on, then start again: what is made is kept."
            raise HomeError(
                "the scheduler is gone, and with it what was under way", where=address, mend=mend
            ) from error


@contextmanager
def _local(settings: Settings) -> Iterator[str]:
    """A scheduler in this process and workers beside it, which end when it does; on the loopback alone."""
    from dask import config
    from distributed import LocalCluster

    threads = max(1, settings.threads // settings.workers)
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RECSYS_THREADS")
    with (
        config.set({"distributed.comm.timeouts.connect": "120s"}),
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            memory_limit=f"{max(1, settings.memory_mb // settings.workers)}MB",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            local_directory=str(settings.temp / "dask"),
            silence_logs="ERROR",
            env=dict.fromkeys(variables, str(threads)),
        ) as cluster,
    ):
        yield str(cluster.scheduler_address)


@contextmanager
def _connected(address: str) -> Iterator["Client"]:
    from distributed import Client

    mend = "Start `dask scheduler` and `dask worker` there, or leave RECSYS_EXECUTOR out."
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False, name="recsys")
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers: {error}", where=f"{_WHERE}={address}", mend=mend) from error
    with client:
        try:
            client.wait_for_workers(1, _PATIENCE)
        except TimeoutError as error:
            raise ConfigError("the Dask scheduler has no workers", where=f"{_WHERE}={address}", mend=mend) from error
        yield client


def _workers(settings: Settings, client: "Client") -> Workers:
    """What each may use is what the smallest has: half its memory for DuckDB, the rest for what it hands on."""
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    memory = min((each["memory_limit"] or 0) for each in known) // 2_000_000
    executor = _DaskExecutor(client)
    try:
        client.run(version, _PRODUCT)  # a worker that cannot even open a part would never answer
        executor.submit(abs, 0).result()  # what is wrong with all of them is said before there is work
    except ImportError as error:
        where = f"{_WHERE}={client.scheduler.address}"
        raise ConfigError(f"a Dask worker cannot run this: {error}", where=where, mend=_MEND) from error
    return Workers(
        executor,
        f"{len(known)} Dask workers at {client.scheduler.address}",
        threads=min(each["nthreads"] for each in known),
        memory_mb=min(settings.memory_mb, memory) if memory else settings.memory_mb // len(known),
        page=_page(client),
    )


def _page(client: "Client") -> str:
    """Where the cluster shows what it does; empty where it does not."""
    try:
        return str(client.dashboard_link or "")
    except KeyError:
        return ""


class _DaskExecutor(Executor):
    """Dask's own executor, given parts it need not understand."""

    def __init__(self, client: "Client") -> None:
        self._executor = client.get_executor(pure=False)
        self._likeness = likeness()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As any executor."""
        packed = pickle.dumps((fn, args, kwargs), protocol=5)
        future: Future[T] = self._executor.submit(_opened, self._likeness, packed)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As any executor."""
        self._executor.shutdown(wait and not cancel_futures)


def _opened(expected: Mapping[str, str], packed: bytes) -> Any:
    """Runs in a worker."""
    found = likeness()
    other = [f"{name} {found.get(name)}, not {here}" for name, here in expected.items() if found.get(name) != here]
    if other:
        raise ConfigError(
            f"a Dask worker is not like this process: it has {'; '.join(other)}", where=platform.node(), mend=_MEND
        )
    fn, args, kwargs = pickle.loads(packed)
    return fn(*args, **kwargs)


@cache
def likeness() -> Mapping[str, str]:
    """What the bits of a result may depend on, of this process."""
    found = {"python": platform.python_version(), "cpu": platform.machine()}
    for name in _COMPUTED_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        found["cpu"] += " ".join(["", *sorted(_FLAGS & set(flags.split()))])
    return found
