"""The worker of an installation whose servers others keep up, as in containers: applies the deployments, then takes runs.

    python -m flows.worker                              nights are processes beside it, which die with it
    python -m flows.worker --jobs cpu.json --image I    nights are Kubernetes jobs of a template and an image
      --teacher-jobs gpu.json --teacher-image J         and refresh-teacher is one of others, in a pool of its own

PREFECT_API_URL and MLFLOW_TRACKING_URI say where the servers are, RECSYS_* where home and shop are. It ends by becoming
Prefect's own worker, so that signals reach that.
"""

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.errors import ConfigError, RecsysError
from tasks.adapters.settings import Settings
from tasks.adapters.shop import Shop
from tasks.adapters.supervisor import POOL

TEACHER_POOL = "recsys-gpu"
"""Where refresh-teacher runs when it has a template of its own."""

_SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
_PATIENCE = 180.0  # seconds for servers that are started beside it, their first migrations included


def main(words: Sequence[str] | None = None) -> None:
    """Applies the deployments and becomes the worker. Ends with a sentence and the error's exit code when it cannot."""
    asked = _parser().parse_args(words)
    try:
        kind = _prepare(asked)
    except RecsysError as error:
        print(f"recsys: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    options = ["--pool", POOL, "--name", POOL, "--type", kind, "--with-healthcheck", "--install-policy", "never"]
    os.environ["PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES"] = "false"
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # a container's log is its console
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "worker", "start", *options])


def with_image(template: dict[str, Any], image: str) -> dict[str, Any]:
    """A base job template whose jobs run this image unless a run names another one."""
    variables = template["variables"]
    properties = {**variables["properties"], "image": {**variables["properties"]["image"], "default": image}}
    return {**template, "variables": {**variables, "properties": properties}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=Path, help="Base job template of the nights, for Kubernetes.")
    parser.add_argument("--teacher-jobs", type=Path, help="Base job template of refresh-teacher.")
    parser.add_argument("--image", help="What the nights run in. Default: what their template says.")
    parser.add_argument("--teacher-image", help="What refresh-teacher runs in. Default: what its template says.")
    return parser


def _prepare(asked: argparse.Namespace) -> str:
    """The kind of the worker, once home, pools and deployments are there and every next run exists."""
    for variable in _SERVERS:
        if not os.environ.get(variable):
            raise ConfigError(
                "it is not set", where=variable, mend="Name the server, or use recsys up, which starts its own."
            )
    settings = Settings.from_environment().prepare().export()
    for variable in _SERVERS:
        _await(os.environ[variable].rstrip("/") + "/health")
    Shop.of(settings).remember(settings)

    from flows.deploying import deploy, release_slots

    if asked.jobs:
        _put_pool(POOL, asked.jobs, asked.image)
    elif ended := release_slots():  # they were processes beside the worker before this one
        print(f"{ended} unfinished runs were ended.")
    deploy(settings, os.environ["PREFECT_API_URL"], print)
    if asked.teacher_jobs:
        _put_pool(TEACHER_POOL, asked.teacher_jobs, asked.teacher_image)
        _move_teacher()
    return "kubernetes" if asked.jobs else "process"


def _await(health: str) -> None:
    """Until a server answers. RecsysError after three minutes."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RecsysError(f"the server does not answer: {error}", where=health, mend="Read its log.") from error
            time.sleep(1)


def _put_pool(name: str, template: Path, image: str | None) -> None:
    """A pool of Kubernetes jobs. What people changed beside its template, its limit or a pause, stays."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    written = json.loads(template.read_text())
    jobs = with_image(written, image) if image else written
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="kubernetes", base_job_template=jobs))
        except ObjectAlreadyExists:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=jobs))


def _move_teacher() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    from flows.deploying import deployed

    with get_client(sync_client=True) as client:
        client.update_deployment(deployed()["refresh-teacher"].id, DeploymentUpdate(work_pool_name=TEACHER_POOL))


if __name__ == "__main__":
    main()
