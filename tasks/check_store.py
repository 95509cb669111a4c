"""fsck of what lies on the disk: the store's objects, databases, vault, the file of running servers, the moved home."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from recsys.errors import HomeError, RecsysError
from tasks.adapters.database import DAMAGED, Database
from tasks.adapters.relocate import old_home, relocate
from tasks.adapters.scrub import Damage, Scrubbed, scrub, set_aside
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.adapters.vault import Vault
from tasks.fault import Fault
from tasks.workshop import Workshop

_REMADE = "recsys fsck --repair sets it aside, and the next night that needs it makes it anew"


def objects(workshop: Workshop, scrubbed: Scrubbed) -> Iterator[Fault]:
    """What the scrub found damaged."""
    for damage in scrubbed.damages:
        yield Fault("store", damage.sentence, _REMADE, partial(_set_aside, workshop.store, damage))


def heads(workshop: Workshop) -> Iterator[Fault]:
    """Names that cannot be read."""
    for path in sorted((workshop.store.root / "heads").glob("*.json")):
        try:
            workshop.store.head(path.stem)
        except RecsysError as error:
            damage = Damage(path, error.what)
            yield Fault(
                "store", f"the head {path.stem} cannot be read", _REMADE, partial(_set_aside, workshop.store, damage)
            )


def read_store(workshop: Workshop) -> Scrubbed:
    """Every blob, from end to end."""
    return scrub(workshop.store)


def databases(workshop: Workshop) -> Iterator[Fault]:
    """SQLite's own check of each database, indices included."""
    settings = workshop.settings
    for path in (settings.mlflow / "mlflow.db", settings.prefect / "prefect.db", settings.vault / "users.sqlite"):
        if path.exists() and (said := _integrity(path)):
            yield Fault("databases", f"{path} is damaged: {said}", "recsys down, then recsys restore from a backup")


def vault(workshop: Workshop) -> Iterator[Fault]:
    """Whether user ids can be read again."""
    settings = workshop.settings
    if (settings.vault / "users.sqlite").exists():
        try:
            damaged = Vault(settings.vault, settings.vault_key).damaged()
        except RecsysError as error:
            yield Fault("vault", f"{error.what} ({error.where})", error.mend)
        else:
            if damaged:
                mend = "recsys restore from a backup; events that name them again mend it too"
                yield Fault("vault", f"{damaged:,} users of {settings.vault / 'users.sqlite'} are damaged", mend)


def servers(workshop: Workshop) -> Iterator[Fault]:
    """A file of servers that is damaged, or names some that are dead."""
    path = workshop.settings.servers_file
    dead = _dead(path)
    if dead:
        mend = "recsys fsck --repair removes the file; recsys up starts them again"
        yield Fault("servers", dead, mend, partial(_remove_file, path))


def moved(workshop: Workshop) -> Iterator[Fault]:
    """A home that was moved: MLflow's database has absolute places."""
    settings = workshop.settings
    old = old_home(settings)
    if old is not None and old != settings.home:
        what = f"the home was moved: MLflow keeps its artifacts in {old / 'mlflow' / 'artifacts'}"
        mend = "recsys fsck --repair rewrites the places in MLflow's database"
        yield Fault("home", what, mend, partial(_rewrite, settings, old))


def _set_aside(store: Store, damage: Damage) -> str:
    set_aside(store, damage)
    return "set aside in bad/; the next night that needs it makes it anew"


def _integrity(path: Path) -> str:
    try:
        rows = Database(path).rows("PRAGMA integrity_check(1)")
    except DAMAGED as error:
        return str(error)
    return "" if rows == [("ok",)] else str(rows[0][0])


def _dead(path: Path) -> str:
    try:
        written: Mapping[str, Mapping[str, object]] = json.loads(path.read_bytes())
        names = [name for name, server in written.items() if not _lives(int(str(server["pid"])))]
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the file of running servers is damaged"
    return f"the file of running servers names {' and '.join(names)}, whose process is gone" if names else ""


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def _remove_file(path: Path) -> str:
    path.unlink(missing_ok=True)
    return "the file is removed"


def _rewrite(settings: Settings, old: Path) -> str:
    if settings.running():
        raise HomeError(
            "the servers of this home are running", where=str(settings.home), mend="Stop them: recsys down."
        )
    places = relocate(settings.mlflow / "mlflow.db", Store(settings.store), old, settings.home)
    return f"{places:,} places are rewritten"
