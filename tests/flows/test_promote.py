"""Promotion with a person in between, on real servers: a night asks, its run suspends, somebody answers.

The tests of this file are one story: they share servers, deployments and one night.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.promotions import stock
from recsys.resolve import resolve
from recsys.synthetic import shop
from tasks.adapters.registry import STUDENT
from tasks.adapters.servers import Ports, serving
from tasks.adapters.settings import Settings
from tasks.approval import Question, ask, awaited_by
from tasks.workshop import Workshop
from tests import fork_server, new_databases
from tests.prefect_api import PrefectApi

ROOT = Path(__file__).parents[2]
RECSYS = Path(sys.executable).with_name("recsys")
SMALL = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=4", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=2", "search.epochs=3", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "data.history_length=16", "data.min_users=40",
    "gate.min_users=40", "gate.teacher_retention=0.1", "gate.quantization_loss=0.9", "compress.max_loss=0.9",
    "limits.size_ratio=9", "limits.coverage_ratio=0.01", "limits.latency_ms=1000", "gate.slice_loss=1",
    "gate.neighbours_loss=1", "limits.popularity_ratio=30", "run.approval=manual",
]  # fmt: skip
SERVED = """
from prefect import serve
from flows.nightly import nightly
from flows.promote import promote
from flows.rollback import rollback
serve(*(flow.to_deployment(flow.name) for flow in (nightly, promote, rollback)), limit=4)
"""
EXPIRE = """
from datetime import datetime
import sys
from tasks.approval import expire_waiting
from tasks.workshop import Workshop
for question in expire_waiting(Workshop.here(), datetime.fromisoformat(sys.argv[1])):
    print(question.sentence)
