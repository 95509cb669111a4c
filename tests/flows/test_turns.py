"""Nights that were missed, by a real schedule in a real Prefect, in a real home: one of nine works and knows the newest."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.synthetic import shop
from tests import fork_server

DRIVE = """
import json, sys
from pathlib import Path
from tasks.adapters.settings import Settings
Settings.from_environment(Path(sys.argv[1])).prepare().export()
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.flow_engine import run_flow
from prefect.states import Pending
from flows.nightly import nightly
from recsys.resolve import resolve

config = resolve("quick", json.loads(sys.argv[3]))
sections = {name: getattr(config, name).model_dump(mode="json") for name in type(config).model_fields}

def deployed(name, first, last, limit=None, **run):
    parameters = {"source": json.loads(sys.argv[2]), **sections, "run": {**sections["run"], **run}}
    made = nightly.to_deployment(name, cron="0 2 * * *", parameters=parameters, concurrency_limit=limit).apply()
    span = {"start_time": first, "end_time": last, "min_runs": 9}
    with get_client(sync_client=True) as client:
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": made}, json=span)
        runs = client.request("POST", "/flow_runs/filter", json={
            "deployments": {"id": {"any_": [str(made)]}}, "sort": "EXPECTED_START_TIME_ASC",
            "flow_runs": {"expected_start_time": {"before_": last}}}).json()
        return [client.read_flow_run(run["id"]) for run in runs]

def play(run):
    with get_client(sync_client=True) as client:
        if limit_of_place:
            run = client.read_flow_run(run.id)
        if run.state_type.value != "CANCELLED":
            run_flow(nightly, flow_run=run, parameters=run.parameters, return_type="state")
        run = client.read_flow_run(run.id)
        return {"at": str(run.expected_start_time), "state": run.state_name, "said": run.state.message}

first, last = "2024-02-18T00:00:00Z", "2024-02-26T12:00:00Z"
limit_of_place = False
late = [play(run) for run in deployed("late", first, last)]
none = [play(run) for run in deployed("none", first, last, catch_up="none")[-2:]]
limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
crowded = deployed("crowded", first, last, limit=limit)
with get_client(sync_client=True) as client:  # as a worker does with all that is due at once
    for run in crowded:
        client.set_flow_run_state(run.id, Pending())
limit_of_place = True
crowded = [play(run) for run in crowded]
print(json.dumps({"late": late, "none": none, "crowded": crowded}))
"""

SMALL = [
    "teacher.width=16", "teacher.epochs=1", "search.widths=[16]", "search.trials=2", "search.epochs=1",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "data.history_length=16", "data.min_users=40",
    "gate.min_users=40",
]  # fmt: skip
LAST_SLOT = datetime(2024, 2, 26, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("turns")
    shop(users=300, items=40, events_a_user=20, randomness=0.3, seed=1, days=60).write(folder)
    return folder


@pytest.fixture(scope="module")
def played(place, orchestrator) -> dict[str, list[dict]]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    source = {"events": str(place / "events.parquet"), "items": str(place / "items.parquet")}
    words = ["-c", DRIVE, str(place / "home"), json.dumps(source), json.dumps(SMALL)]
    environment = {**kept, "HOME": "/proc/nobody", "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment |= orchestrator
    done = fork_server.run(words, environment, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_of_nine_late_runs_one_works_and_the_others_say_which(played):
    states = [run["state"] for run in played["late"]]
    assert states == ["Completed", *["Skipped"] * 8]
    assert all("has done all that this night could know" in run["said"] for run in played["late"][1:])


def test_it_knows_what_was_before_the_newest_slot_and_nothing_else(place, played):
    head = json.loads((place / "home" / "store" / "heads" / "last-night.json").read_text())
    times = pq.read_table(place / "events.parquet")["timestamp"]
    bound = int(LAST_SLOT.timestamp())
    assert head["as_of"] == pc.max(times.filter(pc.less(times, bound))).as_py() + 1
    for view in (place / "home" / "store" / "views").glob("*/shard-*.parquet"):
        newest = pc.max(pc.list_flatten(pq.read_table(view)["times"])).as_py()
        assert newest is None or newest < bound
    assert pc.max(times).as_py() >= bound, "there was something that it must not know"


def test_where_missed_nights_are_not_made_up_for_late_runs_say_so(played):
    assert [run["state"] for run in played["none"]] == ["Skipped"] * 2
    assert "missed nights are not made up for" in played["none"][0]["said"]


def test_when_the_server_cancels_all_but_one_that_one_does_the_newest_night(place, played):
    states = [run["state"] for run in played["crowded"]]
    assert sorted(states) == ["Cancelled"] * 8 + ["Completed"]
    datasets = list((place / "home" / "store" / "objects" / "build").iterdir())
    assert len(datasets) == 1, "the same as-of, whichever run it was: the second night found all of it made"
