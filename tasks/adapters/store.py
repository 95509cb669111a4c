"""The store: every object is named by what it was made from and by what it is, and is whole or absent.

    blobs/<aa>/<sha256>            contents, read-only, each once
    manifests/<step>/<key>.json    what a recipe made; committed last, by put-if-absent
    objects/<step>/<digest>.json   the same manifest, found by what the object is
    views/<digest>/                an object as a folder of hard links to its blobs
    tmp/<key>/  scratch/<key>/     a build under way, and what it may resume from after a kill
    locks/<key>  heads/<name>.json  bad/
    leases/      which objects a living process has made or opened (see lease.py): they are not swept

A reader checks sha256 before the first use in a process. A damaged blob is set aside in bad/ as evidence and
its object is made again. The lock is flock, which the kernel drops with its holder: no lock is ever stale.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq

from recsys.errors import StoreError
from tasks.adapters.disk import put_if_absent, remove, sync, told, write
from tasks.adapters.lease import LEASES, Lease
from tasks.adapters.manifest import File, Manifest, Recipe, canonical, sha256_of

__all__ = ["MEASURED", "File", "Manifest", "Recipe", "Store", "Stored", "canonical", "sha256_of"]

MEASURED = "measured.json"
"""What differs from run to run (seconds, latencies): kept with the object, not in its digest nor its view."""


@dataclass(frozen=True)
class Stored:
    """An object of the store. `rows` counts its Parquet rows, `seconds` is what this call took."""

    step: str
    key: str
    digest: str
    rows: int
    reused: bool
    seconds: float


class Store:
    """Objects under one folder. Safe for many processes of one host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lease = Lease(root)
        self._sound: set[str] = set()  # blobs whose sha256 was checked in this process
        for name in ("blobs", "manifests", "objects", "views", "tmp", "scratch", "locks", "heads", "bad", LEASES):
            with told(root / name):
                (root / name).mkdir(parents=True, exist_ok=True)

    # -- making

    def make(self, recipe: Recipe, build: Callable[[Path], object]) -> Stored:
        """The object of `recipe`: found and verified, or built by `build(folder)` and committed.

        Of several processes with the same recipe one builds and the others wait and reuse. HomeError when the
        disk is full or refuses; what else `build` raises goes through, and nothing of the object is visible.
        """
        started = time.monotonic()
        with self.locked(recipe.key):
            self._sweep(recipe.key)
            manifest = self._whole(recipe)
            reused = manifest is not None
            if manifest is None:
                draft = self.root / "tmp" / recipe.key
                with told(draft):
                    remove(draft)
                    draft.mkdir()
                    build(draft)
                    with self.lease.steady():
                        manifest = self._commit(recipe, draft)
                        self.lease.hold(manifest.digest)
            for left in (self.root / "tmp" / recipe.key, self.root / "scratch" / recipe.key):
                with told(left):
                    remove(left)
        return _stored(manifest, reused, time.monotonic() - started)

    def scratch(self, recipe: Recipe) -> Path:
        """A folder that outlives a killed build of `recipe`, for checkpoints; removed after its commit."""
        folder = self.root / "scratch" / recipe.key
        with told(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def find(self, recipe: Recipe) -> Stored | None:
        """The object of `recipe` when it is there and whole."""
        started = time.monotonic()
        manifest = self._whole(recipe)
        return _stored(manifest, True, time.monotonic() - started) if manifest else None

    def put_back(self, step: str, digest: str, folder: Path) -> None:
        """Gives an object its contents again, from a copy of its files. StoreError when they are others."""
        with self.locked(digest), self.lease.steady():
            manifest = self.manifest(step, digest)
            draft = self.root / "tmp" / digest
            with told(draft):
                remove(draft)
                for file in manifest.files:
                    (draft / file.name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / file.name, draft / file.name)
                    if sha256_of(draft / file.name) != file.sha256:
                        raise StoreError(f"{file.name} of the copy is not what it was", where=str(folder))
                    self._put(draft / file.name)
                remove(draft)

    # -- reading

    def open(self, step: str, digest: str) -> Path:
        """An object as a folder of read-only files, each verified. StoreError if one is gone or damaged."""
        with self.lease.steady():
            manifest = self.manifest(step, digest)
            for file in manifest.files:
                self._verify(file.sha256, f"{step}/{file.name}")
            view = self.root / "views" / digest
            if not self._shows(view, manifest):
                self._link_view(view, manifest)
            self.lease.hold(digest)
        return view

    def manifest(self, step: str, digest: str) -> Manifest:
        """What an object consists of and comes from."""
        path = self.root / "objects" / step / f"{digest}.json"
        try:
            manifest = Manifest.read(path)
        except StoreError:
            self.set_aside(path)
            raise
        if manifest is None:
            raise StoreError(f"the store has no {step} object {digest}", where=str(self.root))
        return manifest

    def read(self, step: str, digest: str, name: str) -> bytes:
        """One file of an object, verified; its others are not looked at. StoreError when there is no such file."""
        for file in self.manifest(step, digest).files:
            if file.name == name:
                self._verify(file.sha256, f"{step}/{name}")
                return self.blob(file.sha256).read_bytes()
        raise StoreError(f"the {step} object {digest} has no file {name}", where=str(self.root))

    def measured(self, step: str, digest: str) -> Mapping[str, Any]:
        """What the build wrote in measured.json; empty when it wrote none."""
        sha256 = self.manifest(step, digest).measured
        if sha256 is None:
            return {}
        self._verify(sha256, f"{step}/{MEASURED}")
        measured: Mapping[str, Any] = json.loads(self.blob(sha256).read_bytes())
        return measured

    def made_at(self, step: str, digest: str) -> int | None:
        """Seconds UTC at which an object was first committed; None when the store has it not."""
        try:
            return int((self.root / "objects" / step / f"{digest}.json").stat().st_mtime)
        except FileNotFoundError:
            return None

    def lineage(self, digest: str) -> Mapping[str, Manifest | None]:
        """An object and everything it was made from, by digest; None for what the store has not, or no longer.

        A year of nights is a chain a thousand objects long: each refers to the one before it.
        """
        found: dict[str, Manifest | None] = {}
        waiting = [digest]
        while waiting:
            if (at := waiting.pop()) not in found:
                paths = sorted((self.root / "objects").glob(f"*/{at}.json"))
                manifest = found[at] = Manifest.read(paths[0]) if paths else None
                waiting += manifest.parent_digests if manifest else ()
        return found

    # -- heads: the few names that are not digests

    def head(self, name: str) -> Mapping[str, Any] | None:
        """What `set_head` last wrote under a name."""
        try:
            value: Mapping[str, Any] = json.loads((self.root / "heads" / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError("a head of the store is damaged", where=str(self.root / "heads" / name)) from error
        return value

    def set_head(self, name: str, value: Mapping[str, Any]) -> None:
        """Points a name at a value, at once and for good."""
        path = self.root / "heads" / f"{name}.json"
        with self._drafted(path, value) as draft:
            os.replace(draft, path)
            sync(path.parent)

    def once(self, name: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was first recorded under a name for ever: `value` now, or what an earlier call recorded."""
        path = self.root / "heads" / f"{name}.json"
        with self._drafted(path, value) as draft:
            first = put_if_absent(draft, path)
        return value if first else (self.head(name) or value)

    # -- inside

    def blob(self, sha256: str) -> Path:
        """Where a blob is, or would be."""
        return self.root / "blobs" / sha256[:2] / sha256

    @contextlib.contextmanager
    def _drafted(self, path: Path, value: Mapping[str, Any]) -> Iterator[Path]:
        """A durable file with the value as JSON, to be given the name `path`."""
        draft = self.root / "tmp" / "heads"
        with self.locked(draft.name), told(path.parent):
            remove(draft)
            write(draft, json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode("ascii"))
            yield draft
            remove(draft)

    @contextlib.contextmanager
    def locked(self, key: str, wait: bool = True) -> Iterator[bool]:
        """The lock of a recipe or of a part of the store; False when another holds it and we do not `wait`."""
        path = self.root / "locks" / key
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

    def _sweep(self, mine: str) -> None:
        """Removes what killed builds of other recipes left in tmp/. Who still builds holds its lock."""
        for left in list((self.root / "tmp").iterdir()):
            if left.name != mine:
                with self.locked(left.name, wait=False) as free:
                    if free:
                        remove(left)

    def _whole(self, recipe: Recipe) -> Manifest | None:
        """The manifest of `recipe` if every blob is sound; else None, and what is not is set aside."""
        path = self.root / "manifests" / recipe.step / f"{recipe.key}.json"
        with self.lease.steady():
            try:
                manifest = Manifest.read(path)
                if manifest is None:
                    return None
                self.manifest(recipe.step, manifest.digest)
                for file in manifest.files:
                    self._verify(file.sha256, file.name)
                if manifest.measured:
                    self._verify(manifest.measured, MEASURED)
            except StoreError:
                self.set_aside(path)
                return None
            self.lease.hold(manifest.digest)
        return manifest

    def _verify(self, sha256: str, name: str) -> None:
        """StoreError unless the blob is there and is what its name says; a damaged one is moved to bad/."""
        path = self.blob(sha256)
        if sha256 in self._sound and path.exists():
            return
        mend = "Run the same command again: what is damaged is made anew."
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            raise StoreError(f"{name} is missing, expected sha256 {sha256}", where=str(path), mend=mend) from None
        if found != sha256:
            self.set_aside(path)
            raise StoreError(f"{name} is damaged, expected sha256 {sha256}, found {found}", where=str(path), mend=mend)
        self._sound.add(sha256)

    def set_aside(self, path: Path) -> None:
        """Moves what is damaged to bad/, as evidence. What is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, self.root / "bad" / f"{path.name}-{uuid.uuid4().hex[:8]}")

    def _commit(self, recipe: Recipe, draft: Path) -> Manifest:
        """Moves a finished draft into blobs, then names it: first by digest, last by key."""
        files = []
        measured = None
        names = sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_symlink() or not p.is_dir())
        for name in names:
            path = draft / name
            if path.is_symlink() or not path.is_file():
                raise StoreError(f"step {recipe.step} wrote {name}, which is no plain file")
            rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
            file = File(name, self._put(path), path.stat().st_size, rows)
            if name == MEASURED:
                measured = file.sha256
            else:
                files.append(file)
        if not files:
            raise StoreError(f"step {recipe.step} wrote nothing")
        manifest = Manifest.of(recipe, tuple(files), measured)
        text = draft / ".manifest"
        write(text, manifest.to_bytes())
        named = self.root / "objects" / recipe.step / f"{manifest.digest}.json"
        if not put_if_absent(text, named):
            with contextlib.suppress(StoreError):  # damaged: set aside, and named again
                self.manifest(recipe.step, manifest.digest)
            put_if_absent(text, named)
        path = self.root / "manifests" / recipe.step / f"{recipe.key}.json"
        if put_if_absent(text, path):
            return manifest
        theirs = Manifest.read(path)  # another host was first; both made the same, or theirs counts
        return theirs or manifest

    def _put(self, path: Path) -> str:
        """Links a file into blobs, durably; a damaged blob of the same name is set aside first."""
        path.chmod(0o444)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        blob = self.blob(sha256)
        if not put_if_absent(path, blob):
            with contextlib.suppress(StoreError):
                self._verify(sha256, blob.name)
            put_if_absent(path, blob)
        self._sound.add(sha256)
        return sha256

    def _shows(self, view: Path, manifest: Manifest) -> bool:
        """Whether a view has exactly the object's files, each the very inode of its blob."""
        if not view.is_dir():
            return False
        there = {p.relative_to(view).as_posix() for p in view.rglob("*") if not p.is_dir()}
        return there == {f.name for f in manifest.files} and all(
            os.path.samefile(view / f.name, self.blob(f.sha256)) for f in manifest.files
        )

    def _link_view(self, view: Path, manifest: Manifest) -> None:
        draft = self.root / "tmp" / "views"
        with self.locked(draft.name), told(view):
            if self._shows(view, manifest):  # another process was faster
                return
            remove(draft)
            for file in manifest.files:
                (draft / file.name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob(file.sha256), draft / file.name)
            remove(view)
            os.rename(draft, view)


def _is_named(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _stored(manifest: Manifest, reused: bool, seconds: float) -> Stored:
    rows = sum(f.rows or 0 for f in manifest.files)
    return Stored(manifest.step, manifest.key, manifest.digest, rows, reused, seconds)