"""


class Prefect(PrefectApi):
    """The home's Prefect, and what is waited for in it."""

    def wait(self, run: str, *types: str, seconds: float = 240) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (state := self.run(run)["state"])["type"] not in types:
            assert state["type"] not in ("FAILED", "CRASHED", "CANCELLED"), (state, self.log(run))
            assert time.monotonic() < deadline, (state, self.log(run))
            time.sleep(0.3)
        return state

    def log(self, run: str) -> list[str]:
        found = self.post("logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return [entry["message"] for entry in found]

    def wait_for_word(self, run: str, text: str) -> None:
        """In its log, which the server writes a while after it was said."""
        deadline = time.monotonic() + 60
        while not any(text in line for line in self.log(run)):
            assert time.monotonic() < deadline, self.log(run)
            time.sleep(0.3)

    def told(self, run: str) -> str:
        """The artifact of a run of promote or rollback."""
        (found,) = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return found["data"]

    def event(self, name: str, **having: Any) -> dict[str, Any]:
        """The payload of the one such event. The server writes events a while after they happened."""
        deadline = time.monotonic() + 60
        while True:
            found = self.post("events/filter", filter={"event": {"name": [name]}})["events"]
            such = [event["payload"] for event in found if having.items() <= event["payload"].items()]
            if such:
                (payload,) = such
                return payload
            assert time.monotonic() < deadline, f"no {name} with {having} came"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A home with its servers up, and a process that runs what its deployments are asked for."""
    before, folder = dict(os.environ), tempfile.tempdir
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
            del os.environ[name]
    os.environ.update(RECSYS_THREADS="1", OMP_NUM_THREADS="1", PREFECT_RUNNER_POLL_FREQUENCY="1")
    settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare().export()
    new_databases.prefect(settings.prefect)
    try:
        with serving(settings, Ports()):
            settings.export()
            log = (settings.temp / "runner.log").open("w")
            runner = subprocess.Popen([sys.executable, "-c", SERVED], cwd=ROOT, stdout=log, stderr=log)
            yield settings
            runner.terminate()
            runner.wait(30)
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = folder


@pytest.fixture(scope="module")
def prefect(settings):
    prefect = Prefect(settings.running()["prefect"])
    deadline = time.monotonic() + 120
    while not prefect.deployed("rollback"):
        assert time.monotonic() < deadline, (settings.temp / "runner.log").read_text()[-2000:]
        time.sleep(0.3)
    return prefect


@pytest.fixture(scope="module")
def workshop(settings):
    return Workshop.anew(settings)


@pytest.fixture(scope="module")
def night(prefect, tmp_path_factory) -> str:
    """A night whose candidate the gate finds fit, where a person has the last word."""
    folder = tmp_path_factory.mktemp("shop")
    shop(users=200, items=32, events_a_user=20, randomness=0.3, seed=1, days=60).write(folder)
    config = resolve("quick", SMALL).model_dump(mode="json")
    return prefect.start("nightly", source={"events": str(folder / "events.parquet")}, **config)


def champion(workshop: Workshop) -> int | None:
    return workshop.registry.aliases(STUDENT).get("champion")


def test_the_night_ends_and_its_candidate_waits(prefect, workshop, night):
    assert prefect.wait(night, "COMPLETED")["name"] == "Completed"
    version = workshop.registry.version(STUDENT, 1)
    assert version.tags["recsys.decision"] == "PROMOTE"
    assert version.description.startswith(f"PROMOTE: {version.sentence}\n")
    assert version.sentence.startswith("Fit for promotion: ")
    asked = Question.of(version)
    assert asked.waits
    assert workshop.registry.aliases(STUDENT) == {"challenger": 1}
    assert workshop.store.head("last-night")["decision"] == "HOLD"
    assert workshop.store.head("last-night")["sentence"].startswith("Version 1 waits for approval until ")
    assert prefect.wait(asked.run, "PAUSED")["name"] == "Suspended"
    said = prefect.event("recsys.model.waiting")["sentence"]
    assert "recsys promote --version 1 --approve NAME --reason TEXT" in said
    assert "### What it is" not in said


@pytest.fixture(scope="module")
def others(workshop, night, prefect, settings) -> list[int]:
    """Versions 2 to 5."""
    prefect.wait(night, "COMPLETED")
    return stock(settings, 4)


def test_what_nobody_approved_in_time_ends_in_order_and_moves_nothing(prefect, workshop, settings, others):
    expired = ask(workshop, 2, 0, datetime.now(UTC) + timedelta(hours=1))
    waiting = prefect.start("promote", version=2)
    awaited_by(workshop, expired, waiting)
    prefect.wait(waiting, "PAUSED")
    later = datetime.now(UTC) + timedelta(hours=2)
    done = fork_server.run(["-c", EXPIRE, later.isoformat()], dict(os.environ))
    assert done.stdout.startswith("version 2 is rejected: nobody approved it until")
    prefect.wait(waiting, "COMPLETED")
    assert "version 2 is rejected: nobody approved it" in prefect.told(waiting)
    assert Question.of(workshop.registry.version(STUDENT, 2)).state == "expired"
    assert champion(workshop) is None
    assert prefect.event("recsys.model.rejected")["version"] == 2


def test_approved_in_prefect_it_is_the_champion_with_name_and_reason(prefect, workshop, night, others):
    waiting = Question.of(workshop.registry.version(STUDENT, 1)).run
    nameless = {"answer": "approve", "name": "", "reason": "I looked at it"}
    assert prefect.post(f"flow_runs/{waiting}/resume", run_input=nameless)["status"] == "REJECT"
    answer = {"answer": "approve", "name": "Ada", "reason": "I looked at it"}
    assert prefect.post(f"flow_runs/{waiting}/resume", run_input=answer)["status"] == "ACCEPT"
    prefect.wait(waiting, "COMPLETED")
    assert "recsys-student version 1 is the champion, after no champion" in prefect.told(waiting)
    assert workshop.registry.aliases(STUDENT) == {"champion": 1}
    (record,) = workshop.ledger.chain().records
    assert (record.op, record.to, record.actor, record.reason) == ("promote", 1, "Ada", "I looked at it")
    assert record.evidence == workshop.registry.version(STUDENT, 1).tags["recsys.verdict"]
    event = prefect.event("recsys.model.promoted")
    assert (event["from"], event["to"], event["actor"], event["op"]) == (None, 1, "Ada", "promote")


def test_of_two_who_approve_at_once_over_http_one_wins(prefect, workshop, settings, others):
    last = workshop.ledger.chain().last
    for version in (3, 4):
        ask(workshop, version, last, datetime.now(UTC) + timedelta(hours=1))
    words = ["promote", "--home", str(settings.home), "--approve", "Ada", "--reason", "at once", "--version"]
    both = [
        subprocess.Popen([RECSYS, *words, version], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for version in ("3", "4")
    ]
    said = [process.communicate(timeout=200) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    winner, loser = 3 + codes.index(0), 3 + codes.index(2)
    assert f"the champion changed from 1 to {winner} meanwhile" in " ".join(said[codes.index(2)][1].split())
    assert workshop.registry.aliases(STUDENT) == {"champion": winner, "previous": 1}
    states = {n: Question.of(workshop.registry.version(STUDENT, n)).state for n in (3, 4)}
    assert states == {winner: "approved", loser: "overtaken"}
    assert prefect.event("recsys.model.promoted", to=winner)["actor"] == "Ada", "a short command's event arrives too"


def test_the_flow_of_rollback_brings_the_champion_before_back(prefect, workshop, others):
    done = prefect.start("rollback", name="Grace", reason="complaints")
    prefect.wait(done, "COMPLETED")
    assert "version 1 is the champion" in prefect.told(done)
    assert workshop.registry.aliases(STUDENT) == {"champion": 1}
    record = workshop.ledger.chain().records[-1]
    assert (record.op, record.actor, record.reason) == ("rollback", "Grace", "complaints")


def test_a_night_puts_a_hand_moved_alias_right_and_judges_a_champion_of_which_no_verdict_is_known(
    prefect, workshop, others, night
):
    """Champion 1 is tonight's candidate byte by byte; somebody took its alias and the tag of its verdict away."""
    workshop.registry.set_alias(STUDENT, "champion", None)
    workshop.registry.client.delete_model_version_tag(STUDENT, "1", "recsys.verdict")
    parameters = prefect.run(night)["parameters"]
    again = prefect.start("nightly", **parameters)
    prefect.wait(again, "COMPLETED")
    prefect.wait_for_word(again, "the alias champion was moved by hand from 1 to nothing: put back")
    prefect.wait_for_word(again, "Asked now for the first time, the gate says PROMOTE")
    head = workshop.store.head("last-night")
    assert (head["decision"], head["sentence"]) == (
        "NO CHANGE",
        "the candidate is the champion, version 1, byte by byte",
    )
    assert workshop.registry.aliases(STUDENT)["champion"] == 1
    assert prefect.event("recsys.alias.moved")["outcome"] == "put back"


def test_the_forms_explain_and_bound_each_field():
    from flows.promote import Approval, promote
    from flows.rollback import rollback

    shown = promote.parameters.model_dump()["properties"]
    assert list(shown) == ["version", "approver", "reason"]
    assert all(len(field["description"]) > 20 for field in shown.values())
    form = rollback.parameters.model_dump()
    assert form["required"] == ["name", "reason"]
    assert form["properties"]["reason"]["minLength"] == 1
    assert all(len(field["description"]) > 20 for field in form["properties"].values())
    asked = Approval.model_json_schema()["properties"]
    assert asked["answer"]["enum"] == ["approve", "refuse"]
    assert asked["name"]["title"] == "Your name"
