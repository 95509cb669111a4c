"""Heads: the few names of a store that are not digests, heads/<name>.json.

In a shared store the bucket's are the heads, and a host keeps a copy of what it has seen. Each moves only from the state
that was read: what two hosts do to one at once happens one after the other, and a request that arrives late does nothing.
Each has a checksum of itself, but those of before there were any.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recsys.errors import StoreError
from tasks.adapters.disk import put_if_absent, remove, sync, told, write
from tasks.adapters.locks import locked
from tasks.adapters.manifest import with_checksum, without_checksum
from tasks.adapters.sharing import Shared

Value = Mapping[str, Any]

_MEND = "Set it aside (recsys fsck --repair; in a bucket remove it) or restore it: the next night points it anew."


class Heads:
    """The heads of the store in a folder, or of the bucket whose cache it is."""

    def __init__(self, root: Path, shared: Shared | None) -> None:
        self.root, self.remote = root, shared.remote if shared else None

    def read(self, name: str) -> Value | None:
        """What a name was last pointed at. StoreError when it cannot be read."""
        path = self._path(name)
        if self.remote is None:
            try:
                return _value(path.read_bytes(), str(path))
            except FileNotFoundError:
                return None
        found = self.remote.get(f"heads/{name}.json")
        if found is None:
            return None
        value = _value(found.content, self.remote.where(f"heads/{name}.json"))
        if not path.is_file() or path.read_bytes() != found.content:
            self._point(path, found.content)
        return value

    def point(self, name: str, value: Value) -> None:
        """Whatever it was: the last to point it is right."""
        if self.remote is not None:
            self._swap(name, lambda content: value)
        self._point(self._path(name), _text(value))

    def move(self, name: str, change: Callable[[Value | None], Value | None]) -> Value | None:
        """To what `change` makes of where it points; not at all for None. It is asked again if another host was faster.

        Two hosts that move a name to the same value at once move it once. Gives where the name points afterwards.
        """
        path = self._path(name)
        if self.remote is not None:
            where = self.remote.where(f"heads/{name}.json")
            self._swap(name, lambda content: change(None if content is None else _value(content, where)))
            return self.read(name)
        with locked(self.root, f"head-{name}"):
            if (value := change(self.read(name))) is not None:
                self._point(path, _text(value))
            return self.read(name)

    def once(self, name: str, value: Value) -> Value:
        """Points a name that points nowhere; or gives where it has pointed since an earlier call."""
        path = self._path(name)
        if self.remote is not None:
            first = self.remote.swap(f"heads/{name}.json", _text(value), None)
            if first:
                self._point(path, _text(value))
        else:
            with self._drafted(path, _text(value)) as draft:
                first = put_if_absent(draft, path)
        return value if first else (self.read(name) or value)

    def _swap(self, name: str, change: Callable[[bytes | None], Value | None]) -> None:
        assert self.remote is not None
        while True:
            found = self.remote.get(f"heads/{name}.json")
            value = change(found.content if found else None)
            if value is None or self.remote.swap(f"heads/{name}.json", _text(value), found.etag if found else None):
                return

    def _point(self, path: Path, content: bytes) -> None:
        with self._drafted(path, content) as draft:
            os.replace(draft, path)
            sync(path.parent)

    @contextlib.contextmanager
    def _drafted(self, path: Path, content: bytes) -> Iterator[Path]:
        """A durable file, to be given the name `path`."""
        draft = self.root / "tmp" / "heads"
        with locked(self.root, draft.name), told(path.parent):
            remove(draft)
            write(draft, content)
            yield draft
            remove(draft)

    def _path(self, name: str) -> Path:
        return self.root / "heads" / f"{name}.json"


def _text(value: Value) -> bytes:
    return json.dumps(with_checksum(value), sort_keys=True, indent=1, allow_nan=False).encode("ascii")


def _value(content: bytes, where: str) -> Value:
    try:
        return without_checksum(json.loads(content))
    except ValueError as error:
        raise StoreError("a head of the store is damaged", where=where, mend=_MEND) from error
