"""The monitor over a real home: a night, its batch scores, a week of later events, and what is said of them."""

import json
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.synthetic import shop
from tests import fork_server, servers

CUT, LATER = "2024-02-20", "2024-02-27"
KNOBS = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=4", "teacher.learning_rate=0.01", "search.widths=[16]",
    "search.trials=2", "search.epochs=2", "search.learning_rate=0.01", "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0",
    "data.history_length=16", "data.min_users=40", "gate.min_users=40", "gate.teacher_retention=0.3",
    "gate.quantization_loss=0.4", "compress.max_loss=0.4", "limits.size_ratio=2", "limits.coverage_ratio=0.1",
    "limits.latency_ms=1000", "gate.slice_loss=0.9", "gate.neighbours_loss=0.9", "limits.popularity_ratio=3",
    "cost.cpu_hour=3600",
]  # fmt: skip
LOOKS = """
import json, shutil, sys
from pathlib import Path
from flows.cli.home import open_home
home = Path(sys.argv[1])
open_home(home)
from flows.monitor import monitor
from recsys.config import MonitorConfig
from tasks.night import Source
served = home / "scores" / "20240220T000000Z-v1" / "recommendations.parquet"
for asked in json.loads(sys.argv[2]):
    if asked["lists"]:
        shutil.copy(asked["lists"], served)
    looked = monitor(Source(as_of="2024-02-27", events=asked["events"]), MonitorConfig(**asked["knobs"]))
    print(looked.model_dump_json())
from flows.cli.app import app
from typer.testing import CliRunner
for words in json.loads(sys.argv[3]):
    done = CliRunner().invoke(app, [*words, "--home", str(home)])
    print(json.dumps({"code": done.exit_code, "said": " ".join(done.output.split()), "error": str(done.exception)}))
"""
SCORE = """
import sys
from pathlib import Path
from flows.cli.home import open_home
settings = open_home(Path(sys.argv[1]))
from tasks.batch_scores import publish
from tasks.workshop import Workshop
print(publish(Workshop.of(settings), 10, lambda done: None).scores.name)
"""


def python(code: str, *arguments: str, **more: str) -> list[str]:
    return [line for line in run(["-c", code, *arguments], **more).splitlines() if line]


