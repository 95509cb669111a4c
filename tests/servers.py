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
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests import new_databases
from tests.fork_server import OURS

_START_SECONDS = 300


@dataclass
class Server:
    """One that can be killed and started again on its port, with what it had written down."""

    words: list[str]  # of a module of Python's
    environment: Mapping[str, str]
    log: Path
    url: str
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def prefect(cls, folder: Path, database: str = "", services: bool = False) -> Self:
        """`database` is an URL of SQLAlchemy's; empty: a file in the folder. Its `services` hand on events, for example."""
        environment = {
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
        }
        if not database:
            new_databases.prefect(folder)
        port = free_port()
        place = ["--host", "127.0.0.1", "--port", str(port), "--no-ui", *([] if services else ["--no-services"])]
        return cls(
            ["prefect", "server", "start", *place], environment, folder / "server.log", f"http://127.0.0.1:{port}/api"
        )

    @classmethod
    def mlflow(cls, folder: Path, database: str) -> Self:
        """Who uses it sends artifacts to it, and it keeps them in the folder."""
        stores = ["--backend-store-uri", database, "--artifacts-destination", (folder / "artifacts").as_uri()]
        port = free_port()
        place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return cls(["mlflow", "server", *stores, *place], quiet, folder / "server.log", f"http://127.0.0.1:{port}")

    def begin(self) -> None:
        """It answers a few seconds later."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        with self.log.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.words],
                env={**kept, "DO_NOT_TRACK": "1", **self.environment},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until its health page answers."""
        assert self.process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(self.url):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """All its processes at once, without a word."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """From when it answers until the block ends."""
        self.begin()
        try:
            self.wait()
            yield self
        finally:
            self.kill()


@contextlib.contextmanager
def prefect(folder: Path, database: str = "", services: bool = False) -> Iterator[str]:
    """The address of one, for the length of a block."""
    with Server.prefect(folder, database, services).running() as server:
        yield server.url


@contextlib.contextmanager
def mlflow(folder: Path, database: str) -> Iterator[str]:
    """The address of one, for the length of a block."""
    with Server.mlflow(folder, database).running() as server:
        yield server.url


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=20):
        return True
    return False
