"""Worker processes for jobs of minutes that share what is large, and tell how they get on.

Processes, because training seeds torch's one global generator: two threads would disturb each other's draws. Not those
of multiprocessing, which import the caller's main module anew, here all of Prefect. What is shared is written once and
mapped into every worker, so that it is in memory once. A worker ends when its caller does, however that ends. It needs
seconds to import torch, so workers may be called up before their work is known.
"""

import ctypes
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Self, TypeVar

from recsys.importing import importing

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Shared, Job, Callable[[Any], None]], Result]
"""Does one job and may tell things on the way. A function of a module, found there by the worker."""

_ALIGNED = 64
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Worker:
    """A process that imports what it will need, and then waits to be told what is shared."""

    module: str  # of the function that does the work
    threads: int
    connection: Connection
    process: subprocess.Popen[bytes]

    @classmethod
    def called(cls, module: str, threads: int) -> Self:
        """Started, and left to import."""
        ours, theirs = Pipe()
        words = [sys.executable, "-m", "recsys.fleet", str(theirs.fileno()), module, str(threads)]
        own = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env={**os.environ, **own})
        theirs.close()
        return cls(module, threads, ours, process)

    def end(self) -> None:
        """At once, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


_reserve: list[Worker] = []


@contextmanager
def reserve() -> Iterator[None]:
    """Until its end `call_up` may be used; workers that nobody took by then are ended."""
    try:
        yield
    finally:
        while _reserve:
            _reserve.pop().end()


def call_up(work: Work[Any, Any, Any], workers: int, threads: int) -> None:
    """Starts workers for work that is to come: they import for seconds, which need not be waited for then."""
    _reserve.extend(Worker.called(work.__module__, threads) for _ in range(workers - len(_reserve)))


def threads_each(workers: int) -> int:
    """Workers share torch's present threads."""
    import torch  # here: whoever starts no workers may have no use for it

    return max(1, torch.get_num_threads() // workers)


class Fleet(Generic[Shared, Job, Result]):
    """Some workers, each with its own threads, from `with` until its end: what still works then is killed."""

    def __init__(self, work: Work[Shared, Job, Result], shared: Shared, workers: int, threads: int) -> None:
        self.work, self.shared = work, shared
        self.workers, self.threads = workers, threads
        self.crew: dict[Connection, Worker] = {}

    def __enter__(self) -> Self:
        for _ in range(self.workers):
            worker = self._worker()
            self.crew[worker.connection] = worker
        self.handed = TemporaryDirectory()
        try:
            file = Path(self.handed.name) / "handed-over"
            hand_over((self.work, self.shared), file)  # while they still import
            for connection in self.crew:
                connection.send_bytes(os.fsencode(file))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.crew.values():
            worker.end()
        self.crew = {}
        self.handed.cleanup()

    def _worker(self) -> Worker:
        """One that was called up for this, or a new one."""
        for one in _reserve:
            if (one.module, one.threads) == (self.work.__module__, self.threads) and one.process.poll() is None:
                _reserve.remove(one)
                return one
        return Worker.called(self.work.__module__, self.threads)

    def run(self, jobs: Iterable[Job], hear: Callable[[int, Any], None]) -> Iterator[tuple[int, Result]]:
        """The place of each job and what came of it, as it ends. `hear` gets a place and what its job tells.

        A job is taken from `jobs` when a worker is free for it.

        What a job raises is raised here; ChildProcessError when a worker ends by itself.
        """
        waiting, busy = enumerate(jobs), dict[Connection, int]()
        for connection in self.crew:
            _give(connection, waiting, busy)
        while busy:
            for connection in [one for one in wait(list(busy)) if isinstance(one, Connection)]:
                kind, value = self._receive(connection)
                if kind == "told":
                    hear(busy[connection], value)
                elif kind == "raised":
                    raise value
                else:
                    place = busy.pop(connection)
                    _give(connection, waiting, busy)
                    yield place, value

    def _receive(self, connection: Connection) -> tuple[str, Any]:
        try:
            kind, value = pickle.loads(connection.recv_bytes())
        except EOFError:
            code = self.crew[connection].process.wait()
            raise ChildProcessError(f"a worker process ended by itself with exit code {code}") from None
        return kind, value


def _give(connection: Connection, waiting: Iterator[tuple[int, Any]], busy: dict[Connection, int]) -> None:
    """The next job, if there is one."""
    for place, job in waiting:
        busy[connection] = place
        connection.send_bytes(pickle.dumps(job))
        return


def hand_over(value: Any, file: Path) -> None:
    """Write a value that `taken_over` reads. Its arrays follow one another behind its pickle."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    index = pickle.dumps([len(head), *(view.nbytes for view in views)])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        parts: list[bytes | memoryview] = [len(index).to_bytes(8, "little") + index, head, *views]
        for part in parts:
            out.write(part)
            out.write(bytes(-out.tell() % _ALIGNED))


def taken_over(file: Path) -> Any:
    """What `hand_over` wrote, its arrays mapped into memory: pages are shared until they are written to."""
    with file.open("rb") as handed:
        whole = memoryview(mmap.mmap(handed.fileno(), 0, access=mmap.ACCESS_COPY))
    sizes = pickle.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    at, parts = 8 + int.from_bytes(whole[:8], "little"), []
    for size in sizes:
        at += -at % _ALIGNED
        parts.append(whole[at : at + size])
        at += size
    return pickle.loads(parts[0], buffers=parts[1:])


def _serve(connection: Connection, module: str) -> None:
    """One job after another, until the caller is gone."""
    with importing():
        import_module(module)
        work, shared = taken_over(Path(os.fsdecode(connection.recv_bytes())))

    def tell(value: Any) -> None:
        connection.send_bytes(pickle.dumps(("told", value)))

    while True:
        job = pickle.loads(connection.recv_bytes())
        try:
            answer = "done", work(shared, job, tell)
        except Exception as error:  # whatever it is, it is the caller's
            answer = "raised", error
        connection.send_bytes(pickle.dumps(answer))


def end_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """From now on this process gets a signal when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, how)


def _main(descriptor: int, module: str, threads: int) -> None:
    import torch  # here: whoever only starts workers may have no use for it

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears it and ends its workers
    torch.set_num_threads(threads)
    try:
        _serve(Connection(descriptor), module)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # nobody is left to tell


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
