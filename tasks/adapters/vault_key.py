"""The vault's key: a file that is made once, what is derived from it, and how another takes its place.

key        the key
key.next   while it is being changed: the users belong to one of the two, and say to which
"""

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from recsys.door import Door
from recsys.errors import HomeError
from tasks.adapters.disk import sync
from tasks.adapters.seal import Seal

KEY_BYTES = 32
"""A key has at least so many; one that is made here has exactly so many, and they are random."""

_SAMPLE = "recsys vault"
_DOOR = "recsys store"


@dataclass(frozen=True)
class VaultKey:
    """A key, and what is derived from it."""

    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "VaultKey":
        """Of a file. HomeError for one that is too short, OSError for one that cannot be read."""
        content = path.read_bytes()
        if len(content) < KEY_BYTES:
            mend = "Restore it from a backup: under another key every user is a stranger."
            raise HomeError(f"the key has {len(content)} bytes, fewer than {KEY_BYTES}", where=str(path), mend=mend)
        return cls(content)

    def door(self, retired: Sequence[bytes] = ()) -> Door:
        """The door of users, who are also known by the names that `retired` keys, oldest first, gave the forgotten."""
        return Door(self.content, retired)

    @cached_property
    def users(self) -> Seal:
        """Of user ids."""
        return Seal(self.content, "user ids")

    @cached_property
    def retired(self) -> Seal:
        """Of the keys before this one."""
        return Seal(self.content, "retired keys")

    @cached_property
    def sample(self) -> str:
        """A token by which one key is told from another."""
        return self.door().token(_SAMPLE)

    @property
    def store_door(self) -> str:
        """A token by which homes of one shared store see that they have one key."""
        return self.door().token(_DOOR)


def make(path: Path) -> None:
    """Makes a key, whole or not at all. Of several processes at once one wins, and all read its key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    sync(path.parent)


def next_to(path: Path) -> Path:
    """Where the key lies that is to take a key's place."""
    return path.with_name(f"{path.name}.next")


def settle(path: Path, sample: str | None) -> bool:
    """Puts the next key in a key's place where the users, by their sample, have gone over to it. Whether it did.

    A change that was interrupted before that leaves the key as it is; the next change begins anew.
    """
    draft = next_to(path)
    try:
        if sample is None or VaultKey.read(draft).sample != sample:
            return False
        draft.chmod(0o600)  # another home's may have been copied here by hand
        draft.replace(path)
    except FileNotFoundError:  # none is under way, or another process has just put it there
        return False
    sync(path.parent)
    return True
