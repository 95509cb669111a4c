"""Store and registry with its ledger, stopped at each call that changes a file: what a kill leaves there is gone on with.

A program is stopped by ptrace (tests/faults/tracer.py) at each of its calls, and the home is copied as it is: the same that SIGKILL
would leave at that call, since a lock is no file. Then each copy is put in the home's place, and the program run again.
"""

import contextlib
import errno
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import HomeError
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.scrub import scrub
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.workshop import Workshop
from tests.faults.tracer import Call, Then, possible, traced

FORK = multiprocessing.get_context("fork")
RECIPE = Recipe("label", 1, {"top_k": 2}, ("aa",))
pytestmark = pytest.mark.skipif(not possible(), reason="this machine lets no program be traced")


def build(out: Path) -> None:
    """Written by Arrow's own code, and by Python's."""
    pq.write_table(pa.table({"item": [1, 2, 3]}), out / "labels.parquet")
    (out / "labels.json").write_text('{"top_k": 2}')


def make(home: Path) -> None:
    """An object, opened and pointed at."""
    store = Store(home / "store")
    (store.scratch(RECIPE) / "checkpoint").write_bytes(bytes(100))
    made = store.make(RECIPE, build)
    store.open("label", made.digest)
    store.set_head("last", {"digest": made.digest})
    store.once("first", {"digest": made.digest})


def promote(home: Path) -> None:
    """The object registered, promoted, and its aliases set, as a night's last step does it."""
    workshop = Workshop.anew(Settings.from_environment(home).prepare().export())
    run_id = workshop.tracking.start_night("nightly", {}, {"k": "10"})
    folder = workshop.store.open("label", workshop.store.head("last")["digest"])
    number = workshop.registry.register(
        STUDENT, folder, "recsys.runtime", run_id=run_id, intent="tonight", tags={"recsys.decision": "PROMOTE"},
        description="Fit.",
    )  # fmt: skip
    assert workshop.ledger.append(Entry("promote", number, 0, "e" * 64, "ann", "fit")).won
    workshop.tracking.finish(run_id, "FINISHED")


def alone(work, *arguments) -> int:
    """In a process of its own, since a tracer has no other children and MLflow keeps its connections."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def stops(work, home: Path, states: Path) -> int:
    """Copies the home at each call of `work` that leaves another home than the one before, and gives how many that were."""

    def program() -> NoReturn:
        work(home)
        os._exit(0)

    def watch() -> None:
        seen = {""}

        def copy(call: Call) -> None:
            if not sqlite_recovers(call) and (found := looks(home)) not in seen:
                seen.add(found)
                copied(home, states / f"{len(seen) - 1:04}")

        os._exit(traced(program, home, copy, 120) or 0)

    states.mkdir()
    assert alone(watch) == 0
    return len(list(states.iterdir()))


def sqlite_recovers(call: Call) -> bool:
    """A call within a transaction: SQLite's own tests are about these. It is done when its journal is gone."""
    return ".db" in call.path and call.name != "unlink"


def copied(source: Path, target: Path) -> None:
    """With its hard links, of which a store is made."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def looks(home: Path) -> str:
    """Which names are there, and how long and how new each file is. In tmp/ nobody looks for anything."""
    there = sorted(path for path in home.rglob("*") if home / "tmp" not in path.parents)
    return json.dumps([(str(path), s.st_size, s.st_mtime_ns, s.st_ino) for path in there for s in [path.lstat()]])


def whole(home: Path) -> dict[str, object]:
    """What must be the same whenever it was killed."""
    store = Store(home / "store")
    made = store.find(RECIPE)
    assert made is not None
    assert store.head("last") == store.head("first") == {"digest": made.digest}
    assert scrub(store).damages == ()
    left = [str(path) for name in ("tmp", "scratch", "bad") for path in (home / "store" / name).iterdir()]
    return {
        "digest": made.digest,
        "left": left,
        "files": sorted(p.name for p in store.open("label", made.digest).iterdir()),
    }


def registered(home: Path) -> dict[str, list[tuple[object, ...]]]:
    """What MLflow's database says, and the ledger's mirror."""
    asked = {
        "sound": "PRAGMA integrity_check",
        "versions": "SELECT name, version FROM model_versions ORDER BY name",
        "aliases": "SELECT alias, version FROM registered_model_aliases ORDER BY alias",
        "open runs": "SELECT run_uuid FROM runs WHERE status = 'RUNNING'",
    }
    with closing(sqlite3.connect(f"file:{home / 'mlflow' / 'mlflow.db'}?mode=ro", uri=True)) as database:
        found = {name: database.execute(query).fetchall() for name, query in asked.items()}
        ((record,),) = database.execute("SELECT value FROM model_version_tags WHERE key = 'recsys.record'").fetchall()
    (mirror,) = (home / "ledger").glob("*/*.json")
    assert mirror.read_text() == record
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """In memory where that can be: a kill loses nothing that was written, so the disk has no part in this."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("place")) as folder:
        yield Path(folder)


