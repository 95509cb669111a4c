"""The store read from end to end: every object that can be found by its recipe must be whole, to the last bit.

An object without a name by recipe is only remembered (gc removed its contents): it need not be whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import StoreError
from tasks.adapters.manifest import File, Manifest, sha256_of
from tasks.adapters.store import MEASURED, Store


@dataclass(frozen=True)
class Damage:
    """One thing of the store that is not what it should be, and the objects (step/digest) that need it."""

    path: Path
    sentence: str
    names: tuple[Path, ...] = ()  # by recipe, of the objects that are not whole without it
    gone: bool = False  # there is nothing to set aside


@dataclass(frozen=True)
class Scrubbed:
    """What a store consists of, and what is wrong with it."""

    objects: int
    blobs: int
    bytes: int
    orphans: int  # blobs that no object has: gc frees them
    orphan_bytes: int
    damages: tuple[Damage, ...]


def scrub(store: Store) -> Scrubbed:
    """Reads every blob and compares it with its name. gc waits meanwhile, nights do not."""
    with store.lease.steady():
        damages: list[Damage] = []
        named = dict(_manifests(store, "manifests", damages))
        objects = dict(_manifests(store, "objects", damages))
        there = {(m.step, m.digest) for m in objects.values()}
        for path, manifest in named.items():
            if (manifest.step, manifest.digest) not in there:
                what = f"{manifest.step} object {manifest.digest[:12]} cannot be found by its digest"
                damages.append(Damage(path, what))
        damages += _damaged_blobs(store, named)
        blobs = {path.name: path.stat().st_size for path in (store.root / "blobs").glob("*/*")}
        known = {f.sha256 for manifest in (*named.values(), *objects.values()) for f in files_of(manifest)}
        orphans = [size for name, size in blobs.items() if name not in known]
        return Scrubbed(len(named), len(blobs), sum(blobs.values()), len(orphans), sum(orphans), tuple(damages))


def set_aside(store: Store, damage: Damage) -> None:
    """Moves the damaged thing to bad/, and with it the names of what it was part of: the next night makes it anew."""
    for name in damage.names:
        store.set_aside(name)
    if not damage.gone:
        store.set_aside(damage.path)


def files_of(manifest: Manifest) -> tuple[File, ...]:
    """The files of an object and, last, what its build measured. The size of that one is not known (-1)."""
    measured = (File(MEASURED, manifest.measured, -1, None),) if manifest.measured else ()
    return (*manifest.files, *measured)


def _manifests(store: Store, folder: str, damages: list[Damage]) -> Iterator[tuple[Path, Manifest]]:
    for path in sorted((store.root / folder).glob("*/*.json")):
        try:
            manifest = Manifest.read(path)
        except StoreError as error:
            damages.append(Damage(path, error.what))
            continue
        if manifest is not None:
            yield path, manifest


def _damaged_blobs(store: Store, named: dict[Path, Manifest]) -> Iterator[Damage]:
    needed: dict[str, list[tuple[Path, Manifest, File]]] = {}
    for path, manifest in named.items():
        for file in files_of(manifest):
            needed.setdefault(file.sha256, []).append((path, manifest, file))
    for sha256, by in sorted(needed.items()):
        blob = store.blob(sha256)
        wrong = _wrong(blob, sha256, by[0][2].bytes)
        if wrong:
            of = ", ".join(sorted({f"{m.step}/{f.name} of {m.digest[:12]}" for _, m, f in by}))
            yield Damage(blob, f"{of} {wrong}", tuple(path for path, _, _ in by), gone=not blob.exists())


def _wrong(blob: Path, sha256: str, size: int) -> str:
    try:
        found = blob.stat().st_size
        if size not in (-1, found):
            return f"has {found:,} bytes, not {size:,}"
        return "" if sha256_of(blob) == sha256 else "is damaged: its contents are others"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
