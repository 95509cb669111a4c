"""Servers that no home owns, on loopback, as somebody has them who runs a Prefect and an MLflow of his own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.fork_server import OURS

_START_SECONDS = 300


@contextlib.contextmanager
def prefect(folder: Path, database: str = "") -> Iterator[str]:
    """Its address. `database` is an URL of SQLAlchemy's; empty: a file in the folder."""
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
    }
    port = free_port()
    place = ["--host", "127.0.0.1", "--port", str(port), "--no-services", "--no-ui"]
    url = f"http://127.0.0.1:{port}/api"
    with _running(["prefect", "server", "start", *place], environment, folder, url):
        yield url


@contextlib.contextmanager
def mlflow(folder: Path, database: str) -> Iterator[str]:
    """Its address. Who uses it sends artifacts to it, and it keeps them in the folder."""
    stores = ["--backend-store-uri", database, "--artifacts-destination", (folder / "artifacts").as_uri()]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _running(["mlflow", "server", *stores, *place], quiet, folder, url):
        yield url


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(words: list[str], environment: Mapping[str, str], folder: Path, url: str) -> Iterator[None]:
    """Until its health page answers, then while the block runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    log = folder / "server.log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", *words],
            env={**kept, "DO_NOT_TRACK": "1", **environment},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=20):
        return True
    return False
