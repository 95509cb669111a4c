"""Files that are whole or absent, durable once named, and a full disk told as such."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from recsys.errors import HomeError, RecsysError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EIO}
_LITTLE = 1 << 20  # bytes; with less free, a writer that fails without an errno failed for want of room


def write(path: Path, content: bytes) -> None:
    """A new file, its bytes on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_if_absent(source: Path, target: Path) -> bool:
    """Gives a file a second name, unless that name is taken. True when it was given."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(target.parent.parent)
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    sync(target.parent)
    return True


def put_instead(path: Path, name: Path) -> None:
    """Gives a file a name that another one had, durably; it keeps its own. Whoever opens the name finds one of the two."""
    again = path.with_name(f"{path.name}.again")
    os.link(path, again)
    os.replace(again, name)
    sync(name.parent)


def remove(path: Path) -> None:
    """Removes a file or a whole folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns what a full, read-only or failing disk raises for a write below `path` into a HomeError."""
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:
        place = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(place).free
        number, named = _of_whom(error, path)
        ours = number in _REFUSED and named.startswith(str(path))
        if number not in _NO_ROOM and not ours and free >= _LITTLE:
            raise
        written = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else 0
        raise HomeError(
            f"cannot write: {os.strerror(number) if number else error}; "
            f"{written:,} bytes were written and more are needed, {free:,} bytes are free",
            where=named,
            mend="Make room, or choose another home with RECSYS_HOME.",
        ) from error


def _of_whom(error: Exception, path: Path) -> tuple[int | None, str]:
    """The errno of an error, if it has one, and the file that it names. A copied folder's tells both in words only."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, target, why = error.args[0][0]
        found = re.match(r"\[Errno (\d+)\]", str(why))
        return (int(found[1]) if found else None), str(target)
    number = error.errno if isinstance(error, OSError) else None
    return number, str(getattr(error, "filename", None) or path)
