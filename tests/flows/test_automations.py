"""Automations on a real Prefect server: the dead are seen, people are told, what follows is begun."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import fork_server, servers
from tests.prefect_api import PrefectApi

DEPLOYED = """
from prefect import flow

@flow(name="score", persist_result=False)
def score(): ...

@flow(name="refresh-teacher", persist_result=False)
def refresh_teacher(): ...

@flow(name="nightly", persist_result=False)
def nightly(): ...

if __name__ == "__main__":
    score.to_deployment("score").apply()
    refresh_teacher.to_deployment("refresh-teacher").apply()
    nightly.to_deployment("nightly", cron="0 2 * * *").apply()
"""

INSTALL = """
import json, sys
from pathlib import Path
from prefect.client.orchestration import get_client
from flows.automations import install
from tasks.adapters.settings import Settings
install(Settings.from_environment(Path(sys.argv[1])))
with get_client(sync_client=True) as client:
    automations = client.request("POST", "/automations/filter", json={}).json()
    print(json.dumps({each["name"]: each for each in automations}))
"""

ANNOUNCE = """
import json, sys
from tasks.announce import announce
for happening, sentence, details in json.loads(sys.argv[1]):
    announce(happening, sentence, details)
"""

KILLED = """
import sys, time
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.flow_engine import run_flow
from prefect.states import Pending

@flow(persist_result=False)
def sleeper():
    print(run.id, flush=True)
    time.sleep(600)

limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
deployment = sleeper.to_deployment("sleeper", concurrency_limit=limit).apply()
with get_client(sync_client=True) as client:
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Pending())
    run = client.read_flow_run(run.id)
run_flow(sleeper, flow_run=run)
"""


class Prefect:
    """A server of its own, and what is run beside it."""

    def __init__(self, url: str, folder: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_"))}
        self.api, self.folder = PrefectApi(url), folder
        places = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": url, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
        self.environment = {**kept, **places, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}

    def run(self, script: str, *words: str) -> str:
        done = fork_server.run(["-c", script, *words], self.environment, cwd=self.folder, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def runs(self, flow: str) -> list[dict]:
        return self.api.post("flow_runs/filter", flows={"name": {"any_": [flow]}})


def until(happened: Callable[[], object], seconds: float):
    """What `happened` gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("prefect")
    with servers.prefect(folder, services=True) as url:
        yield Prefect(url, folder)


class Sinks:
    """A mail server and a web server that keep what they are sent."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        self.posts: list[dict] = []
        posts = self.posts

        class Post(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posts.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.web = ThreadingHTTPServer(("127.0.0.1", 0), Post)
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        serving = asyncio.start_server(self._mail, "127.0.0.1", 0)
        self.mail = asyncio.run_coroutine_threadsafe(serving, self.loop).result()

    async def _mail(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The least of SMTP: greets, agrees to everything, keeps what follows DATA."""
        writer.write(b"220 sink\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 well\r\n")
            await writer.drain()
        writer.close()

    def notify_toml(self, folder: Path) -> Path:
        mail, web = self.mail.sockets[0].getsockname()[1], self.web.server_port
        path = folder / "notify.toml"
        path.write_text(
            f'email = "mailto://127.0.0.1:{mail}/?from=a@example.com&to=b@example.com"\n'
            f'webhook = "http://127.0.0.1:{web}/hook?key=canary"\n'
        )
        path.chmod(0o600)
        return path


@pytest.fixture(scope="module")
def sinks() -> Sinks:
    return Sinks()


