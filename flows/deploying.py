"""Applies deployments/prefect.yaml to a home's running Prefect server, and proves that its schedules will fire."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from flows.deployment_file import fill
from recsys.errors import RecsysError
from tasks.adapters.settings import Settings
from tasks.adapters.shop import Shop
from tasks.adapters.supervisor import POOL
from tasks.operation import Due, Operation

FILE = Path(__file__).parents[1] / "deployments" / "prefect.yaml"
"""Which deployments there are; it is installed beside this package."""

_PATIENCE = 90.0  # seconds for the scheduler to look at new schedules

Say = Callable[[str], None]


def deploy(settings: Settings, url: str, say: Say) -> None:
    """Applies the deployments for the home's shop, installs the automations, and waits for every next run.

    RecsysError when Prefect refuses a deployment, or a schedule does not fire.
    """
    make_pool()
    shop = Shop.of(settings)
    applied = settings.servers_file.parent / "prefect.yaml"
    last = yaml.safe_load(applied.read_text()) if applied.exists() else None
    wanted = fill(yaml.safe_load(FILE.read_text()), shop, deployed(), last)
    draft = applied.with_name("prefect.yaml.part")
    draft.write_text(yaml.safe_dump(wanted, width=120))
    _apply(draft, settings)
    if missing := {each["name"] for each in wanted["deployments"]} - deployed().keys():
        raise RecsysError(f"Prefect did not take {', '.join(sorted(missing))}", where=str(draft), mend="Read it.")
    draft.rename(applied)

    from flows.automations import install

    install(settings)
    for line in prove(url, shop.timezone):
        say(line)


def make_pool() -> None:
    """The work pool, if there is none: its runs are processes beside the worker."""
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template))


def release_slots() -> int:
    """Ends the runs that a machine which went down left half done; they would hold their deployments' only slot.

    For a home whose worker is not running. How many they were.
    """
    unfinished = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    with get_client(sync_client=True) as client:
        ours = [each.id for each in client.read_deployments(limit=200)]
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=ours),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=unfinished)),
            )
        )
        for run in runs:
            client.set_flow_run_state(run.id, Crashed(message="It was stopped with its worker."), force=True)
    return len(runs)


def deployed() -> Mapping[str, DeploymentResponse]:
    """What there is already, by name."""
    with get_client(sync_client=True) as client:
        return {each.name: each for each in client.read_deployments(limit=200)}


def prove(url: str, timezone: str) -> list[str]:
    """When each schedule fires next, by the runs that are there. RecsysError when one is not in a minute and a half."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        due = list(Operation(url).due())
        missing = sorted({each.deployment for each in due if each.there is None})
        if not missing:
            return [_sentence(each, ZoneInfo(timezone)) for each in sorted(due, key=lambda each: each.there)]
        if time.monotonic() > deadline:
            raise RecsysError(
                f"the schedules of {', '.join(missing)} do not fire: their next run does not come into being",
                where=url,
                mend="Read logs/prefect.log; recsys doctor tells whether versions are those that were tested together.",
            )
        time.sleep(1)


def _sentence(due: Due, zone: ZoneInfo) -> str:
    local = due.there.astimezone(zone)
    return f"{due.deployment:<16} next {local:%a %Y-%m-%d %H:%M %Z}"


def _apply(file: Path, settings: Settings) -> None:
    """By Prefect's own command, as its documentation teaches."""
    applied = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        cwd=settings.temp,
        env=os.environ | {"COLUMNS": "1000", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    if applied.returncode:
        said = [line for line in (applied.stdout + applied.stderr).splitlines() if line.strip()]
        raise RecsysError(
            f"Prefect refuses the deployments: {said[-1].strip()}",
            where=str(file),
            mend="Mend it, then recsys up again.",
        )


def main() -> None:
    """For a home whose servers have just come up; its worker has not. The environment says which."""
    settings = Settings.from_environment()
    try:
        if ended := release_slots():
            print(f"{ended} unfinished runs were ended.")
        deploy(settings, os.environ["PREFECT_API_URL"], print)
    except RecsysError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