def run(words: list[str], **more: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    env = {**kept, "HOME": "/proc/nobody", "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1", **more}
    done = fork_server.run(words, env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(database: Path, query: str) -> list[tuple]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("monitor")
    shop(users=400, items=48, events_a_user=24, randomness=0.3, seed=1, days=60).write(folder / "shop")
    return folder


@pytest.fixture(scope="module")
def home(place, orchestrator) -> Path:
    """A night as of a week before the end, which promotes version 1, and its batch scores."""
    words = ["nightly", "--home", str(place / "home"), "--as-of", CUT, *(w for knob in KNOBS for w in ("--set", knob))]
    words += ["--events", str(place / "shop" / "events.parquet"), "--items", str(place / "shop" / "items.parquet")]
    run([*words, "--require-promotion"], **orchestrator)
    assert python(SCORE, str(place / "home"))[-1] == "20240220T000000Z-v1"
    return place / "home"


@pytest.fixture(scope="module")
def looks(home, place) -> dict[str, dict]:
    """Four looks by one process, each with all that it saw, and what four commands said after them."""
    served = home / "scores" / "20240220T000000Z-v1" / "recommendations.parquet"
    table = pq.read_table(served)
    one_item = pa.array(["item-00000"] * len(table))
    pq.write_table(table, place / "true.parquet")
    pq.write_table(table.set_column(1, table.schema.field("item_id"), one_item), place / "bad.parquet")
    rollback = {"max_age_days": 10, "on_decay": "propose_rollback"}
    asked = {
        "fine": {"events": "", "lists": "", "knobs": {"max_age_days": 10}},
        "bad": {"events": "", "lists": str(place / "bad.parquet"), "knobs": rollback},
        "bad again": {"events": "", "lists": "", "knobs": rollback},
        "other": {
            "events": other_shop(place),
            "lists": str(place / "true.parquet"),
            "knobs": {"max_age_days": 10, "min_users": 10_000},
        },
    }
    commands = {
        "stale": ["monitor", "--as-of", LATER],
        "all well": ["monitor", "--as-of", LATER, "--set", "monitor.max_age_days=10"],
        "refused": ["monitor", "--set", "monitor.decoy=1"],
        "status": ["status"],
    }
    words = (json.dumps(list(each.values())) for each in (asked, commands))
    with servers.prefect(home / "prefect") as url:
        said = python(LOOKS, str(home), *words, PREFECT_API_URL=url)
    told = [json.loads(line) for line in said if line.startswith("{")]
    for each in told[: len(asked)]:
        each["seen"] = json.loads(Path(each["report"]).with_suffix(".json").read_text())
    return dict(zip([*asked, *commands], told, strict=True))


def other_shop(place: Path) -> str:
    """The same shop, whose events since the cut are likes, and all of them in the first minutes of the day."""
    events = pq.read_table(place / "shop" / "events.parquet")
    times = events["timestamp"].to_numpy()
    later = times >= datetime.fromisoformat(CUT).replace(tzinfo=UTC).timestamp()
    moved = np.where(later, times // 86_400 * 86_400 + times % 600, times)
    shifted = events.set_column(2, "timestamp", pa.array(moved)).append_column(
        "event", [np.where(later, "like", "view")]
    )
    (place / "other").mkdir()
    pq.write_table(shifted, place / "other" / "events.parquet")
    return str(place / "other" / "events.parquet")


@pytest.fixture(scope="module")
def fine(looks) -> dict:
    return looks["fine"]


def test_a_champion_that_learnt_the_rule_beats_both_peers_on_what_came_later(fine):
    seen = fine["seen"]
    assert fine["alarms"] == []
    assert fine["announced"] == []
    follow = seen["follow_up"]
    assert (follow["version"], seen["champion"]) == (1, 1)
    assert follow["users"] > 250
    assert follow["unserved"] == 0
    assert follow["hit_rate"]["champion"]["value"] > follow["hit_rate"]["most_popular"]["value"]
    assert "is not proven" in seen["decay"]["sentence"]
    assert abs(seen["decay"]["change"]["value"]) < 0.3, "hit rates are like those of the gate"


def test_what_was_served_is_scored_by_what_came_later_and_by_nothing_else(home, place, fine):
    """The champion's rate, counted from the files by other means."""
    cut = datetime.fromisoformat(CUT).replace(tzinfo=UTC).timestamp()
    served: dict[str, set[str]] = {}
    for row in pq.read_table(home / "scores" / "latest" / "recommendations.parquet").to_pylist():
        served.setdefault(row["user_id"], set()).add(row["item_id"])
    before, after = {}, {}
    for row in pq.read_table(place / "shop" / "events.parquet").to_pylist():
        part = before if row["timestamp"] < cut else after if row["timestamp"] < cut + 7 * 86_400 else {}
        part.setdefault(row["user_id"], set()).add(row["item_id"])
    wanted = {user: items - before.get(user, set()) for user, items in after.items()}
    hits = [bool(items & served[user]) for user, items in wanted.items() if items and user in served]
    assert fine["seen"]["follow_up"]["users"] == len(hits)
    assert fine["seen"]["follow_up"]["hit_rate"]["champion"]["value"] == pytest.approx(np.mean(hits))


def test_the_same_shop_has_not_drifted(fine):
    drift = fine["seen"]["drift"]
    assert {field["field"] for field in drift["fields"]} >= {"hour", "weekday", "item popularity", "category"}
    assert not any(field["drifted"] for field in drift["fields"])
    assert drift["new_users"] == drift["new_items"] == 0


def test_a_look_is_a_run_of_its_own_and_no_night(home, looks):
    database = home / "mlflow" / "mlflow.db"
    runs = rows(database, "SELECT run_uuid FROM tags WHERE key = 'recsys.occasion' AND value = 'monitor'")
    metrics = {k for (k,) in rows(database, f"SELECT key FROM metrics WHERE run_uuid = '{runs[0][0]}'")}
    assert {"served/champion/hr_at_10", "psi/hour", "age_days/newest_event", "monitor/alarms"} <= metrics
    assert "monitor 2" not in looks["status"]["said"]
    assert "nightly 2" in looks["status"]["said"]
    keys = {key for (key,) in rows(home / "prefect" / "prefect.db", "SELECT key FROM artifact")}
    assert {"monitor", "monitor-served", "monitor-drift"} <= keys


def test_nothing_is_read_twice_and_no_user_id_leaves_the_vault(home, fine):
    reused = rows(
        home / "mlflow" / "mlflow.db", "SELECT value FROM metrics WHERE key = 'reused/validate' ORDER BY timestamp"
    )
    assert reused[1] == (1.0,), "the night's own reading was found"
    for path in (Path(fine["report"]), Path(fine["report"]).with_suffix(".json")):
        assert b"user-0" not in path.read_bytes()


def test_what_a_step_costs_is_recorded_and_told(home):
    database = home / "mlflow" / "mlflow.db"
    (report,) = (path for path in (home / "reports").glob("2*.json"))
    story = json.loads(report.read_text())
    cost = {step["name"]: step["cost"] for step in story["steps"]}
    cpu = {step["name"]: step["cpu_seconds"] for step in story["steps"]}
    assert cpu["teach"] > 0
    assert cost["teach"] == pytest.approx(cpu["teach"]), "a core costs 1 a second here"
    night = dict(rows(database, "SELECT key, value FROM metrics WHERE key IN ('cost/night', 'cost/promoted_model')"))
    assert night["cost/night"] == pytest.approx(sum(cost.values()))
    assert night["cost/promoted_model"] == pytest.approx(story["cost_since_promotion"])
    assert story["cost_since_promotion"] == pytest.approx(sum(cost.values())), "it was the first night"


def test_a_proven_loss_is_announced_once_a_day(looks):
    """Everybody had been served the same bad item."""
    first, second = looks["bad"], looks["bad again"]
    assert first["alarms"] == second["alarms"] == ["decayed"]
    assert first["seen"]["decay"]["change"]["high"] < -0.2
    assert first["announced"] == ["recsys.model.decayed"]
    assert second["announced"] == [], "the same champion on the same day"
    assert "no earlier champion to roll back to" in first["seen"]["alarms"][0]["advice"]


def test_the_command_ends_with_1_when_something_is_wrong_and_0_when_not(looks):
    assert looks["stale"]["code"] == 1
    assert "The last batch scoring is 7.0 days old" in looks["stale"]["said"]
    assert looks["all well"]["code"] == 0
    assert "Nothing is wrong" in looks["all well"]["said"]
    assert "most-popular" in looks["all well"]["said"]
    assert "Did you mean monitor.decay?" in looks["refused"]["error"]


def test_other_events_drift_and_too_few_users_conclude_nothing(looks):
    other = looks["other"]
    assert other["alarms"] == ["drifted"]
    drifted = {field["field"] for field in other["seen"]["drift"]["fields"] if field["drifted"]}
    assert drifted == {"hour", "event"}
    assert "10000 are needed: nothing is concluded" in other["seen"]["decay"]["sentence"]
