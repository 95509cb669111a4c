"""A store's folder carried up into a bucket: contents first, then names by digest and by recipe, the heads last.

What is there already is not sent again, so that a copy which was interrupted is gone on with by doing it again.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import HomeError, StoreError
from tasks.adapters.manifest import Manifest, sha256_of
from tasks.adapters.sharing import Shared
from tasks.adapters.store import Store


@dataclass(frozen=True)
class Carried:
    """What a bucket has of a folder: objects that are whole, those that are only remembered, heads."""

    objects: int
    remembered: int
    heads: int


def fill_bucket(store: Store, shared: Shared) -> Carried:
    """Every object and head of a folder is in the bucket afterwards, each blob compared with its sha256 before it goes.

    StoreError, naming it, for what is damaged here; HomeError when the bucket's store has gone another way.
    """
    with store.lease.steady():
        whole = _manifests(store, "manifests")
        for manifest in whole:
            _require_ours(manifest, shared.name_object(manifest, lambda sha256: _sound(store, sha256), _refuse), shared)
        known = {manifest.digest for manifest in whole}
        remembered = [manifest for manifest in _manifests(store, "objects") if manifest.digest not in known]
        for manifest in remembered:
            shared.remote.swap(f"objects/{manifest.step}/{manifest.digest}.json", manifest.to_bytes(), None)
        heads = sorted((store.root / "heads").glob("*.json"))
        for path in heads:
            if not shared.remote.swap(f"heads/{path.name}", path.read_bytes(), None):
                raise _gone_on(shared, f"heads/{path.name}")
    return Carried(len(whole), len(remembered), len(heads))


def keep_ages(store: Store, cache: Store) -> None:
    """This host's cache knows when each object was made; the bucket only knows when it came. Lineage tells runs by it."""
    for path in (store.root / "objects").glob("*/*.json"):
        kept = cache.root / path.relative_to(store.root)
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            draft = cache.root / "tmp" / path.name
            with cache.locked(path.name):
                shutil.copy2(path, draft)
                os.replace(draft, kept)


def _manifests(store: Store, folder: str) -> list[Manifest]:
    found = (Manifest.read(path) for path in sorted((store.root / folder).glob("*/*.json")))
    return [manifest for manifest in found if manifest is not None]


def _sound(store: Store, sha256: str) -> Path:
    path = store.blob(sha256)
    if not path.is_file() or sha256_of(path) != sha256:
        mend = "recsys fsck --repair sets it aside; without RECSYS_STORE, on the folder. Then move again."
        raise StoreError("a file of the store is damaged or missing", where=str(path), mend=mend)
    return path


def _refuse(theirs: Manifest) -> None:
    """Another manifest under the name is looked at by `_require_ours`, whole or not."""


def _require_ours(ours: Manifest, named: Manifest, shared: Shared) -> None:
    if named != ours:
        raise _gone_on(shared, f"manifests/{ours.step}/{ours.key}.json")


def _gone_on(shared: Shared, name: str) -> HomeError:
    return HomeError(
        "the bucket has a store already, and it is another one or has gone on since",
        where=shared.remote.where(name),
        mend="Name an empty place in RECSYS_STORE.",
    )
