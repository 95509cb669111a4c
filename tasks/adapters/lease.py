"""What the living processes hold on to in the store, so that no garbage collection takes it from under them.

    leases/<name>   one a Store and process, locked while it lives; one line a digest that it has made or opened
    sweeping        held together by who verifies, names or shows an object, alone by who sweeps

A lease says exactly what is in use, so it needs no clock. Both locks are flock: the kernel drops them with their holder.
"""

import contextlib
import fcntl
import os
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

from tasks.adapters.disk import told

LEASES = "leases"
SWEEPING = "sweeping"


class Lease:
    """The lease of one Store. It begins with the first object in use and ends with the Store or its process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._owner = 0  # process id; a forked child takes a lease of its own
        self._file = -1
        self._held: set[str] = set()

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Nothing is swept inside. Many processes may be inside at once."""
        with told(self.root / SWEEPING):
            lock = (self.root / SWEEPING).open("a")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def hold(self, digest: str) -> None:
        """The object is in use from now on. Only inside `steady`, or it may be gone by then."""
        with told(self.root / LEASES):
            if self._owner != os.getpid():
                self._begin()
            if digest not in self._held:
                os.write(self._file, f"{digest}\n".encode("ascii"))
                self._held.add(digest)

    def _begin(self) -> None:
        path = self.root / LEASES / uuid.uuid4().hex
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._owner, self._held = os.getpid(), set()
        weakref.finalize(self, _end, self._file, path, self._owner)


def _end(file: int, path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has inherited this call, but not the lease
        with contextlib.suppress(OSError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(file)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[frozenset[str]]:
    """Nobody verifies, names or shows an object inside. Yields the digests in use; leases of the dead are removed."""
    with (root / SWEEPING).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield frozenset(digest for path in (root / LEASES).iterdir() for digest in _in_use(path))


def _in_use(path: Path) -> list[str]:
    try:
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().split()
            path.unlink(missing_ok=True)
    except FileNotFoundError:  # it has just ended
        pass
    return []
