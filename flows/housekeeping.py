"""Housekeeping, weekly: what nothing needs any more is removed, and the rest is checked, so that a home stays bounded."""

from prefect import flow
from prefect.runtime import flow_run

from recsys.retention import RetentionConfig
from tasks.forget_runs import forget_runs
from tasks.keep_house import Tidied, check_the_rest, close_dead_runs, expire_approvals, free_store, tell_tidied


def run_name() -> str:
    """When it was scheduled for."""
    return f"housekeeping {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="housekeeping", flow_run_name=run_name, persist_result=False)
def housekeeping(retention: RetentionConfig = RetentionConfig()) -> Tidied:  # noqa: B008
    """Expire, close, free, forget, check. Nothing that a night makes or reads meanwhile is touched."""
    expired = expire_approvals()
    closed = close_dead_runs()
    freed = free_store(retention)
    forgotten = forget_runs(retention)
    faults = check_the_rest()
    return tell_tidied(expired, closed, freed, forgotten, faults)
