"""Nights that end before their end, by a refusal or from Prefect's page, and one that has no way to the outside."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests import fork_server, servers
from tests.faults.night import KNOBS, ROOT, Shop, Truth, asked, broken, processes, rows
from tests.prefect_api import PrefectApi

UNCONNECTED = """
import ctypes, fcntl, socket, struct, sys
CLONE_NEWNET, SIOCSIFFLAGS, UP = 0x40000000, 0x8914, 1
if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
    sys.exit(77)
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", UP))
asked, sys.argv = open(sys.argv[1], "w", buffering=1), ["recsys", *sys.argv[2:]]
def listen(event, words):
    if event == "socket.getaddrinfo" and words[0] not in (None, "127.0.0.1", "localhost", b"127.0.0.1"):
        print(event, words[0], file=asked)
    if event == "socket.connect" and isinstance(words[1], tuple) and words[1][0] not in ("127.0.0.1", "::1"):
        print(event, words[1], file=asked)
sys.addaudithook(listen)
from flows.cli.app import main
main()
"""
SERVED = """
import json, sys
from prefect import serve
from flows.nightly import nightly
from recsys.resolve import resolve
config = resolve("quick", json.loads(sys.argv[2]))
sections = {name: getattr(config, name).model_dump(mode="json") for name in type(config).model_fields}
serve(nightly.to_deployment("nightly", parameters={"source": json.loads(sys.argv[1]), **sections}))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop(tmp_path_factory.mktemp("ends") / "shop").make()


def test_what_is_refused_is_not_tried_again(shop, tmp_path):
    """Half of its events are nobody's."""
    events = pq.read_table(shop.folder / "events.parquet")
    whose = pc.if_else(pa.array([True, False] * len(events))[: len(events)], events["user_id"], None)
    (shop.folder / "nobodys").mkdir()
    pq.write_table(
        events.set_column(events.schema.get_field_index("user_id"), "user_id", whose),
        shop.folder / "nobodys" / "events.parquet",
    )
    home = tmp_path / "home"
    done = fork_server.run(shop.words(home, events="nobodys/events.parquet"), shop.environment())
    assert done.returncode == 2, done.stdout + done.stderr
    prefect = home / "prefect" / "prefect.db"
    assert asked(prefect, "SELECT state_type, run_count FROM flow_run") == [("FAILED", 1)]
    tasks = asked(prefect, "SELECT name, state_type, run_count FROM task_run")
    assert [(name.rpartition("-")[0], *rest) for name, *rest in tasks] == [("validate", "FAILED", 1)]
    assert rows(home, "SELECT status FROM runs") == [("FAILED",)]


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [("MLFLOW_TRACKING_URI", "", "the MLflow server does not answer"), ("PREFECT_API_URL", "/api", "Prefect's server does not answer")],
    ids=["MLflow", "Prefect"],
)  # fmt: skip
def test_a_server_that_is_down_at_the_start_is_told_with_its_address(shop, tmp_path, name, path, said):
    address = f"http://127.0.0.1:{servers.free_port()}{path}"
    done = fork_server.run(shop.words(tmp_path / "home"), shop.environment({name: address}))
    assert done.returncode == 2, done.stdout + done.stderr
    told = " ".join(done.stderr.split())
    assert said in told
    assert address in "".join(done.stderr.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "home" / "store" / "manifests").glob("*/*")), "nothing was begun"


@pytest.fixture(scope="module")
def alone(shop) -> tuple[Path, Path]:
    """The home of a night that is left alone, without a way to the outside; and what of it was asked there, where that could be taken away."""
    home, said = shop.folder / "alone", shop.folder / "asked"
    done = fork_server.run(["-c", UNCONNECTED, said, *shop.words(home)], shop.environment())
    if done.returncode == 77:
        done = fork_server.run(shop.words(home), shop.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return home, said


def test_without_a_way_to_the_outside_a_night_is_as_any_other_and_asks_for_none(alone):
    if not alone[1].exists():
        pytest.skip("only root may take the network away")
    assert alone[1].read_text() == ""


LONG = [knob for knob in KNOBS if not knob.startswith("teacher.epochs=")] + ["teacher.epochs=1000"]
"""Nobody waits for its end."""


@contextlib.contextmanager
def served(shop: Shop, home: Path, url: str, knobs: list[str]) -> Iterator[None]:
    """A process that runs the nights which Prefect is asked for."""
    source = {name: str(shop.folder / f"{name}.parquet") for name in ("events", "items")}
    places = {"PREFECT_API_URL": url, "RECSYS_HOME": str(home), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with home.with_name("runner.log").open("w") as to:
        words = [sys.executable, "-c", SERVED, json.dumps(source), json.dumps(knobs)]
        runner = subprocess.Popen(words, cwd=ROOT, env=shop.environment(places), stdout=to, stderr=to)
    try:
        yield
    finally:
        runner.terminate()
        runner.wait(30)


def awaited(get: Callable[[], Any]) -> Any:
    """What it gives, once that is something."""
    deadline = time.monotonic() + 300
    while not (got := get()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return got


class Asked:
    """A night that Prefect was asked for."""

    def __init__(self, url: str) -> None:
        self.prefect = PrefectApi(url)
        awaited(lambda: self.prefect.deployed("nightly"))
        self.run = self.prefect.start("nightly")

    def state(self) -> str:
        return self.prefect.run(self.run)["state_type"]

    def mark(self, state: str) -> None:
        self.prefect.post(f"flow_runs/{self.run}/set_state", state={"type": state}, force=True)


def test_cancelled_from_prefect_it_ends_and_nothing_is_half_promoted(shop, alone, tmp_path):
    home = tmp_path / "home"
    (tmp_path / "prefect").mkdir()
    with servers.prefect(tmp_path / "prefect", services=True) as url:
        with served(shop, home, url, LONG):
            night = Asked(url)
            awaited(lambda: list(home.glob("store/objects/build/*")))
            night.mark("CANCELLING")
            awaited(lambda: night.state() == "CANCELLED")
        assert processes(home) == []
        assert rows(home, "SELECT name FROM registered_model_aliases") == []
        assert rows(home, "SELECT status FROM runs WHERE name LIKE 'nightly%'") == [("FAILED",)]
        assert rows(home, "SELECT name FROM runs WHERE status = 'RUNNING'") == []
        assert fork_server.run(shop.words(home), shop.environment({"PREFECT_API_URL": url})).returncode == 0
    assert broken(home, Truth.of(alone[0])) == []


def test_a_night_that_prefect_holds_for_crashed_promotes_nothing_and_the_next_one_does(shop, alone, tmp_path):
    """As where a machine slept through the heartbeats of its run."""
    home = tmp_path / "home"
    (tmp_path / "prefect").mkdir()
    with servers.prefect(tmp_path / "prefect", services=True) as url:
        with served(shop, home, url, list(KNOBS)):
            night = Asked(url)
            awaited(lambda: list(home.glob("store/objects/build/*")))
            night.mark("CRASHED")
            awaited(lambda: rows(home, "SELECT 1 FROM runs WHERE name LIKE 'nightly%' AND status = 'FAILED'"))
        assert night.state() == "CRASHED"
        assert list(home.glob("store/objects/judge/*")), "it had come to its verdict"
        assert rows(home, "SELECT name FROM registered_model_aliases") == []
        assert rows(home, "SELECT name FROM model_versions") == []
        assert "so it promotes nothing" in " ".join((tmp_path / "runner.log").read_text().split())
        assert fork_server.run(shop.words(home), shop.environment({"PREFECT_API_URL": url})).returncode == 0
    assert broken(home, Truth.of(alone[0])) == []
