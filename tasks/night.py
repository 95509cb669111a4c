"""What the steps of a night share: what was asked, where it is recorded, and how a step makes, tells and records."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from recsys import sample
from recsys.config import NightConfig
from recsys.errors import RecsysError, StoreError
from tasks.adapters.ledger import Ledger
from tasks.adapters.registry import Registry
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store, Stored
from tasks.adapters.tracking import Tracking

TASK_OPTIONS: Mapping[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}
"""One cache, ours; results never leave the process; what fails is the input or a defect, and neither mends by waiting."""

TOLD_EVERY = 2.0
"""Seconds between two tellings of a step's progress."""


class Source(BaseModel):
    """The shop's data. Empty places mean the built-in shop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: str = Field(
        "", title="Events", description="Parquet or CSV file, or a folder of them; empty: the built-in shop"
    )
    items: str = Field(
        "", title="Items", description="Parquet or CSV file of items; empty: ids only (or the built-in shop's)"
    )
    columns: Mapping[str, str] = Field({}, title="Columns", description="Our column names and yours, where they differ")
    as_of: str = Field(
        "", title="As of", description="ISO 8601 time; nothing from then on is known. Empty: after the newest event"
    )

    def events_path(self) -> Path:
        """Where the events are."""
        return Path(self.events) if self.events else sample.EVENTS

    def items_path(self) -> Path | None:
        """Where the items are, if anywhere."""
        if self.items:
            return Path(self.items)
        return None if self.events else sample.ITEMS


class Night(BaseModel):
    """One run of the factory, as each of its steps is handed it."""

    model_config = ConfigDict(frozen=True)

    run_id: str  # of the parent run in MLflow
    source: Source
    config: NightConfig


@dataclass(frozen=True)
class Workshop:
    """The places and tools of this process."""

    settings: Settings
    store: Store
    tracking: Tracking
    registry: Registry
    ledger: Ledger

    @classmethod
    def here(cls) -> "Workshop":
        """The workshop of the home that the environment names."""
        return _workshop(Settings.from_environment())


@cache
def _workshop(settings: Settings) -> Workshop:
    tracking = Tracking(settings)
    registry = Registry(settings, tracking.client, lambda: tracking.experiment_id)
    return Workshop(settings, Store(settings.store), tracking, registry, Ledger(settings, registry))


class Step:
    """A step at work: makes objects, tells how far it is, records what it took."""

    def __init__(self, night: Night, name: str, title: str) -> None:
        workshop = Workshop.here()
        self.settings, self.store, self.tracking = workshop.settings, workshop.store, workshop.tracking
        self.registry, self.ledger = workshop.registry, workshop.ledger
        self.night, self.name, self.title = night, name, title
        self.logger = get_run_logger()
        self.made: list[Stored] = []
        self.idle = False  # there was nothing to do
        self._artifact: UUID | None = None
        self._told = self._began = time.monotonic()

    def make(self, recipe: Recipe, build: Callable[[Path], object]) -> Stored:
        """The object of a recipe, built or found."""
        stored = self.store.make(recipe, build)
        self.made.append(stored)
        return stored

    def reuse(self, step: str, digest: str) -> Stored:
        """An object that an earlier night made and this one goes on with."""
        manifest = self.store.manifest(step, digest)
        stored = Stored(step, manifest.key, digest, rows=0, reused=True, seconds=0.0)
        self.made.append(stored)
        return stored

    def has(self, step: str, digest: str) -> bool:
        """Whether an earlier night's object is there and whole. What is not is done without, and said."""
        try:
            self.store.open(step, digest)
        except StoreError as error:
            self.logger.warning("%s", f"an earlier result is not used: {error}", extra={"recsys_step": self.name})
            return False
        return True

    def decide_once(self, name: str, decide: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What was decided the first time this was asked; asked again, a repeated night stays a repetition."""
        recorded = self.store.head(name)
        return self.store.once(name, decide()) if recorded is None else recorded

    def progress(self, share: float, text: str) -> None:
        """Tells, at most every two seconds, that `share` (0 to 1) of the step is done."""
        now = time.monotonic()
        if now - self._told < TOLD_EVERY:
            return
        self._told = now
        percent = round(100 * min(max(share, 0.0), 1.0), 1)
        self.logger.info("%s", text, extra={"recsys_step": self.name, "recsys_share": percent / 100})
        if self._artifact is None:
            created = create_progress_artifact(percent, key=f"progress-{self.name}", description=self.title)
            self._artifact = cast(UUID, created)
        else:
            update_progress_artifact(self._artifact, percent, description=f"{self.title}: {text}")

    def tell(self, text: str) -> None:
        """One line for the log and the terminal."""
        self.logger.info("%s", text, extra={"recsys_step": self.name})

    def close(self) -> None:
        """Records seconds and reuse, and completes the progress artifact."""
        seconds = time.monotonic() - self._began
        reused = self.idle or (bool(self.made) and all(stored.reused for stored in self.made))
        self.tracking.log_metrics(
            self.night.run_id, {f"seconds/{self.name}": seconds, f"reused/{self.name}": float(reused)}, step=0
        )
        if self._artifact is not None:
            update_progress_artifact(self._artifact, 100.0, description=self.title)
        done = "reused" if reused else f"done in {seconds:.1f} s"
        self.logger.info("%s", done, extra={"recsys_step": self.name, "recsys_share": 1.0, "recsys_reused": reused})


@contextmanager
def step(night: Night, name: str, title: str) -> Iterator[Step]:
    """One step of a night; it is recorded when it ends well."""
    at = Step(night, name, title)
    at.logger.info("%s", title, extra={"recsys_step": name, "recsys_share": 0.0, "recsys_title": title})
    yield at
    at.close()


@contextmanager
def open_night(source: Source, config: NightConfig) -> Iterator[Night]:
    """Opens the night's run in MLflow with the resolved configuration, and closes it as what it became."""
    tracking = Workshop.here().tracking
    _sentences_instead_of_tracebacks()
    params = {
        f"{section}.{knob}": str(value)
        for section, knobs in config.model_dump(mode="json").items()
        for knob, value in knobs.items()
    }
    params |= {f"source.{name}": str(value) for name, value in source.model_dump(mode="json").items()}
    tags = {"prefect.flow_run_id": str(flow_run.id), "prefect.flow_run_name": str(flow_run.name)}
    run_id = tracking.start_night(str(flow_run.name), tags, params)
    try:
        yield Night(run_id=run_id, source=source, config=config)
    except BaseException:
        tracking.finish(run_id, "FAILED")
        raise
    tracking.finish(run_id, "FINISHED")


def _sentences_instead_of_tracebacks() -> None:
    """In run logs an error meant for the user is its own sentence; its traceback would bury it."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Sentences) for known in logger.filters):
            logger.addFilter(_Sentences())


class _Sentences(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RecsysError):
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
        return True
