"""What Prefect's server does by itself: dead runs are marked, people are told, what follows from an event is begun.

`install` makes these automations what they should be; doing it again changes nothing. One that a person has switched off
in Prefect's pages stays off.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows.channels import NAMES, blocks
from tasks.adapters.channels import Channels
from tasks.adapters.settings import Settings
from tasks.slots import GRACE, period

FLOWS = ("nightly", "refresh-teacher", "score", "promote", "rollback", "monitor", "housekeeping")
"""Flows of ours, by name. Each has a deployment of the same name."""

SILENCE = timedelta(seconds=45)
"""Without a heartbeat for so long a run is dead. They come every 30 seconds, Prefect's smallest choice; the server looks
every 5, so that a death is seen within 50 seconds and a few."""

_OVER = ("Completed", "Skipped", "Failed", "Cancelled", "Crashed", "TimedOut", "Paused", "Suspended")
_AT_ONCE = timedelta()
_HOURLY = timedelta(hours=1)
_OURS = "recsys: "

_TOLD = {
    "recsys.model.rejected": "a candidate was rejected",
    "recsys.model.waiting": "a candidate waits for approval",
    "recsys.model.decayed": "the champion has decayed",
    "recsys.alias.moved": "somebody moved the alias",
    "recsys.night.missed": "nights were missed",
    "recsys.home.unwell": "the doctor sees red",
}
"""Announcements that people are told of, and what a message about one is called."""


def install(settings: Settings) -> None:
    """Installs the automations on the Prefect server that this process talks to. ConfigError for a bad notify.toml.

    Follow-ups need their deployments: install again after they were made.
    """
    channels = blocks(Channels.of(settings))
    with get_client(sync_client=True) as client:
        channel_ids = [_saved(name, block) for name, block in channels.items()]
        wanted = [_zombies(), *_follow_ups(client), *(_messages(client, channel_ids) if channel_ids else ())]
        known = {automation.name: automation for automation in client.read_automations(limit=200)}
        for automation in wanted:
            _put(client, automation, known.get(automation.name))
        for name in known.keys() - {automation.name for automation in wanted}:
            if name.startswith(_OURS):
                client.delete_automation(known[name].id)
        _forget_channels(client, channels)


def _zombies() -> AutomationCore:
    """A run whose process and worker were killed says nothing any more; Prefect alone would believe it runs for ever."""
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=f"{_OURS}dead runs",
        description="A run without a heartbeat is marked as crashed, which frees its place. The next one resumes its work.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in _OVER)},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No sign of life for {SILENCE.seconds} seconds: its process was killed. The next run resumes.",
            )
        ],
    )


def _follow_ups(client: SyncPrefectClient) -> Iterator[AutomationCore]:
    """What begins after an announcement, where there is a deployment for it."""
    score = _deployment(client, "score")
    if score is not None:
        yield AutomationCore(
            name=f"{_OURS}score after a promotion",
            description="A new champion's recommendations are written at once.",
            trigger=_announced(["recsys.model.promoted"]),
            actions=[RunDeployment(deployment_id=score)],
        )
    refresh = _deployment(client, "refresh-teacher")
    if refresh is not None:
        yield AutomationCore(
            name=f"{_OURS}refresh the teacher on decay",
            description="Where the monitor's on_decay is refresh.",
            trigger=_announced(["recsys.model.decayed"], {"recsys.on_decay": "refresh"}),
            actions=[RunDeployment(deployment_id=refresh)],
        )


def _messages(client: SyncPrefectClient, channels: Sequence[UUID]) -> Iterator[AutomationCore]:
    """What people are told of, each by every channel."""
    for happening, subject in _TOLD.items():
        yield AutomationCore(
            name=f"{_OURS}tell that {subject}",
            trigger=_announced([happening]),
            actions=_sent(channels, subject, "{{ event.payload.sentence }}"),
        )
    run = "{{ flow.name }}: {{ flow_run.name }}"
    ended = "{{ flow_run.state.name }}: {{ flow_run.state.message }}"
    yield AutomationCore(
        name=f"{_OURS}tell that a run failed",
        trigger=_of_runs(FLOWS, ["Failed", "Crashed", "TimedOut"], _AT_ONCE),
        actions=_sent(channels, "a run failed", f"{run}\n{ended}"),
    )
    yield AutomationCore(
        name=f"{_OURS}tell that runs are late",
        description="At most once an hour: after an outage many are late at once.",
        trigger=_of_runs(FLOWS, ["Late"], _HOURLY),
        actions=_sent(channels, "a run is late", f"{run} has not begun in time. Is the worker alive? recsys doctor"),
    )
    every = _every(client, "nightly")
    if every is not None:
        hours = (every + GRACE).total_seconds() / 3600
        said = f"No night has ended well for {hours:.0f} hours. recsys doctor says what is wrong."
        yield AutomationCore(
            name=f"{_OURS}tell that no night ended well",
            trigger=_of_runs(("nightly",), ["Completed"], every + GRACE, Posture.Proactive),
            actions=_sent(channels, "a night was missed", said),
        )


def _announced(happenings: Sequence[str], labels: Mapping[str, str] | None = None) -> EventTrigger:
    return EventTrigger(
        match={"prefect.resource.id": "recsys.shop", **(labels or {})}, expect=set(happenings), posture=Posture.Reactive
    )


def _of_runs(
    flows: Sequence[str],
    states: Sequence[str],
    within: timedelta,
    posture: Literal[Posture.Reactive, Posture.Proactive] = Posture.Reactive,
) -> EventTrigger:
    return EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(flows)},
        expect={f"prefect.flow-run.{state}" for state in states},
        posture=posture,
        within=within,
    )


def _sent(channels: Sequence[UUID], subject: str, body: str) -> list[Any]:
    return [SendNotification(block_document_id=each, subject=f"{_OURS}{subject}", body=body) for each in channels]


def _put(client: SyncPrefectClient, wanted: AutomationCore, there: Any) -> None:
    """Creates it, or changes it if it is not what is wanted."""
    if there is None:
        client.create_automation(wanted)
        return
    wanted = wanted.model_copy(update={"enabled": there.enabled})
    if AutomationCore.model_validate(there.model_dump(exclude={"id"})) != wanted:
        client.update_automation(there.id, AutomationCore(**wanted.model_dump(exclude={"owner_resource"})))


def _saved(name: str, block: Any) -> UUID:
    """The block under its name, changed where the address was."""
    saved: UUID = block.save(name, overwrite=True)
    return saved


def _forget_channels(client: SyncPrefectClient, channels: Mapping[str, object]) -> None:
    """An address that is no longer in notify.toml does not stay in Prefect either."""
    for document in client.read_block_documents(limit=200, include_secrets=False):
        if document.name in NAMES - channels.keys():
            client.delete_block_document(document.id)


def _deployment(client: SyncPrefectClient, flow: str) -> UUID | None:
    try:
        return client.read_deployment_by_name(f"{flow}/{flow}").id
    except ObjectNotFound:
        return None


def _every(client: SyncPrefectClient, flow: str) -> timedelta | None:
    """How often a deployment is scheduled, by its runs to come. The scheduler looks at it now, not in a minute."""
    deployment = _deployment(client, flow)
    if deployment is None:
        return None
    client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={}).raise_for_status()
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=datetime.now(UTC)),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=20,
    )
    return period(sorted({run.expected_start_time for run in runs if run.auto_scheduled and run.expected_start_time}))
