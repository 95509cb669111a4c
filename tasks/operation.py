"""What Prefect's server of a home knows about its operation, each asked once: pool, workers, deployments, runs."""

import ast
import asyncio
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, Worker, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.events.schemas.automations import Automation, EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import SCHEDULE_TYPES
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import TypeAdapter

from tasks.adapters.supervisor import POOL
from tasks.turns import missed_nights

HEARTBEAT = "prefect.flow-run.heartbeat"
"""Event that a flow run sends every half a minute while its process lives."""

_SILENT = timedelta(minutes=2)
_MOST = 200


@dataclass(frozen=True)
class Due:
    """An active schedule: when it fires next, and when the first run that is there for its deployment begins."""

    deployment: str
    next: datetime | None
    there: datetime | None


class Operation:
    """One server of Prefect, asked by its address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = SyncPrefectClient(url)
        self.now = datetime.now(UTC)

    @cached_property
    def pool(self) -> WorkPool | None:
        """The work pool; None when there is none."""
        try:
            return self._client.read_work_pool(POOL)
        except ObjectNotFound:
            return None

    @cached_property
    def workers(self) -> list[Worker]:
        """Of the pool, the one that was heard of last first."""
        long_ago = datetime.fromtimestamp(0, UTC)
        workers = self._client.read_workers_for_work_pool(POOL) if self.pool else []
        return sorted(workers, key=lambda worker: worker.last_heartbeat_time or long_ago, reverse=True)

    @cached_property
    def deployments(self) -> list[DeploymentResponse]:
        """All, by name."""
        return sorted(self._client.read_deployments(limit=_MOST), key=lambda each: each.name)

    @cached_property
    def automations(self) -> list[Automation]:
        """All that are enabled."""
        return [each for each in self._client.read_automations(limit=_MOST) if each.enabled]

    def due(self) -> Iterable[Due]:
        """Every active schedule of a deployment that is not paused."""
        for deployment in self.deployments:
            for schedule in deployment.schedules:
                if schedule.active and not deployment.paused:
                    yield Due(deployment.name, self._next(schedule.schedule.model_dump()), self._first(deployment.id))

    def late(self) -> list[FlowRun]:
        """Runs whose time has passed and that nobody took, oldest first."""
        return self._runs(FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))

    def dead(self) -> list[FlowRun]:
        """Runs that Prefect believes to be running although their process is gone."""
        running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
        return [run for run in self._runs(running) if self._is_dead(run)]

    def missed(self) -> tuple[datetime, ...]:
        """Slots of the nightly deployment that no night has made up for; empty where there is no such deployment."""
        with temporary_settings({PREFECT_API_URL: self.url}):
            try:
                return missed_nights()
            except ObjectNotFound:
                return ()

    def block_exists(self, document: UUID) -> bool:
        """Whether a block that an automation names is there."""
        try:
            self._client.read_block_document(document, include_secrets=False)
        except ObjectNotFound:
            return False
        return True

    def watches_for_zombies(self) -> bool:
        """Whether an enabled automation waits for heartbeats that stop."""
        triggers = (each.trigger for each in self.automations if isinstance(each.trigger, EventTrigger))
        return any(HEARTBEAT in {*trigger.after, *trigger.expect} for trigger in triggers)

    # -- inside

    def _next(self, schedule: dict[str, object]) -> datetime | None:
        """When a schedule fires next, by the rules of Prefect's own scheduler."""
        known = TypeAdapter(SCHEDULE_TYPES).validate_python(schedule)
        dates = asyncio.run(known.get_dates(n=1, start=self.now))
        return dates[0] if dates else None

    def _first(self, deployment: UUID) -> datetime | None:
        scheduled = FlowRunFilter(
            deployment_id={"any_": [deployment]},
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=self.now - timedelta(minutes=1)),
        )
        order = FlowRunSort.EXPECTED_START_TIME_ASC
        runs = self._client.read_flow_runs(flow_run_filter=scheduled, sort=order, limit=1)
        return runs[0].expected_start_time if runs else None

    def _runs(self, state: FlowRunFilterState) -> list[FlowRun]:
        return self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state), sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_MOST
        )

    def _is_dead(self, run: FlowRun) -> bool:
        """By its process where that is of this machine, else by two minutes without a heartbeat."""
        host, _, pid = (run.infrastructure_pid or "").rpartition(":")
        if host == socket.gethostname() and pid.isdecimal():
            return not _lives(int(pid))
        if run.start_time is None or self.now - run.start_time < _SILENT:
            return False
        heard = EventFilter(
            occurred=EventOccurredFilter(since=self.now - _SILENT),
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        )
        return not self._client.read_events(heard, limit=1).events


def flow_is_there(deployment: DeploymentResponse) -> bool:
    """Whether the function that a deployment starts is in the file it names. Nothing is imported."""
    place, separator, name = (deployment.entrypoint or "").rpartition(":")
    if not separator:
        place, _, name = (deployment.entrypoint or "").rpartition(".")
        spec = find_spec(place) if place else None
        path = Path(spec.origin) if spec and spec.origin else None
    else:
        path = Path(_folder(deployment), place)
    if path is None or not path.is_file():
        return False
    return name in {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def _folder(deployment: DeploymentResponse) -> str:
    """Where a deployment's file is looked for."""
    for step in deployment.pull_steps or []:
        for what, options in step.items():
            if what.endswith("set_working_directory"):
                return str(options["directory"])
    return deployment.path or str(Path(__file__).parents[1])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
