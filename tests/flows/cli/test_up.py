"""`recsys up` and `down`: one installation, with a small shop, used as its three kinds of people use it."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from recsys.config import NightConfig
from recsys.resolve import resolve
from recsys.synthetic import shop
from tasks.adapters.daemon import marked
from tasks.adapters.settings import Settings
from tasks.adapters.supervisor import standing
from tests.prefect_api import PrefectApi
from tests.servers import free_port

RECSYS = str(Path(sys.executable).with_name("recsys"))
PATIENCE = 240  # seconds, on a busy machine
BERLIN = ZoneInfo("Europe/Berlin")
SMALL = [
    "teacher.width=16", "teacher.epochs=2", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=2", "search.epochs=1", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "data.history_length=16", "data.min_users=40",
    "gate.min_users=40", "limits.latency_ms=1000",
]  # fmt: skip


def recsys(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A stranger's command: nothing set, and a home folder that cannot be written."""
    words = [RECSYS, *map(str, arguments)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    environment = {**kept, "HOME": "/proc/nobody", "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=PATIENCE)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (met := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return met


class Installation:
    """A home that is up, and its Prefect server."""

    def __init__(self, folder: Path) -> None:
        self.home, self.folder, self.ports = folder / "home", folder, (free_port(), free_port())
        self.settings = Settings.from_environment(self.home)
        self.api = PrefectApi(f"http://127.0.0.1:{self.ports[0]}/api")

    def up(self, *options: object) -> str:
        done = recsys("up", "--home", self.home, *options)
        assert done.returncode == 0, done.stdout + done.stderr + (self.home / "logs" / "supervisor.log").read_text()
        return done.stdout

    def start(self) -> str:
        place = ("--events", self.folder / "events.parquet", "--items", self.folder / "items.parquet")
        ports = ("--prefect-port", self.ports[0], "--mlflow-port", self.ports[1])
        return self.up(*place, *ports, "--timezone", "Europe/Berlin")

    def runs(self, name: str) -> list[dict]:
        return self.api.post("flow_runs/filter", deployments={"name": {"any_": [name]}}, sort="START_TIME_DESC")

    def servers(self) -> dict:
        return json.loads(self.settings.servers_file.read_text())


def running(settings: Settings) -> list[str]:
    """The command lines of what bears the home's mark."""
    found = []
    for pid in marked(settings):
        path = Path(f"/proc/{pid}/cmdline")
        found += [path.read_text().replace("\0", " ")] if path.exists() else []
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installation")
    shop(users=200, items=40, events_a_user=16, randomness=0.3, seed=1, days=60).write(folder)
    return Installation(folder)


@pytest.fixture(scope="module")
def first_words(place):
    """What the first `recsys up` said. Everything is down at the end."""
    try:
        yield place.start()
    finally:
        recsys("down", "--home", place.home)


@pytest.fixture(scope="module")
def up(place, first_words):
    return place


@pytest.fixture(scope="module")
def each_minute(up):
    """A schedule of one minute beside the monitor's own."""
    every = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True, "slug": "each-minute"}
    up.api.schedule("monitor", every)
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def night(up, each_minute):
    """A night started as the form starts it: whole sections, one of them edited."""
    config = resolve("quick", SMALL).model_dump(mode="json")
    parameters = {**up.api.deployment("nightly")["parameters"], **config}
    parameters["teacher"]["dropout"] = 0.125
    run = up.api.start("nightly", **parameters)
    ended = wait_until(lambda: over(up.api.run(run)))
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]
    return ended


def over(run: dict) -> dict | None:
    return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_up_says_where_it_is_and_proves_when_each_schedule_fires(up, first_words):
    assert f"http://127.0.0.1:{up.ports[0]}" in first_words
    assert f"http://127.0.0.1:{up.ports[1]}" in first_words
    scheduled = {each["name"] for each in up.api.post("deployments/filter") if each["schedules"]}
    assert scheduled == {"nightly", "refresh-teacher", "score", "monitor", "housekeeping"}
    for name in scheduled:
        (line,) = [line for line in first_words.splitlines() if line.startswith(f"{name} ") and "next" in line]
        first = min(run["expected_start_time"] for run in up.runs(name) if run["state"]["type"] == "SCHEDULED")
        assert f"{datetime.fromisoformat(first).astimezone(BERLIN):%Y-%m-%d %H:%M}" in line
    assert "recsys down" in first_words


def test_a_night_is_scheduled_at_four_by_the_shops_clock(up):
    starts = [datetime.fromisoformat(run["expected_start_time"]) for run in up.runs("nightly")]
    assert len(starts) >= 3
    assert {f"{start.astimezone(BERLIN):%H:%M}" for start in starts} == {"04:00"}


