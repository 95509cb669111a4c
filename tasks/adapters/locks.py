"""Locks of a store's parts: flock, which the kernel drops with its holder, so that none is ever stale."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tasks.adapters.disk import told

LOCKS = "locks"


@contextlib.contextmanager
def locked(root: Path, key: str, wait: bool = True) -> Iterator[bool]:
    """The lock of a recipe or of a part of the store; False when another holds it and we do not `wait`."""
    path = root / LOCKS / key
    file = None
    while file is None:
        with told(path):
            file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            yield False
            return
        if not _is_named(file, path):  # swept while we waited: whoever comes next would lock another file
            file.close()
            file = None
    with file:
        yield True


def _is_named(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
