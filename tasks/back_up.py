"""backup and restore of a home: consistent while servers and nights run, whole or refused, at another place if need be.

What refers is copied before what it refers to: first the names (ledger's mirror, heads, batch scores), then the
databases by SQLite's own backup, then manifests, then contents; so that nothing in the copy points to nothing.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from recsys.errors import ConfigError, HomeError, StoreError
from tasks.adapters.archive import ArchiveWriter, extract, require_absent, writing
from tasks.adapters.disk import remove, sync
from tasks.adapters.manifest import Manifest
from tasks.adapters.relocate import close_open_runs, relocate
from tasks.adapters.scrub import files_of
from tasks.adapters.settings import HOME_FORMAT, Settings
from tasks.adapters.store import Store
from tasks.adapters.vault import sample_of
from tasks.adapters.vault_key import VaultKey, next_to, settle

_DATABASES = (("mlflow", "mlflow.db"), ("prefect", "prefect.db"), ("vault", "users.sqlite"))
_LEFT_OUT = frozenset({"cache", "tmp", "run", "logs", "serving", "store"})
"""Folders of a home that are made anew, and the store, which is copied by what its manifests name."""


@dataclass(frozen=True)
class BackedUp:
    """What an archive holds."""

    files: int
    bytes: int
    key: bool  # with it the user ids can be read
    left_out: str  # what is not in it although it belongs to the home, in words; empty: nothing


@dataclass(frozen=True)
class Restored:
    """What a home was made of."""

    files: int
    home: str  # where it was when the backup was taken
    made: str  # ISO 8601, UTC
    places: int  # that were rewritten, because it lies elsewhere now
    closed: int  # runs of MLflow that were open when the backup was taken


def back_up(settings: Settings, to: Path, now: datetime) -> BackedUp:
    """Writes `to`, which appears when it is whole. ConfigError when something is there, HomeError when the disk is full."""
    if to.exists() or not to.absolute().parent.is_dir():
        raise ConfigError("this is no new file in a folder that is there", where=str(to), mend="Write --to FILE.tar.")
    store = Store(settings.store)
    with (
        TemporaryDirectory(dir=settings.temp, prefix="backup-") as folder,
        store.lease.steady(),
        writing(to.absolute()) as archive,
    ):
        for name, path in _names(settings):
            archive.add(name, path)
        settle(settings.vault_key, sample_of(settings.vault))  # a change that was killed at its last step
        sample = sample_of(settings.vault)
        _add_databases(archive, settings, Path(folder))
        _add_objects(archive, store)
        if settings.keeps_key:
            _add_key(archive, settings, sample)
        _add_the_rest(archive, settings)
        archive.close(settings.home, HOME_FORMAT, now.isoformat(timespec="seconds"))
    return BackedUp(len(archive.files), archive.bytes, settings.keeps_key, " and ".join(_elsewhere(settings)))


def restore(archive: Path, home: Path) -> Restored:
    """Makes `home` of an archive, whole or not at all.

    DataError when the archive is damaged, partial or hostile, HomeError when there is a home, or the disk is full.
    """
    home = home.expanduser().absolute()
    require_absent(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = home.with_name(f".{home.name}.restoring")
    remove(draft)
    try:
        draft.mkdir(mode=0o700)
        contents = extract(archive, draft)
        if contents.home_format > HOME_FORMAT:
            what = f"the archive is of a home of format {contents.home_format}, this version knows {HOME_FORMAT}"
            raise HomeError(what, where=str(archive), mend="Install the version of recsys that made it.")
        (draft / "run").mkdir(mode=0o700)  # by which a home is known
        for blob in (draft / "store" / "blobs").glob("*/*"):
            blob.chmod(0o444)
        places, closed = _settle_in(draft, Path(contents.home), home)
        if home.exists():
            home.rmdir()
        os.rename(draft, home)
        sync(home.parent)
    finally:
        remove(draft)
    return Restored(len(contents.files), contents.home, contents.made, places, closed)


def _settle_in(draft: Path, old: Path, new: Path) -> tuple[int, int]:
    database, store = draft / "mlflow" / "mlflow.db", Store(draft / "store")
    if not database.exists():
        return 0, 0
    return relocate(database, store, old, new), close_open_runs(database)


def _add_key(archive: ArchiveWriter, settings: Settings, sample: str | None) -> None:
    """`sample` is that of the users before they were copied. HomeError where the key was changed since."""
    if sample is None:
        archive.add("vault/key", settings.vault_key)
        return
    key = VaultKey.read(settings.vault_key)
    archive.add("vault/key", settings.vault_key)
    same = archive.files.get("vault/key") == hashlib.sha256(key.content).hexdigest()
    if not same or {sample, sample_of(settings.vault)} != {key.sample}:
        raise HomeError("the vault's key was changed meanwhile", where=str(settings.vault_key), mend="Back up again.")


def _elsewhere(settings: Settings) -> Iterator[str]:
    if not settings.keeps_key:
        yield f"the vault's key, without which users cannot be named, in {settings.vault_key}"
    if not settings.artifacts:
        yield f"the models and runs in your own MLflow at {settings.tracking_uri}"
    if settings.shared:
        yield f"what {settings.shared.text} has and this host has not used"


def _names(settings: Settings) -> Iterator[tuple[str, Path]]:
    for folder in (settings.ledger, settings.store / "heads", settings.home / "scores"):
        base = settings.store if folder.is_relative_to(settings.store) else settings.home
        prefix = "store/" if base == settings.store else ""
        for path in _files(folder):
            yield f"{prefix}{path.relative_to(base).as_posix()}", path


def _add_databases(archive: ArchiveWriter, settings: Settings, folder: Path) -> None:
    for place, name in _DATABASES:
        database = settings.home / place / name
        if database.exists():
            copy = folder / name
            with (
                contextlib.closing(sqlite3.connect(database, timeout=60)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
            archive.add(f"{place}/{name}", copy)
            copy.unlink()


def _add_objects(archive: ArchiveWriter, store: Store) -> None:
    """Manifests by recipe and by digest, then the blobs they name; those that gc has freed are not there."""
    blobs: set[str] = set()
    for folder in ("manifests", "objects"):
        for path in sorted((store.root / folder).glob("*/*.json")):
            with contextlib.suppress(StoreError):  # a damaged one is no use in a copy either
                manifest = Manifest.read(path)
                if manifest is not None:
                    archive.add(f"store/{path.relative_to(store.root).as_posix()}", path)
                    blobs |= {file.sha256 for file in files_of(manifest)}
    for sha256 in sorted(blobs):
        archive.add(f"store/blobs/{sha256[:2]}/{sha256}", store.blob(sha256))


def _add_the_rest(archive: ArchiveWriter, settings: Settings) -> None:
    """MLflow's artifacts, reports, and whatever else is in the home and not left out."""
    left_out = {f"{place}/{name}{end}" for place, name in _DATABASES for end in ("", "-wal", "-shm", "-journal")}
    for top in sorted(settings.home.iterdir()):
        if top.name in _LEFT_OUT or top == settings.store:
            continue
        for path in [top] if top.is_file() else _files(top):
            name = path.relative_to(settings.home).as_posix()
            if name not in archive.files and name not in left_out and path != next_to(settings.vault_key):
                archive.add(name, path)
    latest = settings.home / "scores" / "latest"
    if latest.is_symlink() and latest.exists():
        archive.link("scores/latest", os.readlink(latest).rstrip("/").rsplit("/", 1)[-1])


def _files(folder: Path) -> Iterator[Path]:
    """Plain files below a folder, drafts left out; links are not followed."""
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(root, name)
            if not path.is_symlink() and not name.startswith("."):
                yield path
