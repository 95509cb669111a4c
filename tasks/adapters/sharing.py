"""A store that several hosts share: the bucket has the truth, a host's folder is its cache.

The bucket has blobs/, manifests/, objects/ and heads/ under the very names they have in a folder. A folder that is the
cache of a bucket says so in a file, `shared`, so that whoever opens it works with the bucket.

Contents go up before the names that show them, and the name by recipe last, if nobody was faster: of two hosts that
made the same recipe one names its object, and the other takes that object for its own. What is damaged in the bucket
is refused by its sha256, and replaced by whoever makes it again.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.errors import ConfigError, HomeError, StoreError
from tasks.adapters import era
from tasks.adapters.address import Address
from tasks.adapters.lease import alone
from tasks.adapters.manifest import Manifest, sha256_of

if TYPE_CHECKING:  # it needs the extra s3
    from tasks.adapters.remote import Remote

CACHES = "s3"
"""Folder of a home's cache with one folder a bucket."""

_FILE = "shared"
_MEND = "Run the same command again: what is damaged is made anew."


@dataclass(frozen=True)
class Named:
    """A manifest of the bucket, and since when it is there (seconds UTC)."""

    manifest: Manifest
    modified: float


class Shared:
    """The objects of a store in a bucket. HomeError when the bucket does not answer or refuses."""

    def __init__(self, remote: "Remote", cleared: int = 0) -> None:
        """`cleared` is the era that began when users were last forgotten, as far as this one knows."""
        self.remote, self.cleared = remote, cleared
        self._damaged: set[str] = set()  # blobs of the bucket that this process has found to be others

    def in_era(self, number: int) -> "Shared":
        """The same store in another era."""
        return Shared(_remote(self.remote.address.in_era(number)))

    @cached_property
    def root(self) -> "Remote":
        """Of the first era, in which it is said which one is present."""
        return root_of(self.remote.address)

    def require_present(self) -> None:
        """HomeError when another era has begun since: what is made here from now on, nobody would look into."""
        if era.present(self.root).number != self.remote.address.era:
            what = "users were forgotten in the shared store, or its key was changed, while this was at work: what it makes is not kept"
            mend = "Run the same command again: it makes everything anew."
            raise HomeError(what, where=self.remote.where(), mend=mend)

    def fetch(self, sha256: str, name: str, to: Path) -> None:
        """Brings a blob into a new file. StoreError, naming it, when the bucket has it not or it is damaged."""
        if not self.remote.fetch(_blob(sha256), to):
            what, where = f"{name} is missing, expected sha256 {sha256}", self.remote.where(_blob(sha256))
            raise StoreError(what, where=where, mend=_MEND)
        if (found := sha256_of(to)) != sha256:
            self._damaged.add(sha256)
            what = f"{name} is damaged, expected sha256 {sha256}, found {found}"
            raise StoreError(what, where=self.remote.where(_blob(sha256)), mend=_MEND)

    def send(self, sha256: str, path: Path) -> None:
        """Puts a blob, unless the bucket has it and nothing is known against it."""
        if sha256 in self._damaged or self.remote.size(_blob(sha256)) != path.stat().st_size:
            self.remote.send(_blob(sha256), path)
            self._damaged.discard(sha256)

    def manifest(self, name: str) -> Named | None:
        """The manifest under a name; None when there is none, StoreError when it is damaged."""
        found = self.remote.get(name)
        return Named(Manifest.parse(found.content, name, self.remote.where(name)), found.modified) if found else None

    def name_object(
        self, manifest: Manifest, blob: Callable[[str], Path], require_whole: Callable[[Manifest], object]
    ) -> Manifest:
        """Names an object of this host, contents first; or gives the one that another host has named, if it is whole.

        `require_whole` raises StoreError for an object that is not: its manifest is replaced.
        """
        for sha256 in manifest.blobs:
            self.send(sha256, blob(sha256))
        self._name(f"objects/{manifest.step}/{manifest.digest}.json", manifest, lambda theirs: None)
        return self._name(f"manifests/{manifest.step}/{manifest.key}.json", manifest, require_whole)

    def _name(self, name: str, manifest: Manifest, require_whole: Callable[[Manifest], object]) -> Manifest:
        seen = None
        while not self.remote.swap(name, manifest.to_bytes(), seen):
            found = self.remote.get(name)
            seen = found.etag if found else None
            if found is not None:
                try:
                    theirs = Manifest.parse(found.content, name, self.remote.where(name))
                    require_whole(theirs)
                    return theirs
                except StoreError:
                    continue
        return manifest

    def steps(self) -> dict[str, str]:
        """The step of every object, by digest. Lists the bucket."""
        paths = (Path(name) for name in self.remote.names("objects"))
        return {path.stem: path.parent.name for path in paths}


