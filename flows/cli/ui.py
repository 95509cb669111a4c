"""`recsys ui`: Prefect's and MLflow's own pages over this home, on this machine only, until Ctrl-C."""

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from flows.cli.home import HomeOption, make_home
from flows.cli.up import interrupt
from tasks.adapters.registry import STUDENT
from tasks.adapters.servers import Ports, Server, serving

_SERVING_PORT = 8000


def command(
    home: HomeOption = None,
    prefect_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 4200, or the next free one.")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 5000, or the next free one.")
    ] = None,
) -> None:
    """Watch nights in Prefect, look at models in MLflow."""
    search_path = os.environ.get("PATH", os.defpath)
    settings = make_home(home)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    console.print("Starting the servers of Prefect and MLflow ...")
    try:
        with serving(settings, Ports(prefect_port, mlflow_port)) as servers:
            console.print(f"  Prefect  {servers['prefect'].url.removesuffix('/api')}")
            console.print(f"  MLflow   {servers['mlflow'].url}")
            console.print("To serve the champion:")
            console.print(f"  {serving_line(servers['mlflow'].url, search_path)}")
            console.print("Ctrl-C stops both.")
            _watch(servers)
    except KeyboardInterrupt:
        console.print("Both are stopped.")


def serving_line(mlflow_url: str, search_path: str) -> str:
    """The command that serves the champion, to be pasted into the shell whose PATH is `search_path`."""
    binaries = str(Path(sys.executable).parent)
    found = shutil.which("mlflow", path=search_path)
    path = "" if found and str(Path(found).parent) == binaries else f"PATH={shlex.quote(binaries)}:$PATH "
    model = f"models:/{STUDENT}@champion"
    return (
        f"{path}MLFLOW_TRACKING_URI={mlflow_url} mlflow models serve --env-manager local -m {model} -p {_SERVING_PORT}"
    )


def _watch(servers: dict[str, Server]) -> NoReturn:
    """Until interrupted. RecsysError when a server ends by itself."""
    while True:
        for server in servers.values():
            server.daemon.require_alive()
        time.sleep(0.5)