@pytest.fixture(scope="module")
def home(sinks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    sinks.notify_toml(folder)
    return folder


@pytest.fixture(scope="module")
def installed(prefect, home) -> dict:
    (prefect.folder / "deployed.py").write_text(DEPLOYED)
    deploying = [sys.executable, "deployed.py"]
    subprocess.run(deploying, env=prefect.environment, cwd=prefect.folder, check=True, capture_output=True, timeout=120)
    return json.loads(prefect.run(INSTALL, str(home)))


@pytest.fixture(scope="module")
def victim(prefect, installed) -> Iterator[subprocess.Popen[str]]:
    """A flow run at work that holds the only place of its deployment."""
    (prefect.folder / "killed.py").write_text(KILLED)
    process = subprocess.Popen(
        [sys.executable, "killed.py"], env=prefect.environment, cwd=prefect.folder,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def dead(victim) -> str:
    """Its id; the whole group is killed as soon as it runs, and nobody is left to say so."""
    assert victim.stdout is not None
    run_id = victim.stdout.readline().strip()
    time.sleep(2)  # the first heartbeat goes out in batches
    os.killpg(victim.pid, signal.SIGKILL)
    return run_id


def test_installing_again_changes_nothing(prefect, home, installed, dead):
    again = json.loads(prefect.run(INSTALL, str(home)))
    assert again == installed, "not even the time of the last change"
    assert {name.partition(": ")[0] for name in installed} == {"recsys"}


def test_what_a_person_switched_off_stays_off_and_what_is_gone_from_the_file_is_forgotten(
    prefect, sinks, home, installed
):
    off = installed["recsys: tell that runs are late"]["id"]
    prefect.api.patch(f"automations/{off}", enabled=False)
    (home / "notify.toml").write_text((home / "notify.toml").read_text().splitlines()[0])
    changed = json.loads(prefect.run(INSTALL, str(home)))
    assert not changed["recsys: tell that runs are late"]["enabled"]
    assert all(len(each["actions"]) == 1 for name, each in changed.items())
    blocks = prefect.api.post("block_documents/filter", include_secrets=True)
    assert [block["name"] for block in blocks] == ["recsys-email"]
    sinks.notify_toml(home)
    assert prefect.run(INSTALL, str(home))


def test_people_are_told_by_every_channel_and_what_follows_begins(prefect, sinks, installed):
    told = [
        ["recsys.model.rejected", "version 3: <b>worse</b> than {{ 1 + 1 }}", {"version": 3}],
        ["recsys.model.decayed", "it decayed", {"on_decay": "tell"}],
        ["recsys.model.promoted", "version 4 is the champion", {"to": 4}],
    ]
    prefect.run(ANNOUNCE, json.dumps(told))
    until(lambda: len(sinks.mails) >= 2 and len(sinks.posts) >= 2, 60)
    posts = {post["subject"]: post["body"] for post in sinks.posts}
    assert posts["recsys: a candidate was rejected"] == "version 3: <b>worse</b> than {{ 1 + 1 }}"
    mail = next(mail for mail in sinks.mails if "a candidate was rejected" in mail)
    assert "text/plain" in mail, "what comes from data is never read as HTML"
    assert "version 3" in mail
    until(lambda: len(prefect.runs("score")) == 1, 60)
    assert prefect.runs("refresh-teacher") == [], "on_decay is tell"
    prefect.run(ANNOUNCE, json.dumps([["recsys.model.decayed", "again", {"on_decay": "refresh"}]]))
    until(lambda: len(prefect.runs("refresh-teacher")) == 1, 60)


def test_nobody_sees_an_address(prefect, installed):
    assert "canary" not in json.dumps(installed)
    assert "canary" not in json.dumps(prefect.api.post("block_documents/filter"))


def test_a_missed_night_is_noticed_by_the_server_alone(installed):
    trigger = installed["recsys: tell that no night ended well"]["trigger"]
    assert (trigger["posture"], trigger["within"], trigger["expect"]) == (
        "Proactive", 26 * 3600, ["prefect.flow-run.Completed"],
    )  # fmt: skip


def test_a_killed_run_is_seen_within_a_minute_and_its_place_is_free(prefect, sinks, dead):
    run = until(lambda: (r := prefect.api.run(dead))["state_type"] == "CRASHED" and r, 60)
    assert "No sign of life" in run["state"]["message"]
    new = prefect.api.post(f"deployments/{run['deployment_id']}/create_flow_run")
    answer = prefect.api.post(f"flow_runs/{new['id']}/set_state", state={"type": "PENDING"})
    assert answer["status"] == "ACCEPT", "else it would be cancelled: the deployment has one place"
