"""What the steps of a night share: what was asked, where it is recorded, and how a step makes, tells and records."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from recsys import sample
from recsys.config import NightConfig
from recsys.errors import RecsysError, StoreError
from recsys.fleet import reserve
from recsys.wording import many
from tasks.adapters.disk import remove
from tasks.adapters.execution import Workers, open_workers
from tasks.adapters.night_lock import Holder, alone_tonight
from tasks.adapters.store import Recipe, Stored
from tasks.adapters.tracking import OCCASION, Tracking
from tasks.deadline import CutShort, Deadline, Got
from tasks.eras import catch_up
from tasks.meter import Meter
from tasks.settle_alias import settle_alias
from tasks.show_workers import show_workers
from tasks.turns import close_unfinished
from tasks.workshop import Workshop

TASK_OPTIONS: Mapping[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}
"""One cache, ours; results never leave the process; what fails is the input or a defect, and neither mends by waiting."""

TOLD_EVERY = 2.0
"""Seconds between two tellings of a step's progress."""

WAITING_TOLD_EVERY = 60.0
"""Seconds between two tellings that another night is waited for."""


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
    until: str = Field(
        "",
        title="Known until",
        description="ISO 8601 time; as of is just after the newest event before it. Empty: for a scheduled night its time",
    )

    def known_until(self, moment: datetime | None) -> Self:
        """The same data, of which only what is before a moment may be known; what was asked for explicitly stays."""
        if moment is None or self.as_of or self.until:
            return self
        return self.model_copy(update={"until": moment.astimezone(UTC).isoformat()})

    @property
    def known(self) -> str:
        """What may be known, in words."""
        if self.as_of or self.until:
            return f"what was before {self.as_of or self.until}"
        return "all events"

    @property
    def shop(self) -> str:
        """The name of the data, as the user gave it."""
        return Path(self.events).name if self.events else "Online Retail (built-in sample)"

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
    deadline: Deadline = Deadline()

    def begin(self, name: str, title: str) -> "Step":
        """A step of this night. A rehearsed night, which makes nothing, begins another kind of step."""
        return Step(self, name, title)


class Step:
    """A step at work: makes objects, tells how far it is, records what it took."""

    def __init__(self, night: Night, name: str, title: str) -> None:
        self.workshop = workshop = Workshop.here()
        self.settings, self.store, self.tracking = workshop.settings, workshop.store, workshop.tracking
        self.registry, self.ledger = workshop.registry, workshop.ledger
        self.night, self.name, self.title = night, name, title
        self.logger = get_run_logger()
        self.made: list[Stored] = []
        self.idle = False  # there was nothing to do
        self._artifact: UUID | None = None
        self._told = time.monotonic()
        self._meter = Meter()
        self.opened = ExitStack()

    @cached_property
    def workers(self) -> Workers:
        """Who works on the parts of this step, from when they are first asked for until its end."""
        workers = self.opened.enter_context(open_workers(self.settings))
        show_workers(workers)
        return workers

    def make(self, recipe: Recipe, build: Callable[[Path], object]) -> Stored:
        """The object of a recipe, built or found."""
        stored = self.store.make(recipe, build)
        self.made.append(stored)
        return stored

    def make_in_time(self, recipe: Recipe, build: Callable[[Path], Got]) -> tuple[Stored, str]:
        """As `make`, for a `build` that the time budget may end early: it says how far it got.

        What was cut short is another object than the whole one, by a recipe that names how far it got; the scratch of
        the whole one stays, so that a night with more time goes on from there. Also gives how far it got, in words.
        """

        def aside() -> Path:
            return self.store.scratch(recipe) / "cut-short"

        def build_or_cut(out: Path) -> None:
            got = build(out)
            if not got.whole:
                remove(aside())
                out.rename(aside())
                raise CutShort(got)

        try:
            return self.make(recipe, build_or_cut), ""
        except CutShort as cut:
            shorter = replace(recipe, config={**recipe.config, "cut_short": {cut.got.what: cut.got.done}})
            stored = self.make(shorter, lambda out: shutil.copytree(aside(), out, dirs_exist_ok=True))
            remove(aside())
            self.tell(f"cut short by the time budget after {cut}")
            return stored, f"{self.name} after {cut}"

    def out_of_time(self) -> bool:
        """Whether the night's time budget is used up."""
        return self.night.deadline.passed()

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
        """Records what it took and cost, and whether all was reused; completes the progress artifact."""
        effort = self._meter.read()
        reused = self.idle or (bool(self.made) and all(stored.reused for stored in self.made))
        taken = {
            "seconds": effort.wall,
            "cpu_seconds": effort.cpu,
            "gpu_seconds": effort.gpu,
            "cost": effort.price(self.night.config.cost),
            "reused": float(reused),
        }
        metrics = {f"{what}/{self.name}": value for what, value in taken.items()}
        self.tracking.log_metrics(self.night.run_id, metrics, step=0)
        if self._artifact is not None:
            update_progress_artifact(self._artifact, 100.0, description=self.title)
        done = "reused" if reused else f"done in {effort.wall:.1f} s"
        self.logger.info("%s", done, extra={"recsys_step": self.name, "recsys_share": 1.0, "recsys_reused": reused})