def test_a_store_stopped_at_any_call_is_gone_on_with(place):
    home, states = place / "store" / "home", place / "store" / "states"
    home.mkdir(parents=True)
    count = stops(make, home, states)
    expected = whole(home)
    for state in sorted(states.iterdir()):
        shutil.rmtree(home)
        state.rename(home)
        assert alone(make, home) == 0, state.name
        assert whole(home) == expected, state.name
    assert expected["left"] == []
    assert expected["files"] == ["labels.json", "labels.parquet"]
    assert count > 40


@pytest.fixture(scope="module")
def begun(place) -> Path:
    """A home in which the object is made, and MLflow's database, whose making was killed in the middle."""
    home = place / "home"
    home.mkdir()
    for name in ("artifacts", "pyfunc", "store.tracking.sqlalchemy_store", "store.model_registry.sqlalchemy_store"):
        importlib.import_module(f"mlflow.{name}")  # once, not in each child

    def begin() -> None:
        settings = Settings.from_environment(home).prepare().export()
        make(home)
        _ = Workshop.anew(settings).tracking.experiment_id

    assert killed(begin, home, 1500)
    assert alone(begin) == 0
    return home


def killed(work, home: Path, at: int) -> bool:
    """Whether `work` came to call `at` of those on MLflow's database, where it ended by SIGKILL."""

    def program() -> NoReturn:
        work()
        os._exit(0)

    def watch() -> None:
        calls = itertools.count(1)
        left = traced(
            program, home, lambda call: Then.KILL_ALL if "mlflow.db" in call.path and next(calls) == at else None
        )
        os._exit(left == -signal.SIGKILL)

    return alone(watch) == 1


def test_a_database_that_was_killed_between_its_migrations_is_made_anew(begun):
    assert [path.name for path in (begun / "mlflow").iterdir() if path.is_file()] == ["mlflow.db"]


def test_a_promotion_stopped_at_any_call_is_one_promotion(begun, place):
    count = stops(promote, begun, place / "states")
    expected = registered(begun)
    assert expected["versions"] == [(STUDENT, 1), (f"{STUDENT}-ledger", 1)]
    assert expected["aliases"] == [("champion", 1)]
    assert expected["open runs"] == []
    for state in sorted((place / "states").iterdir()):
        shutil.rmtree(begun)
        state.rename(begun)
        assert alone(promote, begun) == 0, state.name
        assert registered(begun) == expected, state.name
        assert whole(begun)["left"] == []
    assert count > 40


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "database or disk is full"), (errno.EIO, "disk I/O error")]
)
def test_a_database_that_the_disk_refuses_is_told_with_path_and_bytes(begun, number, said):
    """Without a traceback, also none that MLflow prints."""

    def program() -> NoReturn:
        with (place / "said").open("w") as file, contextlib.redirect_stderr(file):
            os.dup2(file.fileno(), 2)
            try:
                promote(begun)
            except HomeError as error:
                print(error, file=sys.stderr, flush=True)
        os._exit(0)

    def watch() -> None:
        def refused(call: Call) -> int | None:
            return number if call.name == "pwrite64" and call.path.startswith("mlflow/mlflow.db") else None

        os._exit(traced(program, begun, refused, 120) or 0)

    place = begun.parent
    assert alone(watch) == 0
    told = (place / "said").read_text()
    assert f"cannot write MLflow's database: {said}; it has " in told
    assert "bytes are free" in told
    assert str(begun / "mlflow" / "mlflow.db") in told
    assert "Traceback" not in told