def test_the_deployments_are_for_this_shop(up):
    for name in ("nightly", "refresh-teacher", "monitor"):
        deployed = up.api.deployment(name)
        assert deployed["parameters"]["source"]["events"] == str(up.folder / "events.parquet")
        assert deployed["enforce_parameter_schema"] is True
        assert deployed["global_concurrency_limit"]["limit"] == 1
        assert deployed["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert deployed["description"]


def test_the_form_has_title_help_bounds_and_choices(up):
    schema = up.api.deployment("nightly")["parameter_openapi_schema"]
    assert set(NightConfig.model_fields) < set(schema["properties"])
    for section, field in NightConfig.model_fields.items():
        shown = schema["definitions"][field.annotation.__name__]["properties"]
        for knob in field.annotation.model_fields:
            said = shown[knob]
            assert said["title"], (section, knob)
            assert len(said["description"]) > 10, (section, knob)
            kinds = [said, *said.get("anyOf", [])]
            if any(kind.get("type") in ("integer", "number") for kind in kinds[:1]):
                assert {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} & set(said), (section, knob)
    assert schema["definitions"]["DataConfig"]["properties"]["split"]["enum"] == ["temporal", "leave_one_out"]
    assert schema["definitions"]["RunConfig"]["properties"]["approval"]["enum"] == ["auto", "manual", "when_strong"]


@pytest.mark.parametrize(
    ("deployment", "wrong"),
    [
        ("nightly", {"teacher": {"epochs": 0}}),
        ("nightly", {"teacher": {"epochs": "many"}}),
        ("nightly", {"data": {"split": "random"}}),
        ("nightly", {"teacher": {"epoch": 3}}),
        ("score", {"k": 0}),
        ("promote", {"version": 0}),
        ("rollback", {"name": "ada"}),
    ],
)
def test_a_wrong_value_is_refused_before_anything_starts(up, deployment, wrong):
    before = {run["id"] for run in up.runs(deployment)}
    there = up.api.deployment(deployment)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        up.api.start(deployment, **{**there["parameters"], **wrong})
    assert refused.value.response.is_client_error
    assert {run["id"] for run in up.runs(deployment)} == before


def test_an_edited_knob_is_in_the_nights_record(up, night):
    runs = rows(up.home / "mlflow" / "mlflow.db", "SELECT run_uuid FROM tags WHERE value = ?", night["id"])
    params = dict(rows(up.home / "mlflow" / "mlflow.db", "SELECT key, value FROM params WHERE run_uuid = ?", *runs[0]))
    assert params["teacher.dropout"] == "0.125"
    assert params["search.trials"] == "2"
    assert params["source.events"] == str(up.folder / "events.parquet")


def rows(database: Path, query: str, *values: object) -> list[tuple]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(query, values).fetchall()


def test_a_night_by_schedule_writes_in_the_home_alone(up, night):
    assert not [path for path in up.folder.iterdir() if path.name not in ("home", "events.parquet", "items.parquet")]
    uri = rows(up.home / "mlflow" / "mlflow.db", "SELECT artifact_uri FROM runs LIMIT 1")[0][0]
    assert "/proc/nobody" not in uri


def test_a_scheduled_run_comes_by_itself_and_completes(up, night, each_minute):
    def scheduled():
        return [
            run
            for run in up.runs("monitor")
            if run["auto_scheduled"]
            and run["state"]["type"] == "COMPLETED"
            and datetime.fromisoformat(run["expected_start_time"]) > each_minute
        ]

    run = wait_until(scheduled)[0]
    assert run["created_by"]["type"] == "SCHEDULE"


def test_commands_use_the_servers_that_run(up, night):
    log = up.home / "logs" / "mlflow.log"
    for words in (["status"], ["score", "--out", up.home / "tmp" / "scores.parquet"]):
        before = asked(log)
        done = recsys(*words, "--home", up.home)
        assert "Traceback" not in done.stderr
        assert asked(log) > before, "MLflow was asked over HTTP"
    prefect = {pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if is_ephemeral(pid, up.home)}
    assert not prefect


def asked(log: Path) -> int:
    return log.read_text().count("/api/2.0/mlflow/")


def is_ephemeral(pid: int, home: Path) -> bool:
    """Whether a process is a Prefect server that a command started for itself."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        return (
            "prefect.server.api.server:create_app" in command and str(home) in Path(f"/proc/{pid}/environ").read_text()
        )
    except OSError:
        return False


def test_a_second_up_is_harmless_and_keeps_what_people_changed(up):
    before, servers = standing(up.settings), up.servers()
    score = up.api.deployment("score")
    (schedule,) = score["schedules"]
    up.api.patch(f"deployments/{score['id']}/schedules/{schedule['id']}", active=False)
    edited = {"monitor": {"window_days": 14}, "source": {"events": "elsewhere.csv"}}
    up.api.patch(f"deployments/{up.api.deployment('monitor')['id']}", parameters=edited)
    said = up.up()
    assert "runs at" in said
    assert standing(up.settings) == before
    assert up.servers() == servers
    assert up.api.deployment("score")["schedules"][0]["active"] is False
    monitor = up.api.deployment("monitor")
    assert monitor["parameters"]["monitor"] == {"window_days": 14}
    assert monitor["parameters"]["source"]["events"] == str(up.folder / "events.parquet"), "the home remembers its shop"
    assert {schedule["slug"] for schedule in monitor["schedules"]} == {"hourly", "each-minute"}


def test_ui_points_to_the_servers_that_run(up):
    done = recsys("ui", "--home", up.home)
    assert done.returncode == 2
    assert "running already" in done.stderr
    assert "recsys down" in done.stderr


@pytest.mark.parametrize("name", ["mlflow", "prefect"])
def test_a_server_that_dies_is_started_again(up, name):
    before = up.servers()[name]
    os.killpg(before["pid"], signal.SIGKILL)
    wait_until(lambda: up.servers()[name]["pid"] != before["pid"] and name in up.settings.running())
    assert up.servers()[name]["url"] == before["url"]
    log = (up.home / "logs" / "supervisor.log").read_text()
    assert f"{name} ended with -9" in log
    assert "started again in 1 s" in log


def test_a_worker_that_dies_is_started_again(up):
    worker = next(pid for pid in marked(up.settings) if is_worker(pid))
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: any(is_worker(pid) and pid != worker for pid in marked(up.settings)))


def is_worker(pid: int) -> bool:
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and "worker\0start" in path.read_text()


def test_after_the_supervisor_was_killed_up_starts_anew_on_the_same_ports(up):
    """Its servers and worker live on without it; two of a kind would hold ports and databases twice."""
    housekeeping = up.api.deployment("housekeeping")["id"]
    begun = up.api.post(f"deployments/{housekeeping}/create_flow_run", state={"type": "RUNNING"})
    os.kill(standing(up.settings).pid, signal.SIGKILL)
    wait_until(lambda: standing(up.settings) is None)
    orphans = set(marked(up.settings))
    assert len(orphans) >= 3
    up.start()
    assert not orphans & set(marked(up.settings))
    for command in ("prefect server start", "mlflow server", "prefect worker start"):
        assert len([line for line in running(up.settings) if f"-m {command}" in line]) == 1, command
    assert up.servers()["prefect"]["url"] == f"http://127.0.0.1:{up.ports[0]}/api"
    ended = up.api.run(begun["id"])["state"]["type"]
    assert ended == "CRASHED", "it would hold its deployment's only slot"


def test_down_leaves_nothing_and_twice_is_harmless(up):
    began = time.monotonic()
    done = recsys("down", "--home", up.home)
    assert (done.returncode, done.stdout) == (0, "Everything is stopped.\n")
    assert time.monotonic() - began < PATIENCE
    assert marked(up.settings) == {}
    assert standing(up.settings) is None
    assert not up.settings.servers_file.exists()
    again = recsys("down", "--home", up.home)
    assert (again.returncode, again.stdout) == (0, "Nothing runs here.\n")


def test_what_is_wrong_is_said_before_anything_starts(up, tmp_path):
    for words, message in (
        (["--timezone", "Berlin"], "there is no time zone 'Berlin'"),
        (["--events", tmp_path / "nowhere"], "does not exist"),
        (["--columns", "SKU"], "does not pair"),
    ):
        done = recsys("up", "--home", up.home, *words)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())
    assert standing(up.settings) is None
    taken = socket.create_server(("127.0.0.1", up.ports[0]))
    with taken:
        done = recsys("up", "--home", up.home, "--prefect-port", up.ports[0])
    assert done.returncode == 2
    assert f"port {up.ports[0]} cannot be listened on" in " ".join(done.stdout.split())
    assert marked(up.settings) == {}


def test_down_where_there_is_no_home_says_so(tmp_path):
    done = recsys("down", "--home", tmp_path / "none")
    assert done.returncode == 2
    assert "there is no home" in " ".join(done.stderr.split())