@contextmanager
def step(night: Night, name: str, title: str) -> Iterator[Step]:
    """One step of a night; it is recorded when it ends well."""
    at = night.begin(name, title)
    at.logger.info("%s", title, extra={"recsys_step": name, "recsys_share": 0.0, "recsys_title": title})
    with at.opened:
        yield at
    at.close()


@contextmanager
def open_night(source: Source, config: NightConfig, occasion: str = "") -> Iterator[Night]:
    """Opens the night's run in MLflow with the resolved configuration, and closes it as what it became.

    What is no night, but works as one, names its `occasion`. One night of a home at a time: a second one waits, and
    then goes on with the results of the first.
    """
    workshop = Workshop.here()
    me = Holder.me(str(flow_run.name), str(flow_run.id), source.known)
    with alone_tonight(workshop.settings, me, _Waiting()) as unfinished, reserve():
        if workshop.settings.shared:  # another home of the store may have begun an era while this night waited
            workshop = Workshop.of(workshop.settings.prepare())
        if unfinished:
            close_unfinished(unfinished)
        if gone := catch_up(workshop):
            said = f"{many(gone, 'user')} forgotten in another home of this store: now here too"
            get_run_logger().warning("%s", said, extra={"recsys_step": "settle"})
        if (settled := settle_alias(workshop)) is not None:
            get_run_logger().warning("%s", settled.sentence, extra={"recsys_step": "settle"})
        yield from _opened(workshop.tracking, source, config, {OCCASION: occasion} if occasion else {})


def _opened(tracking: Tracking, source: Source, config: NightConfig, more_tags: Mapping[str, str]) -> Iterator[Night]:
    sentences_instead_of_tracebacks()
    params = {
        f"{section}.{knob}": str(value)
        for section, knobs in config.model_dump(mode="json").items()
        for knob, value in knobs.items()
    }
    params |= {f"source.{name}": str(value) for name, value in source.model_dump(mode="json").items()}
    tags = {"prefect.flow_run_id": str(flow_run.id), "prefect.flow_run_name": str(flow_run.name), **more_tags}
    run_id = tracking.start_night(str(flow_run.name), tags, params)
    try:
        yield Night(run_id=run_id, source=source, config=config, deadline=Deadline.of(config.run.budget_minutes))
    except BaseException:
        tracking.finish(run_id, "FAILED")
        raise
    tracking.finish(run_id, "FINISHED")


class _Waiting:
    """Says once whom the night waits for, and now and then that it still does."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.told: dict[str, float] = {}  # by run

    def __call__(self, holder: Holder | None) -> None:
        if holder is None or time.monotonic() - self.told.get(holder.run_id, -math.inf) < WAITING_TOLD_EVERY:
            return
        still = "still" if holder.run_id in self.told else "another night is"
        self.told[holder.run_id] = time.monotonic()
        said = f"{still} at work ({holder.sentence}): waiting for it, then going on with its results"
        self.logger.warning("%s", said, extra={"recsys_step": "wait"})


def sentences_instead_of_tracebacks() -> None:
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
