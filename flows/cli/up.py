"""`recsys up`: the home as an installation: both servers, a worker, the deployments, kept up until `recsys down`."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from flows.cli.home import HomeOption, make_home
from recsys.errors import ConfigError, HomeError
from tasks.adapters.daemon import bound
from tasks.adapters.servers import Ports, running
from tasks.adapters.settings import Settings
from tasks.adapters.shop import Shop
from tasks.adapters.supervisor import standing, supervise

_SELF = ("flows.cli.app", "up")
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_STAMPED = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


def command(
    home: HomeOption = None,
    prefect_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 4200, or the next free one.")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 5000, or the next free one.")
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, until Ctrl-C; for systemd.")] = False,
    timezone: Annotated[str, typer.Option(help="Clock of the schedules, as Europe/Berlin. Default: UTC.")] = "",
    events: Annotated[
        str,
        typer.Option(help="The shop's events: a Parquet or CSV file, or a folder of them. Default: the built-in shop."),
    ] = "",
    items: Annotated[str, typer.Option(help="Parquet or CSV file of the shop's items.")] = "",
    columns: Annotated[str, typer.Option(help="Names in your files: user_id=CustomerID,item_id=SKU,...")] = "",
) -> None:
    """Keep the home up: servers, worker, schedules. What you say of the shop is remembered. Harmless when up."""
    settings = make_home(home)
    say = Console(highlight=False, soft_wrap=True, markup=False).print
    Shop.of(settings, {"events": events, "items": items, "columns": columns, "timezone": timezone}).remember(settings)
    if standing(settings):
        _await_ready(settings)
        _renew(settings, say)
    elif foreground:
        _stay(settings, Ports(prefect_port, mlflow_port))
    else:
        ports = {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port}
        _start(settings, [word for option, port in ports.items() if port for word in (option, str(port))], say)


def interrupt(*_: Any) -> None:
    """SIGTERM does what Ctrl-C does; neither may disturb the stopping afterwards."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _await_ready(settings: Settings) -> None:
    """Until somebody else's `recsys up` has come to its end."""
    while (supervisor := standing(settings)) and not supervisor.ready:
        time.sleep(0.2)


def _renew(settings: Settings, say: Any) -> None:
    """It is up: applies the deployments of this version once more."""
    there = running(settings)
    if "prefect" not in there:
        raise HomeError(
            "this home is kept up, but its Prefect server does not answer",
            where=str(settings.logs / "prefect.log"),
            mend="It is started again by itself; try again in a minute, or recsys down and up.",
        )
    _require_own_server(settings)
    for name, address in sorted(there.items()):
        say(f"{name} runs at {address.url.removesuffix('/api')}")
    from flows.deploying import deploy

    deploy(settings, there["prefect"].url, say)
    _examine(settings, say)


def _examine(settings: Settings, say: Any) -> None:
    """The doctor's word on a home that is up."""
    settings.export()
    from flows.cli.doctor import told
    from tasks.checkup import check

    say(told(check(settings)))


def _stay(settings: Settings, ports: Ports) -> None:
    """Minds everything until interrupted."""
    _require_own_server(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    bound(_log(settings))
    with _log(settings).open("a", buffering=1) as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(f"{time.strftime(_STAMP, time.gmtime())} {line}", file=log)

        try:
            supervise(settings, ports, ["flows.deploying"], say)
        except KeyboardInterrupt:
            say("Everything is stopped.")


def _start(settings: Settings, options: list[str], say: Any) -> None:
    """Starts the supervisor in a session of its own, and relays what it says until everything is up."""
    say("Starting the servers of Prefect and MLflow, and a worker ...")
    with _log(settings).open("ab") as log:
        before = log.tell()
        supervisor = subprocess.Popen(
            [sys.executable, "-m", *_SELF, "--foreground", "--home", str(settings.home), *options],
            cwd=settings.temp,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        with _log(settings).open() as said:
            said.seek(before)
            while not _is_ready(settings, supervisor.pid) and supervisor.poll() is None:
                _relay(said, say)
                time.sleep(0.2)
            _relay(said, say)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise
    if supervisor.poll() is not None:
        raise typer.Exit(supervisor.returncode or 1)
    _examine(settings, say)
    say(f"It is up; its logs are in {settings.logs}. To stop it: recsys down.")


def _is_ready(settings: Settings, pid: int) -> bool:
    supervisor = standing(settings)
    return supervisor is not None and supervisor.pid == pid and supervisor.ready


def _relay(log: TextIO, say: Any) -> None:
    for line in log:
        say(_STAMPED.sub("", line.rstrip()))


def _log(settings: Settings) -> Path:
    return settings.logs / "supervisor.log"


def _require_own_server(settings: Settings) -> None:
    """ConfigError where the environment names a Prefect server that is not this home's."""
    named = os.environ.get("PREFECT_API_URL")
    if named not in (None, settings.running().get("prefect")):
        raise ConfigError(
            f"it is set to {named}, and this home keeps up a server of its own",
            where="PREFECT_API_URL",
            mend="Unset it: what runs here would be told to the other server.",
        )
