"""A Prefect server for nights of several homes: one that each night starts for itself takes longer than the night."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.fork_server import OURS


@pytest.fixture(scope="session")
def orchestrator(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variable that names it, as somebody sets it who has a Prefect of his own."""
    folder = tmp_path_factory.mktemp("orchestrator")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment = {
        **kept,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    place = ["--host", "127.0.0.1", "--port", str(port), "--no-services", "--no-ui"]
    command = [sys.executable, "-m", "prefect", "server", "start", *place]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait(server, url)
        yield {"PREFECT_API_URL": url}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 300
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=20):
                return
        except OSError:
            time.sleep(0.2)
