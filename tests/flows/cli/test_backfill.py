"""Nights of the past: each knows only what was known then, none moves the champion back, and two at once are one."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.story import Story
from recsys.synthetic import shop
from tasks.adapters.store import Store
from tests import fork_server

RECSYS = Path(sys.executable).with_name("recsys")
SMALL = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=3", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=3", "search.epochs=3", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0, 0.5]", "data.history_length=16", "data.min_users=40",
    "gate.min_users=40", "gate.teacher_retention=0.5", "gate.quantization_loss=0.2", "compress.max_loss=0.2",
    "limits.size_ratio=2", "limits.coverage_ratio=0.1", "limits.latency_ms=1000", "gate.slice_loss=0.9",
    "gate.neighbours_loss=0.5", "gate.champion_loss=0.5", "limits.popularity_ratio=3",
]  # fmt: skip


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    return {**kept, "HOME": "/proc/nobody", "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1"}


def command(place: Path, name: str, *words: str) -> list[str]:
    data = ["--events", str(place / "events.parquet"), "--items", str(place / "items.parquet")]
    knobs = [word for knob in SMALL for word in ("--set", knob)]
    return [str(RECSYS), name, "--home", str(place / "home"), *data, *knobs, *words]


def run(place: Path, name: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = fork_server.run(command(place, name, *words)[1:], environment() | more)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


def begun(place: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(place, "nightly", *words), env=environment() | more,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def stories(place: Path) -> list[Story]:
    """Of all nights so far, in the order they were told."""
    files = sorted((place / "home" / "reports").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [Story.from_json(file.read_text()) for file in files]


def aliases(place: Path) -> list[tuple]:
    import sqlite3

    with sqlite3.connect(f"file:{place / 'home' / 'mlflow' / 'mlflow.db'}?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT name, alias, version FROM registered_model_aliases WHERE alias = 'champion'")
        return sorted(found.fetchall())


def head(place: Path) -> dict:
    return json.loads((place / "home" / "store" / "heads" / "last-night.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backfill")
    shop(users=400, items=48, events_a_user=24, randomness=0.3, seed=1, days=60).write(folder)
    return folder


@pytest.fixture(scope="module")
def forwards(place, orchestrator) -> list[Story]:
    done = run(place, "backfill", "--from", "2024-02-24", "--to", "2024-02-26", "--every", "2d", **orchestrator)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Known until" in done.stdout
    return stories(place)


def test_each_night_knows_what_was_before_it(place, forwards):
    times = pq.read_table(place / "events.parquet")["timestamp"]
    bounds = [int(datetime(2024, 2, day, tzinfo=UTC).timestamp()) for day in (24, 26)]
    newest = [pc.max(times.filter(pc.less(times, bound))).as_py() for bound in bounds]
    assert [story.as_of for story in forwards] == [time + 1 for time in newest]
    assert forwards[0].decision == "PROMOTE"
    assert forwards[1].model("champion") is not None, "the second is compared with the first"
    assert head(place)["as_of"] == forwards[-1].as_of


@pytest.fixture(scope="module")
def backwards(place, forwards, orchestrator) -> dict:
    """A night from before the champion, and the first one again."""
    before = {"aliases": aliases(place), "head": head(place)}
    done = run(place, "backfill", "--from", "2024-02-20", "--to", "2024-02-24", "--every", "4d", **orchestrator)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**before, "told": done.stdout, "stories": stories(place)[len(forwards) :]}


def test_a_night_from_before_the_champion_uses_nothing_of_it_and_is_held(place, forwards, backwards):
    older = backwards["stories"][0]
    assert older.decision == "HOLD"
    assert older.sentence.startswith("Older than the champion")
    assert older.model("champion") is None
    assert all(step.reused is False for step in older.steps if step.name in ("teach", "distil"))
    store = Store(place / "home" / "store")
    parents = [store.head(p.stem) for p in (store.root / "heads").glob("student-parent-for-*.json")]
    teachers = [store.head(p.stem) for p in (store.root / "heads").glob("teacher-for-*.json")]
    assert sum(parent["digest"] is not None for parent in parents) <= 1, "the older night starts cold"
    assert {} in teachers, "the older night trains a teacher of its own"


def test_neither_alias_nor_last_night_goes_back(place, backwards):
    assert aliases(place) == backwards["aliases"]
    assert head(place) == backwards["head"]


def test_the_same_as_of_again_is_the_first_result(forwards, backwards):
    again = backwards["stories"][1]
    assert again.as_of == forwards[0].as_of
    assert again.decision == "NO CHANGE"
    assert all(step.reused for step in again.steps if step.name != "evaluate")
    assert again.model("artifact").metrics == forwards[0].model("artifact").metrics


def test_two_starts_at_once_are_one_night_and_what_was_cut_short_is_finished(place, backwards, orchestrator):
    """The first has no time at all and says what it left out; the second waits for it, and does the rest."""
    words = ["--set", "teacher.seed=1", "--set", "refresh.max_age_days=0"]
    lock = place / "home" / "run" / "night.lock"
    first = begun(place, *words, "--set", "run.budget_minutes=0.0001", **orchestrator)
    while not lock.read_text():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)  # else it might be done before the second has begun
    second = begun(place, *words, **orchestrator)
    heard = ""
    while "is at work" not in heard:
        line = second.stdout.readline()
        assert line, heard
        heard += line
    os.kill(first.pid, signal.SIGCONT)
    heard += second.stdout.read()
    told = first.communicate(timeout=400)[0]
    assert first.wait() == second.wait() == 0, told + heard
    left_out = "Cut short by the time budget: teach after 1 of 3 epochs; distil after 2 of 3 trials"
    assert left_out in " ".join(told.replace("│", " ").split())
    assert "waiting for it, then going on with its results" in " ".join(heard.split())
    cut, whole = stories(place)[-2:]
    assert cut.cut_short.startswith("Cut short by the time budget: teach after 1 of 3 epochs")
    assert whole.cut_short == ""
    assert [len(story.teacher_curve) for story in (cut, whole)] == [1, 3]
    assert [len(story.trials) for story in (cut, whole)] == [2, 3]
    assert cut.teacher_curve[0] == whole.teacher_curve[0], "it went on from the checkpoint of the first"
    assert lock.read_text() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "2024-02-24", "--to", "2024-02-20"], "before --from"),
        (["--from", "2024-02-24", "--to", "2999-01-01"], "in the future"),
        (["--from", "yesterday", "--to", "2024-02-20"], "no ISO 8601 time"),
        (["--from", "2024-02-24", "--to", "2024-02-25", "--every", "soon"], "no time between nights"),
    ],
)
def test_a_mistake_is_a_sentence(place, words, message):
    done = run(place, "backfill", *words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
