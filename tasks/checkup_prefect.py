"""Checkup of what runs the nights: servers, pool, worker, deployments, and that their next runs exist and are in time.

A home without servers is one where a person runs the nights: that is told once, in yellow, and the rest is left out.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps

from prefect.events.actions import SendNotification

from recsys import wording
from tasks.adapters.supervisor import POOL
from tasks.finding import Finding, doubtful, ill, several, well
from tasks.operation import Operation, flow_is_there
from tasks.patient import Patient

DEPLOYMENTS = ("nightly", "refresh-teacher", "score", "promote", "rollback", "monitor", "housekeeping")

_UP = "recsys up"
_EXPECTED_WITHIN = timedelta(minutes=1)
_LATE = timedelta(minutes=15)  # what a worker may take after a restart

Asked = Callable[[Operation], Finding]


def servers(patient: Patient) -> Finding:
    """Whether this home is operated."""
    patient.named.running()  # HomeError when their file is damaged
    alive = patient.servers
    written = patient.settings.servers_file.exists()
    if written and len(alive) < 2:
        down = " and ".join(name for name in ("mlflow", "prefect") if name not in alive)
        return ill(f"{down} should run here and does not answer", "recsys down; recsys up")
    if "prefect" not in alive:
        return doubtful("not operated: no server runs here, so no schedule fires", _UP)
    return well("; ".join(f"{name} at {url}" for name, url in sorted(alive.items())))


def _operated(check: Asked) -> Callable[[Patient], Finding | None]:
    """The check of a home's Prefect server, where one runs."""

    @wraps(check)
    def look(patient: Patient) -> Finding | None:
        url = patient.servers.get("prefect")
        return None if url is None else check(patient.about(url))

    return look


@_operated
def work_pool(operation: Operation) -> Finding:
    """Whether runs have where to go."""
    if operation.pool is None:
        return ill(f"there is no work pool {POOL}: no scheduled run starts", _UP)
    if operation.pool.is_paused:
        return ill(f"the work pool {POOL} is paused: no scheduled run starts", f"prefect work-pool resume {POOL}")
    return well(f"{POOL}, not paused")


@_operated
def worker(operation: Operation) -> Finding:
    """Whether somebody takes runs."""
    online = [each for each in operation.workers if each.status == "ONLINE"]
    heard = [each.last_heartbeat_time for each in operation.workers if each.last_heartbeat_time]
    last = f", last heard of {_ago(operation, heard[0])}" if heard else ""
    if not online:
        return ill(f"no worker is alive{last}: no scheduled run starts", _UP)
    return well(f"{len(online)} alive{last}")


@_operated
def deployments(operation: Operation) -> Finding:
    """Whether each is there, not paused, with a flow that exists and its schedules active."""
    there = {each.name: each for each in operation.deployments}
    if missing := [name for name in DEPLOYMENTS if name not in there]:
        return ill(f"not deployed: {several(missing, 7)}", _UP)
    if lost := [name for name, each in there.items() if not flow_is_there(each)]:
        return ill(f"the code of {several(lost)} is not where the deployment says", _UP)
    paused = [name for name, each in there.items() if each.paused]
    paused += [name for name, each in there.items() if any(not schedule.active for schedule in each.schedules)]
    if paused:
        mend = f"prefect deployment schedule resume {paused[0]}/{paused[0]} --all, or resume it in the UI"
        return doubtful(f"paused: {several(sorted(set(paused)))}", mend)
    return well(f"{len(there)}, none paused")


@_operated
def next_runs(operation: Operation) -> Finding:
    """That schedules fire: for each the next run is in the database, at the time at which it must be."""
    due = list(operation.due())
    if not due:
        return ill("no deployment has an active schedule: nothing happens by itself", _UP)
    mend = "recsys down; recsys up, then read logs/prefect.log; the line on versions tells the usual cause"
    if missing := [each.deployment for each in due if each.there is None]:
        return ill(f"no run of {several(missing)} is scheduled: the schedule does not fire", mend)
    late = [each.deployment for each in due if _is_behind(each.next, each.there)]
    if late:
        return ill(f"the next run of {several(late)} is later than its schedule says", mend)
    first = min(due, key=lambda each: each.there or operation.now)
    assert first.there is not None  # none is missing
    return well(f"all {len(due)} are scheduled; first {first.deployment}, {first.there:%Y-%m-%d %H:%M} UTC")


@_operated
def late_runs(operation: Operation) -> Finding:
    """Runs whose time has come and that nobody took."""
    late = operation.late()
    if not late:
        return well("none")
    oldest = min(run.expected_start_time for run in late if run.expected_start_time)
    sentence = f"{len(late)} wait, the oldest since {_ago(operation, oldest)}"
    return ill(sentence, _UP) if operation.now - oldest > _LATE else doubtful(sentence, "wait a minute, then recsys up")


@_operated
def zombies(operation: Operation) -> Finding:
    """Runs that hold a slot although their process is dead."""
    dead = operation.dead()
    if not dead:
        return well("every run that is running has a living process")
    named = several([f"{run.name} ({run.id})" for run in dead])
    return ill(f"running, but their process is gone: {named}", f"prefect flow-run delete {dead[0].id}")


@_operated
def zombie_automation(operation: Operation) -> Finding:
    """Whether a run whose machine died is noticed."""
    if not operation.watches_for_zombies():
        return ill("no automation watches for runs whose heartbeats stop: they would run for ever", _UP)
    return well("watches for heartbeats that stop")


@_operated
def notifications(operation: Operation) -> Finding:
    """Whether anybody is told."""
    told = [action for each in operation.automations for action in each.actions if isinstance(action, SendNotification)]
    if not told:
        return doubtful(
            "nobody is told when a night fails",
            "write an address into notify.toml (recsys notify says how), then recsys up",
        )
    if not all(operation.block_exists(action.block_document_id) for action in told):
        return ill("an automation tells by a notification block that was deleted", _UP)
    return well(f"{len(told)} automations tell somebody")


def _is_behind(due: datetime | None, there: datetime | None) -> bool:
    return due is not None and there is not None and there > due + _EXPECTED_WITHIN


def _ago(operation: Operation, moment: datetime) -> str:
    return f"{wording.duration(max(0.0, (operation.now - moment).total_seconds()))} ago"
