"""Eras of a shared store: what lies in one was made since users were last forgotten, and into earlier ones nobody looks.

    era.json               the present one, and the tokens of all who were forgotten
    blobs/ manifests/ objects/ heads/           of the first
    era-1/blobs/ ...       of the second, and so on

Hosts share no lock, so one cannot keep the others from working while it erases. It begins another era instead. Whoever is
still at work in the one before writes where nobody looks any more, is told so at the next object it names, and what it
leaves is removed by the next night.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from recsys.errors import StoreError
from tasks.adapters.manifest import with_checksum, without_checksum

if TYPE_CHECKING:  # it needs the extra s3
    from tasks.adapters.remote import Remote

_FILE = "era.json"
DOOR = "heads/door.json"
"""A token by which homes of one store see that they have one key; of all eras."""
_FOLDERS = ("manifests", "objects", "heads", "blobs")


@dataclass(frozen=True)
class Era:
    """Which one it is, from 0, and when each forgotten user was forgotten (seconds UTC), by token."""

    number: int
    forgotten: Mapping[str, int]

    def to_bytes(self) -> bytes:
        """With a checksum of itself."""
        value = {"era": self.number, "forgotten": dict(self.forgotten)}
        return json.dumps(with_checksum(value), sort_keys=True, indent=1).encode("ascii")

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """StoreError for what it was not written as."""
        try:
            value = without_checksum(json.loads(content))
            return cls(int(value["era"]), {str(token): int(at) for token, at in value["forgotten"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            mend = "Restore it from a copy of the bucket: without it nobody knows who was forgotten."
            raise StoreError("the file that says who was forgotten is damaged", where=where, mend=mend) from error


FIRST = Era(0, {})


def present(root: "Remote") -> Era:
    """The present era of the store that `root` is the first era of."""
    return _seen(root)[0]


def begin(root: "Remote", number: int, forgotten: Mapping[str, int]) -> bool:
    """Era `number` is the present one, with these users forgotten too. False when another host was faster."""
    era, state = _seen(root)
    following = Era(number, {**forgotten, **era.forgotten})
    return era.number == number - 1 and root.swap(_FILE, following.to_bytes(), state)


def add(root: "Remote", forgotten: Mapping[str, int]) -> Era:
    """All hosts will know of these forgotten users, whose objects the store never had. Gives the present era with them."""
    while True:
        era, state = _seen(root)
        more = Era(era.number, {**forgotten, **era.forgotten})
        if more == era or root.swap(_FILE, more.to_bytes(), state):
            return more


def bury(remote: "Remote") -> int:
    """Removes every object of an era that has passed, and says how many. Interrupted, it is done again."""
    names = [name for folder in _FOLDERS for name in remote.names(folder)]
    gone = [name for name in names if remote.address.era or name != DOOR]
    for name in gone:
        remote.delete(name)
    return len(gone)


def _seen(root: "Remote") -> tuple[Era, str | None]:
    """The present era and the state in which it was seen."""
    found = root.get(_FILE)
    return (Era.parse(found.content, root.where(_FILE)), found.etag) if found else (FIRST, None)
