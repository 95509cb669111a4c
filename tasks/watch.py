"""A watch: one look of the monitor, recorded in a run of its own, kept apart from nights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.runtime import flow_run

from recsys.config import EventsConfig, MonitorConfig, NightConfig
from recsys.errors import RegistryError, StoreError
from tasks.adapters.registry import STUDENT, Version
from tasks.adapters.tracking import OCCASION, WATCH
from tasks.last_night import HEAD
from tasks.night import Night, Source, sentences_instead_of_tracebacks
from tasks.workshop import Workshop


@contextmanager
def open_watch(source: Source, monitor: MonitorConfig) -> Iterator[Night]:
    """Opens a run in MLflow for a look at `source` (empty: what the last night read), and closes it as what it became.

    Events are read by the rules that the champion's were read by, so that what a night has validated is found again.
    """
    sentences_instead_of_tracebacks()
    workshop = Workshop.here()
    source = _source(workshop, source)
    params = {f"monitor.{knob}": str(value) for knob, value in monitor.model_dump(mode="json").items()}
    params |= {f"source.{name}": str(value) for name, value in source.model_dump(mode="json").items()}
    tags = {"prefect.flow_run_id": str(flow_run.id), "prefect.flow_run_name": str(flow_run.name), OCCASION: WATCH}
    run_id = workshop.tracking.start_night(str(flow_run.name), tags, params)
    try:
        yield Night(run_id=run_id, source=source, config=NightConfig(events=_rules(workshop)))
    except BaseException:
        workshop.tracking.finish(run_id, "FAILED")
        raise
    workshop.tracking.finish(run_id, "FINISHED")


@dataclass(frozen=True)
class Reign:
    """Who is champion now, and who was before; None: nobody."""

    champion: Version | None
    previous: int | None

    @classmethod
    def now(cls, workshop: Workshop) -> "Reign":
        """As the ledger has it. A champion whose version was deleted is none: nothing can be learnt of it."""
        chain = workshop.ledger.chain().require_intact()
        try:
            champion = workshop.registry.version(STUDENT, chain.champion) if chain.champion else None
        except RegistryError:
            champion = None
        return cls(champion, chain.previous)


def _source(workshop: Workshop, source: Source) -> Source:
    """With the last night's places where it names no events."""
    last = workshop.store.head(HEAD)
    if source.events or last is None or "source" not in last:
        return source
    return Source.model_validate({**last["source"], "as_of": source.as_of, "until": source.until})


def _rules(workshop: Workshop) -> EventsConfig:
    """Of the champion's dataset and its files; else of the last night's; else the defaults."""
    champion, last = Reign.now(workshop).champion, workshop.store.head(HEAD)
    digest = champion.tags.get("recsys.dataset", "") if champion else last["dataset"] if last else ""
    try:
        dataset = workshop.store.manifest("build", digest)
        file = workshop.store.manifest("validate", dataset.parents[0])
        most = file.config["max_quarantined"]
        return EventsConfig.model_validate({**dataset.config["events"], "max_quarantined": most})
    except (StoreError, KeyError, IndexError, TypeError):
        return EventsConfig()