def shared_by(root: Path) -> Shared | None:
    """The bucket that a folder is the cache of, if it is one. ConfigError when the extra `s3` is not installed."""
    try:
        said = json.loads((root / _FILE).read_bytes())
        number = said.get("era", 0)
        address = Address.of(said["address"], said["endpoint"]).in_era(number)
        return Shared(_remote(address), said.get("cleared", number))
    except FileNotFoundError:
        if root.parent.name == CACHES:
            mend = "Run recsys status once: it makes the cache."
            raise HomeError("the cache of the shared store is gone", where=str(root), mend=mend) from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        what = "the file that says whose cache this folder is is damaged"
        raise HomeError(what, where=str(root / _FILE), mend="Delete the folder: it is filled again.") from error


def join(root: Path, address: Address, sample: Callable[[], str]) -> None:
    """Makes a folder the cache of a bucket, once. `sample` gives a token of this home's door.

    HomeError when the bucket cannot be used, or its users came through another door; ConfigError when its server
    takes no notice of conditions, on which all agreement rests.
    """
    if (root / _FILE).exists():
        return
    remote, ours = root_of(address), sample()
    present = era.present(remote)  # whoever is refused here has learnt why before anything is written
    first = json.dumps({"sample": ours}).encode("ascii")
    if (present.door != ours) if present.door else not remote.swap(era.DOOR, first, None):
        raise era.another_key(remote)
    if remote.swap(era.DOOR, b"another", None):
        what = "the store's server takes no notice of If-None-Match: two hosts could not agree"
        raise ConfigError(what, where=remote.where(), mend="Use another server, or a folder.")
    draft = root / f"{_FILE}.draft"
    said = {"address": address.text, "endpoint": address.endpoint, "era": address.era}
    draft.write_text(json.dumps({**said, "cleared": min(present.cleared, address.era)}))
    draft.replace(root / _FILE)


def root_of(address: Address) -> "Remote":
    """Of the store at an address, where it is said which era is present."""
    return _remote(address.in_era(0))


def known_era(caches: Path, address: Address) -> Address:
    """The address in the era that this host knows of, as `follow_era` wrote it down."""
    try:
        return address.in_era(int((caches / f"{address.folder}.era").read_text()))
    except (FileNotFoundError, ValueError):
        return address


def follow_era(caches: Path, address: Address) -> Address:
    """The address in the present era, which is written down. Where the bucket does not answer it is the one that is known.

    Caches of eras that have passed are removed, unless a living process still works in one: then by a later call.
    StoreError when the bucket has forgotten who was forgotten.
    """
    known, first = address.era, address.in_era(0).folder
    with contextlib.suppress(HomeError):
        address = address.in_era(era.present(root_of(address)).number)
    if address.era < known:
        what = f"the bucket is in era {address.era} of its store, and this host knows era {known}: its era.json is lost or old"
        mend = "Restore it from a copy of the bucket: it says who was forgotten."
        raise StoreError(what, where=address.text, mend=mend)
    if address.era > known:
        draft = caches / f"{first}.era.{os.getpid()}"
        draft.write_text(str(address.era))
        draft.replace(caches / f"{first}.era")
    for cache in (caches / first, *caches.glob(f"{first}-era-*[0-9]")):
        if cache.name != address.folder and cache.is_dir():
            with contextlib.suppress(FileNotFoundError), alone(cache) as in_use:  # another command may be faster
                if not in_use:
                    cache.rename(cache.with_name(f"{cache.name}-passed"))
    for passed in caches.glob(f"{first}*-passed"):
        shutil.rmtree(passed, ignore_errors=True)
    return address


def _remote(address: Address) -> "Remote":
    try:
        from tasks.adapters.remote import Remote
    except ImportError as error:
        mend = "pip install 'recsys-factory[s3]'"
        raise ConfigError("a store in S3 needs boto3, which is not installed", where=address.text, mend=mend) from error
    return Remote(address)


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"
