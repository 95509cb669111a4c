"""move: a home's store goes to a bucket and its MLflow to a server, which other hosts share from then on.

Where to is said by the variables that name the places afterwards. What was in the home stays there, untouched: whoever
leaves the variables away has the home as it was.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import ConfigError, HomeError, RegistryError
from tasks.adapters.connection import Client
from tasks.adapters.copy_mlflow import DATABASE, copy_mlflow
from tasks.adapters.fill_bucket import Carried, fill_bucket, keep_ages
from tasks.adapters.ledger import Chain, Ledger
from tasks.adapters.night_lock import no_night
from tasks.adapters.registry import STUDENT, Registry
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.workshop import Workshop


@dataclass(frozen=True)
class Moved:
    """What is elsewhere now. None: that part was not asked to move."""

    store: Carried | None
    rows: int | None  # of MLflow's database; 0: they were there
    records: int  # of the ledger, which the new place has to the last
    champion: int | None  # it was loaded from the new place and answered


def move(settings: Settings) -> Moved:
    """Moves what the environment names another place for; done again it goes on. A home at work is not moved.

    ConfigError when nothing is named; HomeError, StoreError or RegistryError when something is in the way: then nothing
    at the new place is used before this has been done again and ended well.
    """
    _require_somewhere(settings)
    with no_night(settings, "recsys move", "Wait for it to end."):
        _require_rest(settings)
        workshop = Workshop.of(settings)
        carried = _carry_store(settings, workshop.store)
        rows = None if settings.artifacts else _carry_mlflow(settings)
        chain = workshop.ledger.chain().require_intact()
        if rows is not None:
            _require_same(chain, _chain_before(settings), settings)
        if chain.champion is not None:
            workshop.registry.load_check(STUDENT, chain.champion)
    return Moved(carried, rows, len(chain.records), chain.champion)


def _require_somewhere(settings: Settings) -> None:
    elsewhere = not settings.artifacts
    if not elsewhere and settings.shared is None:
        raise ConfigError(
            "no place to move to is named",
            where=f"RECSYS_STORE, MLFLOW_TRACKING_URI, {DATABASE}",
            mend="Set them to the bucket, the MLflow server and the server's database, or one of the first two.",
        )
    if elsewhere and not (settings.tracking_uri.startswith("http") and os.environ.get(DATABASE)):
        raise ConfigError(
            "MLflow moves to a server, and its database must be named too",
            where=f"MLFLOW_TRACKING_URI, {DATABASE}",
            mend=f"Start mlflow server, name its address in MLFLOW_TRACKING_URI and its database in {DATABASE}.",
        )


def _require_rest(settings: Settings) -> None:
    """Whoever wrote here meanwhile would write to what is left behind; that no night does, the lock sees to."""
    if settings.running():
        raise HomeError(
            "the servers of this home are running", where=str(settings.home), mend="Stop them: recsys down."
        )


def _carry_store(settings: Settings, to: Store) -> Carried | None:
    if to.shared is None:
        return None
    store = Store(_there(settings.home / "store"))
    carried = fill_bucket(store, to.shared)
    keep_ages(store, to)
    return carried


def _carry_mlflow(settings: Settings) -> int:
    _there(settings.mlflow / "mlflow.db")
    return copy_mlflow(settings, os.environ[DATABASE], settings.tracking_uri)


def _there(path: Path) -> Path:
    if not path.exists():
        raise HomeError("there is nothing to move", where=str(path), mend="Name the home that has it with --home.")
    return path


def _chain_before(settings: Settings) -> Chain:
    registry = Registry(settings, Client(settings.mlflow_database), lambda: "")
    return Ledger(settings, registry).chain().require_intact()


def _require_same(now: Chain, before: Chain, settings: Settings) -> None:
    if now.records[: len(before.records)] != before.records:
        raise RegistryError(
            f"the ledger at the new place does not begin with this home's {len(before.records)} records",
            where=settings.tracking_uri,
            mend=f"Check that the server at MLFLOW_TRACKING_URI is the one over {DATABASE}.",
        )
