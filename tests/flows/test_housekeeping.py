"""Housekeeping as a real flow run: old runs go with their artifacts and logs, new ones stay, the home stays bounded."""

import json
import os
import sqlite3

from tasks.adapters.tracking import NIGHT
from tasks.workshop import Workshop
from tests import fork_server, servers

MANY_RUNS = """
import sys
from pathlib import Path
from tasks.adapters.settings import Settings
Settings.from_environment(Path(sys.argv[1])).prepare().export()
import asyncio, sqlite3
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger

@flow
def old():
    get_run_logger().info("a line that is to be forgotten")
    create_markdown_artifact("x" * 2000, key="night")

for _ in range(6):
    old()
database = Path(sys.argv[1]) / "prefect" / "prefect.db"
with sqlite3.connect(database, timeout=60) as connection:
    connection.execute("UPDATE flow_run SET expected_start_time = '2020-01-01 00:00:00'")
old()
"""
HOUSEKEEPING = """
import sys
from pathlib import Path
from tasks.adapters.settings import Settings
Settings.from_environment(Path(sys.argv[1])).prepare().export()
from flows.housekeeping import housekeeping
from recsys.retention import RetentionConfig
print(housekeeping(RetentionConfig(nights=1, days=0, runs_days=30)).model_dump_json())
"""


def child(home, script: str, prefect: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    environment = {**kept, "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1", "PREFECT_API_URL": prefect}
    done = fork_server.run(["-c", script, home], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counted(home, table: str) -> int:
    with sqlite3.connect(home / "prefect" / "prefect.db") as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_old_runs_go_and_the_rest_is_tidied(released):
    home = released.settings.home
    workshop = Workshop.of(released.settings)
    dead = workshop.tracking.client.create_run(workshop.tracking.experiment_id, tags={NIGHT: "of a process that died"})
    yours = workshop.tracking.client.create_run(workshop.tracking.experiment_id, run_name="yours")
    with servers.prefect(released.settings.prefect) as prefect:
        child(home, MANY_RUNS, prefect)
        assert (counted(home, "flow_run"), counted(home, "artifact")) == (7, 7)
        (home / "store" / "bad" / "evidence").write_text("x" * 1000)
        tidied = json.loads(child(home, HOUSEKEEPING, prefect).strip().splitlines()[-1])
    assert tidied["runs"] == 6
    assert tidied["closed"] == 1
    assert tidied["freed"] >= 1000
    assert tidied["faults"] == []
    assert counted(home, "flow_run") == 2, "the new one, and housekeeping itself"
    assert counted(home, "artifact") == 3
    client = workshop.tracking.client
    assert client.get_run(dead.info.run_id).info.status == "KILLED"
    assert client.get_run(yours.info.run_id).info.status == "RUNNING", "it is no night of ours"
    assert workshop.registry.aliases("recsys-student") == {"champion": 1}
    with sqlite3.connect(home / "prefect" / "prefect.db") as connection:
        left = connection.execute("SELECT count(*) FROM log WHERE message LIKE '%to be forgotten%'").fetchone()[0]
    assert left == 1, "of the new run"
