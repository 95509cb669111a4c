"""The home's servers, started as a user starts them: they answer, they serve the champion, they end without a trace."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from flows.cli.ui import serving_line
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.student import Student
from tasks.adapters.registry import STUDENT, Example, Registry
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import Tracking
from tests.servers import free_port

BINARIES = str(Path(sys.executable).parent)
PATIENCE = 240  # seconds, on a busy machine
EXAMPLE = Example(
    inputs={"history": [["item-1", "item-2"]]},
    outputs={"item_ids": [["item-3"]], "scores": [[0.5]], "sources": [["model"]]},
    params={"k": 10},
)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read()


def post(url: str, body: object) -> dict:
    content = json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, content, {"Content-Type": "application/json"}), timeout=10
    ) as reply:
        return json.loads(reply.read())


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return bool(get(url))
    except OSError:
        return False


def ui(home: Path, *options: str) -> subprocess.Popen:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "PREFECT_", "RECSYS_"))}
    command = [sys.executable, "-m", "flows.cli.app", "ui", "--home", str(home), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The home, the process of `recsys ui`, the two ports."""
    home = tmp_path_factory.mktemp("home")
    ports = free_port(), free_port()
    process = ui(home, "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    try:
        wait_for((home / "run" / "servers.json").exists, process)
        yield home, process, ports
    finally:
        process.terminate()
        process.wait()


def publish(home: Path, folder: Path) -> Runtime:
    """Version 1, registered through the running server, is the champion."""
    ids = [f"item-{code}" for code in range(12)]
    student = Student.untrained(DecoderShape.of(12, 16, 1, 4), 0.0, seed=0).eval()
    publication = Publication(Catalog(ids, [None] * 12, [None] * 12, [None] * 12), np.arange(12), "exclude", {})
    export(student, publication, 8, folder)
    tracking = Tracking(Settings.from_environment(home))
    registry = Registry(tracking.settings, tracking.client, lambda: tracking.experiment_id)
    assert registry.client.uri.startswith("http://127.0.0.1:")
    run_id = tracking.start_night("nightly", {}, {})
    number = registry.register(
        STUDENT, folder, "recsys.runtime", run_id=run_id, intent="1", tags={}, description="", example=EXAMPLE
    )
    tracking.finish(run_id, "FINISHED")
    registry.set_alias(STUDENT, "champion", number)
    return Runtime.open(folder)


def test_two_servers_answer_serve_the_champion_and_end_without_a_trace(started, tmp_path, monkeypatch):
    home, process, (prefect_port, mlflow_port) = started
    servers = json.loads((home / "run" / "servers.json").read_text())
    assert {name: server["url"] for name, server in servers.items()} == {
        "prefect": f"http://127.0.0.1:{prefect_port}/api",
        "mlflow": f"http://127.0.0.1:{mlflow_port}",
    }
    assert get(f"http://127.0.0.1:{prefect_port}/api/health") == b"true"
    assert get(f"http://127.0.0.1:{mlflow_port}/health") == b"OK"
    shown = json.loads(get(f"http://127.0.0.1:{prefect_port}/ui-settings"))
    assert shown["api_url"] == servers["prefect"]["url"], "the page asks its own server"

    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    assert_champion_is_served(home, servers["mlflow"]["url"], tmp_path)

    second = ui(home)
    said, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2
    there = f"mlflow at {servers['mlflow']['url']} and prefect at {servers['prefect']['url']}"
    assert f"running already: {there}" in " ".join(said.split())

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert serving_line(servers["mlflow"]["url"], os.environ["PATH"]) in said
    assert not (home / "run" / "servers.json").exists()
    for server in servers.values():
        with pytest.raises(ProcessLookupError):
            os.killpg(server["pid"], 0)


def assert_champion_is_served(home: Path, mlflow_url: str, folder: Path) -> None:
    """By the very line that `recsys ui` prints, with another port and nothing set that it does not set."""
    runtime, port = publish(home, folder / "artifact"), free_port()
    line = serving_line(mlflow_url, "/usr/bin").rsplit(" ", 1)[0] + f" {port}"
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3]), "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = (folder / "serve.log").open("w")
    server = subprocess.Popen(
        ["/bin/sh", "-c", line], env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/ping"), server)
        body = {"inputs": [{"history": ["item-1", "item-2"]}, {"history": []}], "params": {"k": 3}}
        answer = post(f"http://127.0.0.1:{port}/invocations", body)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()
    expected = runtime.recommend([["item-1", "item-2"], []], 3)
    assert [row["item_ids"] for row in answer] == [[item.item_id for item in items] for items in expected]
    assert [row["sources"] for row in answer] == [["model"] * 3, ["popular"] * 3]


def test_the_line_is_as_short_as_the_shell_allows(tmp_path):
    line = "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 mlflow models serve --env-manager local -m models:/recsys-student@champion -p 8000"
    assert serving_line("http://127.0.0.1:5000", BINARIES) == line
    assert serving_line("http://127.0.0.1:5000", str(tmp_path)) == f"PATH={BINARIES}:$PATH {line}"
