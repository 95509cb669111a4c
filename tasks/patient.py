"""The home under examination: what several checks look at, each asked once.

It can be made of any home, however broken; what is broken is told when it is asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from recsys.config import MonitorConfig
from recsys.errors import HomeError, StoreError
from recsys.events import Validation
from tasks.adapters.ledger import Chain, Ledger
from tasks.adapters.manifest import sha256_of
from tasks.adapters.registry import STUDENT, Registry, Version
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.adapters.tracking import Tracking
from tasks.last_night import LastNight

if TYPE_CHECKING:  # Prefect takes a second, and its environment must be set before
    from tasks.operation import Operation


@dataclass(frozen=True)
class _Unserved(Settings):
    """Settings that take no notice of servers, because the file that names them is damaged."""

    def running(self) -> Mapping[str, str]:
        return {}


def examinable(settings: Settings) -> Settings:
    """The settings, or their like for which no server runs when the file of running servers is damaged."""
    try:
        settings.running()
    except HomeError:
        return _Unserved(**vars(settings))
    return settings


@dataclass(frozen=True)
class Input:
    """One accepted file of events."""

    file: str
    sha256: str  # of the input's bytes
    newest: int | None  # seconds UTC


class Patient:
    """One home, now."""

    def __init__(self, settings: Settings, monitor: MonitorConfig) -> None:
        self.named = settings
        """As it was named: its file of servers may be damaged. `settings` can be worked with in any case."""
        self.settings = examinable(settings)
        self.monitor = monitor
        self.now = datetime.now(UTC)
        self._operation: Operation | None = None

    @cached_property
    def store(self) -> Store:
        """The store, of which nothing is believed to be sound yet."""
        return Store(self.settings.store)

    @cached_property
    def tracking(self) -> Tracking:
        """MLflow's runs. HomeError where their database is gone: asking MLflow would make an empty one."""
        path = self.settings.mlflow / "mlflow.db"
        if self.settings.artifacts is not None and not path.exists():
            raise HomeError("MLflow's database is not there", where=str(path))
        return Tracking(self.settings)

    @cached_property
    def registry(self) -> Registry:
        """The registered models."""
        return Registry(self.settings, self.tracking.client, lambda: self.tracking.experiment_id)

    @cached_property
    def ledger(self) -> Ledger:
        """Who became champion, and why."""
        return Ledger(self.settings, self.registry)

    @cached_property
    def servers(self) -> Mapping[str, str]:
        """URL by name of the servers of this home that answer, and of yours that its deployments were applied to."""
        found = dict(self.settings.running())
        if self.settings.orchestrator and (self.settings.servers_file.parent / "prefect.yaml").exists():
            found.setdefault("prefect", self.settings.orchestrator)
        if self.settings.artifacts is None:
            found["mlflow"] = self.settings.tracking_uri
        return found

    @property
    def prefect_is_yours(self) -> bool:
        """Whether the environment names a Prefect server that is not this home's, which has a database of its own."""
        return self.settings.orchestrator not in (None, self.settings.running().get("prefect"))

    def about(self, url: str) -> "Operation":
        """What the Prefect server of this home knows, asked once."""
        from tasks.operation import Operation

        if self._operation is None:
            self._operation = Operation(url)
        return self._operation

    @cached_property
    def last_night(self) -> LastNight | None:
        """What the last night came to; None when none has ended here."""
        try:
            return LastNight.of(self.store)
        except HomeError:
            return None

    @cached_property
    def chain(self) -> Chain:
        """The ledger's valid records."""
        return self.ledger.chain()

    @cached_property
    def champion(self) -> Version | None:
        """The version that the ledger calls champion. RegistryError when it was deleted."""
        number = self.chain.champion
        return None if number is None else self.registry.version(STUDENT, number)

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The files of events behind the last night."""
        if self.last_night is None:
            return ()
        store = self.store
        found = []
        for parent in store.manifest("build", self.last_night.dataset).parents:
            try:
                manifest = store.manifest("validate", parent)
            except StoreError:  # the items, or the catalog before
                continue
            validation = Validation.from_json(json.loads(store.read("validate", parent, "validation.json")))
            found.append(Input(validation.file, manifest.parents[0], validation.newest))
        return tuple(found)

    @cached_property
    def is_sample(self) -> bool:
        """Whether the last night read the built-in shop, which is old by nature."""
        from recsys import sample

        return [each.sha256 for each in self.inputs] == [sha256_of(sample.EVENTS)]

    def days_since(self, seconds: float) -> float:
        """Days from a moment (seconds UTC) until now."""
        return (self.now.timestamp() - seconds) / 86_400
