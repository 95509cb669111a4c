"""The monitor: what was served against what came after it, drift, ages, missed nights, the doctor's checkup."""

from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from recsys.config import MonitorConfig
from tasks.examine_home import examine_home
from tasks.monitor import look, settle_champion
from tasks.night import Source
from tasks.tell_health import Looked, tell_health
from tasks.validate_events import validate_events
from tasks.watch import open_watch


def run_name() -> str:
    """The time it was scheduled for."""
    return f"monitor {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="monitor", flow_run_name=run_name, persist_result=False)
def monitor(
    source: Annotated[
        Source, Field(title="Source", description="The shop's events and items; empty: those of the last night")
    ] = Source(),  # noqa: B008
    monitor: MonitorConfig = MonitorConfig(),  # noqa: B008
) -> Looked:
    """Look how the champion fares. Nothing is trained and nothing is promoted."""
    with open_watch(source, monitor) as watch:
        settled = settle_champion(watch)
        accepted = validate_events(watch)
        examine_home(monitor)
        health = look(watch, accepted, settled, monitor)
        return tell_health(watch, health, monitor)
