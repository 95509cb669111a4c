"""forget: Prefect's old flow runs with their task runs, logs and artifacts; what a night came to is in MLflow for good."""

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from prefect import task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, ConfigDict

from recsys.retention import RetentionConfig
from tasks.night import TASK_OPTIONS
from tasks.workshop import Workshop

_BATCH = 100
_ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)


class Forgotten(BaseModel):
    """What was removed from Prefect's database."""

    model_config = ConfigDict(frozen=True)

    runs: int
    artifacts: int
    bytes: int  # that its file is smaller afterwards


@task(name="forget", **TASK_OPTIONS)
def forget_runs(retention: RetentionConfig) -> Forgotten:
    """Runs that ended long ago. Those that wait or run are left, however old."""
    before = datetime.now(UTC) - timedelta(days=retention.runs_days)
    runs = artifacts = 0
    with get_client(sync_client=True) as client:
        for run in _old_runs(client, before):
            artifacts += _forget_artifacts(client, run)
            client.delete_flow_run(run.id)
            runs += 1
    return Forgotten(runs=runs, artifacts=artifacts, bytes=_compact(Workshop.here()) if runs else 0)


def _old_runs(client: SyncPrefectClient, before: datetime) -> Iterator[FlowRun]:
    wanted = FlowRunFilter(
        expected_start_time=FlowRunFilterExpectedStartTime(before_=before),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_ENDED))),
    )
    while True:
        found = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_BATCH)
        yield from found
        if len(found) < _BATCH:
            return


def _forget_artifacts(client: SyncPrefectClient, run: FlowRun) -> int:
    """Prefect keeps them when it deletes their run."""
    count = 0
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    while found := client.read_artifacts(artifact_filter=of_run, limit=_BATCH):
        for artifact in found:
            with contextlib.suppress(ObjectNotFound):
                client.delete_artifact(artifact.id)
            count += 1
    return count


def _compact(workshop: Workshop) -> int:
    """VACUUM of the home's own database of Prefect. While somebody writes it is left for the next time."""
    database = workshop.settings.prefect / "prefect.db"
    if (
        workshop.settings.orchestrator not in (None, workshop.settings.running().get("prefect"))
        or not database.exists()
    ):
        return 0
    before = database.stat().st_size
    with (
        contextlib.closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as connection,
        contextlib.suppress(sqlite3.OperationalError),
    ):
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return max(0, before - database.stat().st_size)
