"""Eras of a shared store: one begins when users are forgotten or the key is changed, and into earlier ones nobody looks.

    era.json               the present one, the tokens of all who were forgotten, and by what the key is known
    blobs/ manifests/ objects/ heads/           of the first
    era-1/blobs/ ...       of the second, and so on

Hosts share no lock, so one cannot keep the others from working while it erases. It begins another era instead. Whoever is
still at work in the one before writes where nobody looks any more, is told so at the next object it names, and what it
leaves is removed by the next night.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from recsys.errors import HomeError, StoreError
from tasks.adapters.manifest import with_checksum, without_checksum

if TYPE_CHECKING:  # it needs the extra s3
    from tasks.adapters.remote import Remote

_FILE = "era.json"
DOOR = "heads/door.json"
"""A token by which homes of one store see that they have one key; of all eras until the key was changed."""
_FOLDERS = ("manifests", "objects", "heads", "blobs")


@dataclass(frozen=True)
class Era:
    """Which one it is, from 0, and when each forgotten user was forgotten (seconds UTC), by token."""

    number: int
    forgotten: Mapping[str, int]
    cleared: int = 0  # the era that began when users were last forgotten: what was made before may not serve
    door: str = ""  # a token by which the key is known; empty: it was never changed, and DOOR has it
    retired: tuple[str, ...] = ()  # keys before, oldest first, sealed under this one: by them the forgotten are known

    def to_bytes(self) -> bytes:
        """With a checksum of itself."""
        names = {"forgotten": dict(self.forgotten), "door": self.door, "retired": list(self.retired)}
        value = {"era": self.number, "cleared": self.cleared, **names}
        return json.dumps(with_checksum(value), sort_keys=True, indent=1).encode("ascii")

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """StoreError for what it was not written as."""
        try:
            value = without_checksum(json.loads(content))
            number = int(value["era"])
            forgotten = {str(token): int(at) for token, at in value["forgotten"].items()}
            # an earlier version began eras for the forgotten alone, and knew nothing of the key
            cleared, door, retired = value.get("cleared", number), value.get("door", ""), value.get("retired", ())
            return cls(number, forgotten, int(cleared), str(door), tuple(map(str, retired)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            mend = "Restore it from a copy of the bucket: without it nobody knows who was forgotten."
            raise StoreError("the file that says who was forgotten is damaged", where=where, mend=mend) from error


FIRST = Era(0, {})


def present(root: "Remote") -> Era:
    """The present era of the store that `root` is the first era of."""
    return _seen(root)[0]


def begin(root: "Remote", number: int, forgotten: Mapping[str, int], door: str) -> bool:
    """Era `number` is the present one, with these users forgotten too. False when another host was faster.

    HomeError for a home with another key than the store has: its tokens would be nobody's.
    """
    era, state = _seen(root)
    _require_door(root, era, door)
    following = replace(era, number=number, cleared=number, forgotten={**forgotten, **era.forgotten})
    return era.number == number - 1 and root.swap(_FILE, following.to_bytes(), state)


def replaced(root: "Remote", before: Era, following: Era) -> bool:
    """Whether an era took the place of another one; not if anything of that one had been changed by another host."""
    era, state = _seen(root)
    return following == era or (era == before and root.swap(_FILE, following.to_bytes(), state))


def add(root: "Remote", forgotten: Mapping[str, int], retired: tuple[str, ...], door: str) -> Era:
    """All hosts will know of these forgotten users, whose objects the store never had. Gives the present era with them.

    HomeError as of `begin`.
    """
    while True:
        era, state = _seen(root)
        _require_door(root, era, door)
        more = replace(era, forgotten={**forgotten, **era.forgotten}, retired=era.retired or retired)
        if more == era or root.swap(_FILE, more.to_bytes(), state):
            return more


def bury(remote: "Remote") -> int:
    """Removes every object of an era that has passed, and says how many. Interrupted, it is done again."""
    names = [name for folder in _FOLDERS for name in remote.names(folder)]
    gone = [name for name in names if remote.address.era or name != DOOR]
    for name in gone:
        remote.delete(name)
    return len(gone)


def _require_door(root: "Remote", era: Era, door: str) -> None:
    if era.door not in ("", door):
        raise another_key(root)


def another_key(remote: "Remote") -> HomeError:
    """For a home that has another key than its shared store."""
    return HomeError(
        "this home has another key than the shared store: its users would be strangers",
        where=remote.where(DOOR),
        mend="If it was changed in another home, run recsys rotate-key here. Otherwise begin a new home with the key of the "
        "home that began the store, named in RECSYS_VAULT_KEY.",
    )


def _seen(root: "Remote") -> tuple[Era, str | None]:
    """The present era and the state in which it was seen."""
    found = root.get(_FILE)
    return (Era.parse(found.content, root.where(_FILE)), found.etag) if found else (FIRST, None)
