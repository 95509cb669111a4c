"""A home that lies elsewhere than it did: MLflow writes absolute places into its database, here they are rewritten.

Only prefixes are changed, only in the columns in which MLflow keeps places, and all of them in one transaction.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from tasks.adapters.settings import Settings
from tasks.adapters.store import Store

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database in which places are."""
_ARTIFACTS = Path("mlflow", "artifacts")
_WAIT_SECONDS = 10


def old_home(settings: Settings) -> Path | None:
    """The home that MLflow's database was written in; None where it names no folder, or is not this home's own."""
    database = settings.mlflow / "mlflow.db"
    if settings.artifacts is None or not database.exists():
        return None
    with _opened(database) as connection, contextlib.suppress(sqlite3.DatabaseError):
        for (place,) in connection.execute("SELECT artifact_location FROM experiments WHERE name = 'recsys'"):
            folder = Path(unquote(urlparse(place).path))
            if urlparse(place).scheme == "file" and folder.parts[-2:] == _ARTIFACTS.parts:
                there, here = folder.parents[1], settings.home
                return here if there.exists() and here.exists() and there.samefile(here) else there
    return None


def relocate(database: Path, store: Store, old: Path, new: Path) -> int:
    """Rewrites every place below the home `old` to below the home `new`, and gives how many. No server may be running."""
    count = 0
    with _opened(database) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, column in PLACES:
            for before, after in ((f"{old.as_uri()}/", f"{new.as_uri()}/"), (f"{old}/", f"{new}/")):
                changed = connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before), before),
                )
                count += changed.rowcount
    return count + _relocate_report(store, old, new)


def close_open_runs(database: Path) -> int:
    """Runs that were open when a backup was taken never end there: they become KILLED. Gives how many."""
    with _opened(database) as connection, connection:
        query = "UPDATE runs SET status = 'KILLED', end_time = start_time WHERE status IN ('RUNNING', 'SCHEDULED')"
        return connection.execute(query).rowcount


def _relocate_report(store: Store, old: Path, new: Path) -> int:
    """The last night's report, whose path is in a head of the store."""
    head = store.head("last-night")
    report = str(head.get("report", "")) if head else ""
    if head is None or not report.startswith(f"{old}/"):
        return 0
    store.set_head("last-night", {**head, "report": f"{new}{report[len(str(old)) :]}"})
    return 1


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, timeout=_WAIT_SECONDS, isolation_level=None)) as connection:
        yield connection
