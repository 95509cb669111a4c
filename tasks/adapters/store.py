"""The store: every object is named by what it was made from and by what it is, and is whole or absent.

    blobs/<aa>/<sha256>            contents, read-only, each once
    manifests/<step>/<key>.json    what a recipe made; committed last, by put-if-absent
    objects/<step>/<digest>.json   the same manifest, found by what the object is
    views/<digest>/                an object as a folder of hard links to its blobs
    tmp/<key>/  scratch/<key>/     a build under way, and what it may resume from after a kill
    locks/<key>  heads/<name>.json  bad/
    leases/      which objects a living process has made or opened (see lease.py): they are not swept

A reader checks sha256 before the first use in a process. A damaged blob is set aside in bad/ as evidence and
its object is made again. The folder may be the cache of a bucket that several hosts share (see sharing.py): what it
lacks is brought when it is asked for, and what is made here is named there first.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys.errors import StoreError
from tasks.adapters.disk import put_if_absent, put_instead, remove, told, write
from tasks.adapters.heads import Heads, Value
from tasks.adapters.lease import LEASES, Lease
from tasks.adapters.locks import LOCKS, locked
from tasks.adapters.manifest import MEASURED, File, Manifest, Recipe, canonical, sha256_of
from tasks.adapters.sharing import shared_by
from tasks.adapters.views import show

__all__ = ["MEASURED", "File", "Manifest", "Recipe", "Store", "Stored", "canonical", "sha256_of"]


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
    """Objects under one folder. Safe for many processes of one host, and where it caches a bucket for many hosts.

    Every verb raises HomeError when there is a bucket and it does not answer or refuses.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = shared_by(root)
        self.lease = Lease(root)
        self._heads = Heads(root, self.shared)
        self._sound: set[str] = set()  # blobs whose sha256 was checked in this process
        for name in ("blobs", "manifests", "objects", "views", "tmp", "scratch", LOCKS, "heads", "bad", LEASES):
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
            manifest = self._whole(recipe) or self._unshared(recipe)
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
            for left in (self.root / "tmp" / recipe.key, self.root / "scratch" / recipe.key, self._awaiting(recipe)):
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
                    if self.shared:
                        self.shared.send(file.sha256, self.blob(file.sha256))
                remove(draft)

    # -- reading

    def open(self, step: str, digest: str) -> Path:
        """An object as a folder of read-only files, each verified. StoreError if one is gone or damaged."""
        with self.lease.steady():
            manifest = self.manifest(step, digest)
            for file in manifest.files:
                self._verify(file.sha256, f"{step}/{file.name}")
            view = show(self.root, manifest, self.blob)
            self.lease.hold(digest)
        return view

    def manifest(self, step: str, digest: str) -> Manifest:
        """What an object consists of and comes from."""
        name = f"objects/{step}/{digest}.json"
        manifest = self._read(name)
        if manifest is None and self.shared and (named := self.shared.manifest(name)):
            manifest = named.manifest
            self._name(manifest, name, named.modified)
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
        return dict(json.loads(self.blob(sha256).read_bytes()))

    def made_at(self, step: str, digest: str) -> int | None:
        """Seconds UTC at which an object was first committed; None when the store has it not."""
        if self.shared:
            with contextlib.suppress(StoreError):
                self.manifest(step, digest)
        try:
            return int((self.root / "objects" / step / f"{digest}.json").stat().st_mtime)
        except FileNotFoundError:
            return None

    def lineage(self, digest: str) -> Mapping[str, Manifest | None]:
        """An object and everything it was made from, by digest; None for what the store has not, or no longer.

        A year of nights is a chain a thousand objects long: each refers to the one before it.
        """
        found: dict[str, Manifest | None] = {}
        elsewhere: Mapping[str, str] | None = None
        waiting = [digest]
        while waiting:
            if (at := waiting.pop()) not in found:
                paths = sorted((self.root / "objects").glob(f"*/{at}.json"))
                manifest = Manifest.read(paths[0]) if paths else None
                if manifest is None and self.shared:
                    elsewhere = self.shared.steps() if elsewhere is None else elsewhere
                    manifest = self.manifest(elsewhere[at], at) if at in elsewhere else None
                found[at] = manifest
                waiting += manifest.parent_digests if manifest else ()
        return found

    # -- heads: the few names that are not digests

    def head(self, name: str) -> Value | None:
        """Where a name points."""
        return self._heads.read(name)

    def set_head(self, name: str, value: Value) -> None:
        """Points a name at a value, at once and for good."""
        self._heads.point(name, value)

    def move_head(self, name: str, change: Callable[[Value | None], Value | None]) -> Value | None:
        """Points a name at what `change` makes of its value, None: where it did; nobody comes between. Gives what it is."""
        return self._heads.move(name, change)

    def once(self, name: str, value: Value) -> Value:
        """What was first recorded under a name for ever: `value` now, or what an earlier call recorded."""
        return self._heads.once(name, value)

    # -- inside

    def blob(self, sha256: str) -> Path:
        """Where a blob is, or would be."""
        return self.root / "blobs" / sha256[:2] / sha256

    def locked(self, key: str, wait: bool = True) -> contextlib.AbstractContextManager[bool]:
        """The lock of a recipe or of a part of the store; False when another holds it and we do not `wait`."""
        return locked(self.root, key, wait)

    def _sweep(self, mine: str) -> None:
        """Removes what killed builds of other recipes left in tmp/. Who still builds holds its lock."""
        for left in list((self.root / "tmp").iterdir()):
            if left.name != mine:
                with self.locked(left.name, wait=False) as free:
                    if free:
                        remove(left)

    def _whole(self, recipe: Recipe) -> Manifest | None:
        """The manifest of `recipe` if every blob is sound; else None, and what is not is set aside."""
        name = f"manifests/{recipe.step}/{recipe.key}.json"
        with self.lease.steady():
            try:
                manifest = self._read(name)
                named = self.shared.manifest(name) if manifest is None and self.shared else None
                manifest = named.manifest if named else manifest
                if manifest is None:
                    return None
                self.manifest(recipe.step, manifest.digest)
                self._require_whole(manifest)
            except StoreError:
                self.set_aside(self.root / name)
                return None
            if named:
                self._name(manifest, name, named.modified)
            self.lease.hold(manifest.digest)
        return manifest

    def _require_whole(self, manifest: Manifest) -> None:
        for sha256, name in manifest.blobs.items():
            self._verify(sha256, name)

    def _verify(self, sha256: str, name: str) -> None:
        """StoreError unless the blob is there and is what its name says; a damaged one is moved to bad/."""
        path = self.blob(sha256)
        if sha256 in self._sound and path.exists():
            return
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            found = ""
        if found != sha256:
            mend = "Run the same command again: what is damaged is made anew."
            if found:
                self.set_aside(path)
            if self.shared and not path.exists():
                self._fetch(sha256, name)
            else:
                what = (
                    f"damaged, expected sha256 {sha256}, found {found}"
                    if found
                    else f"missing, expected sha256 {sha256}"
                )
                raise StoreError(f"{name} is {what}", where=str(path), mend=mend)
        self._sound.add(sha256)

    def _fetch(self, sha256: str, name: str) -> None:
        """Brings a blob from the bucket. A damaged one is kept in bad/ as evidence and never becomes a blob."""
        assert self.shared is not None
        draft = self.root / "tmp" / sha256
        with self.locked(sha256), told(draft):
            if self.blob(sha256).exists():  # another process was faster
                return
            remove(draft)
            try:
                self.shared.fetch(sha256, name, draft)
                draft.chmod(0o444)
                put_if_absent(draft, self.blob(sha256))
            except StoreError:
                self.set_aside(draft)
                raise
            finally:
                remove(draft)

    def _read(self, name: str) -> Manifest | None:
        """A manifest of this folder. A damaged one is set aside: StoreError, unless the bucket may have it."""
        try:
            return Manifest.read(self.root / name)
        except StoreError:
            self.set_aside(self.root / name)
            if self.shared and not (self.root / name).exists():
                return None
            raise

    def _name(self, manifest: Manifest, name: str, modified: float) -> None:
        """Keeps a manifest of the bucket here too, as old as it is there."""
        draft = self.root / "tmp" / f"named-{manifest.digest}"
        with self.locked(draft.name), told(draft):
            remove(draft)
            write(draft, manifest.to_bytes())
            os.utime(draft, (modified, modified))
            put_if_absent(draft, self.root / name)
            remove(draft)

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
        return self._named(recipe, Manifest.of(recipe, tuple(files), measured), draft / ".manifest")

    def _named(self, recipe: Recipe, manifest: Manifest, text: Path) -> Manifest:
        """Names what is in blobs: in the bucket if there is one, then here. The object that has the name, if not ours."""
        if self.shared:
            self._awaiting(recipe).write_bytes(manifest.to_bytes())
            self.shared.require_present()
            manifest = self.shared.name_object(manifest, self.blob, self._require_whole)
        write(text, manifest.to_bytes())
        named = self.root / "objects" / recipe.step / f"{manifest.digest}.json"
        if not put_if_absent(text, named):
            try:
                self._require_whole(self.manifest(recipe.step, manifest.digest))
            except StoreError:  # damaged, or kept for its lineage alone when its measurements were swept
                put_instead(text, named)
        path = self.root / "manifests" / recipe.step / f"{recipe.key}.json"
        if put_if_absent(text, path):
            return manifest
        return Manifest.read(path) or manifest  # another process was first; both made the same, or theirs counts

    def _awaiting(self, recipe: Recipe) -> Path:
        """The manifest of what is made, but not yet named in the bucket."""
        return self.root / "scratch" / f"{recipe.key}.json"

    def _unshared(self, recipe: Recipe) -> Manifest | None:
        """Names what an earlier call made when the bucket did not answer."""
        if self.shared is None:
            return None
        draft = self.root / "tmp" / recipe.key
        with self.lease.steady(), told(draft):
            try:
                manifest = Manifest.read(self._awaiting(recipe))
                if manifest is None:
                    return None
                self._require_whole(manifest)
            except StoreError:
                remove(self._awaiting(recipe))
                return None
            remove(draft)
            draft.mkdir()
            manifest = self._named(recipe, manifest, draft / ".manifest")
            self.lease.hold(manifest.digest)
        return manifest

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


def _stored(manifest: Manifest, reused: bool, seconds: float) -> Stored:
    rows = sum(f.rows or 0 for f in manifest.files)
    return Stored(manifest.step, manifest.key, manifest.digest, rows, reused, seconds)
