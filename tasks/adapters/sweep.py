"""Mark and sweep of the store: what is kept is said by others, what a living process uses is kept anyway.

Names go before contents, so that a sweep that is interrupted leaves orphaned blobs, which the next one frees, and never
an object without its contents. Of an object that is only remembered the manifest stays: it tells for ever what a
promoted model came from. Such an object cannot be opened, and its recipe makes it anew.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recsys.errors import StoreError
from tasks.adapters.disk import remove, sync
from tasks.adapters.lease import alone
from tasks.adapters.manifest import Manifest
from tasks.adapters.store import Store

_FOR_OBJECT = re.compile(r"-for-([0-9a-f]{64})\Z")


@dataclass(frozen=True)
class Kept:
    """What is not swept: digests of objects that stay `whole`, and of those of which the manifest is `remembered`."""

    whole: frozenset[str]
    remembered: frozenset[str] = frozenset()
    heads: Callable[[str], bool] = lambda name: True  # whether a head that is no decision about an object stays


@dataclass(frozen=True)
class Freed:
    """What was removed of one kind: a step's objects, or a folder's leftovers."""

    kind: str
    things: int
    bytes: int


@dataclass
class Broom:
    """Removes, or on a dry run only counts."""

    dry_run: bool
    things: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def take(self, kind: str, path: Path, counted: bool = True) -> None:
        """A file or folder. One that holds other names of blobs is not `counted` in bytes."""
        self.things[kind] += 1
        self.bytes[kind] += _bytes(path) if counted else 0
        if not self.dry_run:
            remove(path)

    def freed(self) -> tuple[Freed, ...]:
        """By kind, the largest first."""
        kinds = sorted(self.things, key=lambda kind: (-self.bytes[kind], kind))
        return tuple(Freed(kind, self.things[kind], self.bytes[kind]) for kind in kinds)


def sweep(store: Store, marked: Callable[[], Kept], older_than: float, broom: Broom) -> None:
    """Removes what is neither marked, nor in use, nor younger than `older_than` (seconds UTC).

    `marked` is asked when nobody can begin to use anything any more, so that what ends meanwhile has left its name.
    """
    with alone(store.root) as in_use:
        shelf = _Shelf(store, marked(), in_use, older_than)
        shelf.sweep_names(broom)
        shelf.sweep_blobs(broom)
        shelf.sweep_heads(broom)
        _sweep_leftovers(store, older_than, broom)


class _Shelf:
    """The objects of a store, and which of them stay."""

    def __init__(self, store: Store, kept: Kept, in_use: frozenset[str], older_than: float) -> None:
        self.store, self.kept, self.older_than = store, kept, older_than
        # one that is damaged is the business of fsck
        self.objects = {path: _read(path) for path in sorted((store.root / "objects").glob("*/*.json"))}
        self.keys = {path: _read(path) for path in sorted((store.root / "manifests").glob("*/*.json"))}
        # made while the bucket was away, and named there by the next run
        self.waiting = {path: _read(path) for path in sorted((store.root / "scratch").glob("*.json"))}
        named = {**self.objects, **self.keys, **self.waiting}
        young = {m.digest for path, m in named.items() if m and path.stat().st_mtime >= older_than}
        self.whole = kept.whole | in_use | young

    def sweep_names(self, broom: Broom) -> None:
        """First the name by recipe, so that nobody finds the object any more, then the name by digest, then the view."""
        for path, manifest in self.keys.items():
            if manifest and manifest.digest not in self.whole:
                broom.take("names", path)
        if not broom.dry_run:
            for folder in (self.store.root / "manifests").iterdir():
                sync(folder)
        for path, manifest in self.objects.items():
            if manifest and manifest.digest not in self.whole | self.kept.remembered:
                broom.take("names", path)
        for view in (self.store.root / "views").iterdir():
            if view.name not in self.whole:
                broom.take("views", view, counted=False)

    def sweep_blobs(self, broom: Broom) -> None:
        """Every blob that no whole object has; counted for the step that made it."""
        stays: set[str] = set()
        made_by: dict[str, str] = {}  # step by blob
        for manifest in [m for m in (*self.objects.values(), *self.keys.values(), *self.waiting.values()) if m]:
            blobs = {file.sha256 for file in manifest.files} | ({manifest.measured} if manifest.measured else set())
            if manifest.digest in self.whole:
                stays |= blobs
            made_by |= dict.fromkeys(blobs, manifest.step)
        for blob in (self.store.root / "blobs").glob("*/*"):
            if blob.name not in stays:
                broom.take(made_by.get(blob.name, "orphaned blobs"), blob)

    def sweep_heads(self, broom: Broom) -> None:
        """Decisions about objects that are gone."""
        for path in (self.store.root / "heads").glob("*.json"):
            about = _FOR_OBJECT.search(path.stem)
            stays = about[1] in self.whole if about else self.kept.heads(path.stem)
            if not stays and path.stat().st_mtime < self.older_than:
                broom.take("heads", path)


def _sweep_leftovers(store: Store, older_than: float, broom: Broom) -> None:
    """What killed builds left, what was set aside as evidence, and locks that nobody holds."""
    for name in ("tmp", "scratch"):
        for left in (store.root / name).iterdir():
            with store.locked(left.name, wait=False) as free:
                there = free and os.path.lexists(left)  # its build may have ended since the folder was listed
                if there and (name == "tmp" or _changed(left) < older_than):
                    broom.take("left by killed builds", left)
    for evidence in (store.root / "bad").iterdir():
        if evidence.lstat().st_ctime < older_than:  # when it was set aside; its contents are older
            broom.take("set aside as damaged", evidence)
    for lock in (store.root / "locks").iterdir():
        with store.locked(lock.name, wait=False) as free:
            if free and not broom.dry_run:
                lock.unlink(missing_ok=True)


def sweep_temp(folder: Path, names: str, older_than: float, broom: Broom) -> None:
    """Removes what killed commands left in a folder under such `names`: old, and no living process is in it or reads it."""
    in_use = set(_open_below(folder))
    for left in folder.glob(names):
        with contextlib.suppress(FileNotFoundError):  # whoever made it has just removed it
            if left.name not in in_use and _changed(left) < older_than:
                broom.take("left by killed commands", left)


def _open_below(folder: Path) -> Iterator[str]:
    """Names in a folder that a process works in or has open."""
    place = Path(os.path.realpath(folder))
    for process in Path("/proc").glob("[0-9]*"):
        for link in (process / "cwd", *_open_files(process)):
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                target = Path(os.readlink(link))
                if place in target.parents:
                    yield target.relative_to(place).parts[0]


def _open_files(process: Path) -> list[Path]:
    """Links to them; none of one that has ended, or is somebody else's."""
    try:
        return [process / "fd" / name for name in os.listdir(process / "fd")]
    except OSError:
        return []


def _read(path: Path) -> Manifest | None:
    try:
        return Manifest.read(path)
    except StoreError:
        return None


def _changed(path: Path) -> float:
    """When anything in it last changed, seconds UTC."""
    return max(each.lstat().st_mtime for each in (path, *_inside(path)))


def _bytes(path: Path) -> int:
    return sum(each.lstat().st_size for each in (path, *_inside(path)) if not each.is_dir())


def _inside(path: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for root, folders, names in os.walk(path):
            yield from (Path(root, name) for name in (*folders, *names))
