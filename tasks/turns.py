"""Whose turn it is, asked of Prefect: what a scheduled run may know, and whether another one makes up for it."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Completed, Crashed

from recsys.config import RunConfig
from tasks.adapters.night_lock import Holder, at_work
from tasks.adapters.settings import Settings
from tasks.announce import announce
from tasks.slots import CatchUp, Slot, Turn, nights_missed, period, whose_turn

SKIPPED = "Skipped"
"""Name of the state of a run that another one makes up for. It is a completed one: nothing went wrong."""

_LOOKED_AT = 200  # runs of a deployment, newest first
_AHEAD = timedelta(days=32)  # how far slots to come tell the period of a schedule


def my_turn(run: RunConfig) -> Turn:
    """What this flow run does. One that no schedule began works, without a bound."""
    context = FlowRunContext.get()
    mine = context.flow_run if context else None
    if mine is None or not mine.auto_scheduled or mine.deployment_id is None or mine.expected_start_time is None:
        return Turn(True, None)
    working = at_work(Settings.from_environment())
    slots = [_slot(other, working) for other in _runs(mine.deployment_id) if other.id != mine.id]
    turn = whose_turn(run.catch_up, _slot(mine, working), slots, datetime.now(UTC))
    if turn.sentence:
        get_run_logger().info("%s", turn.sentence, extra={"recsys_step": "turn"})
    if turn.works and turn.made_up:
        announce("recsys.night.missed", turn.sentence, {"missed": len(turn.made_up), "flow_run": mine.name})
    return turn


def stepped_aside(turn: Turn) -> State:
    """How a run ends that another one makes up for."""
    return Completed(name=SKIPPED, message=turn.sentence)


def missed_nights(deployment: str = "nightly/nightly", catch_up: CatchUp = "latest") -> tuple[datetime, ...]:
    """The slots of a deployment after which no night has ended well in time; oldest first, empty where all is well.

    Nights are given until the next slot, and a while. ObjectNotFound when Prefect knows no such deployment.
    """
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(deployment)
    slots = [_slot(run, None) for run in _runs(found.id)]
    now = datetime.now(UTC)
    times = sorted({slot.at for slot in slots})
    knew = [slot.began if catch_up == "latest" else slot.at for slot in slots if slot.done and slot.began]
    return nights_missed(max(knew, default=None), [at for at in times if at <= now], now, period(times))


def close_unfinished(holder: Holder) -> None:
    """Marks the run of a night that did not come to its end as crashed, where Prefect still believes that it runs."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(holder.run_id))
        except (ObjectNotFound, ValueError):
            return
        if run.state_type == StateType.RUNNING:
            said = f"process {holder.pid} ended at work without a word; another night goes on from where it stopped"
            client.set_flow_run_state(run.id, Crashed(message=said))


def _runs(deployment_id: UUID) -> list[FlowRun]:
    """The scheduled runs of a deployment, newest first, some of those to come included."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC) + _AHEAD),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_LOOKED_AT,
        )
    return [run for run in runs if run.auto_scheduled]


def _slot(run: FlowRun, working: Holder | None) -> Slot:
    assert run.expected_start_time is not None  # it was scheduled
    return Slot(
        run_id=str(run.id),
        run=run.name,
        at=run.expected_start_time,
        began=run.start_time,
        works=working is not None and working.run_id == str(run.id),
        done=run.state_type == StateType.COMPLETED and run.state_name != SKIPPED,
    )
