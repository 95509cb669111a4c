"""A home's MLflow elsewhere under the same numbers, and what is not moved. The whole way: tests/flows/test_postgres.py."""

import os
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy

from recsys.errors import ConfigError, HomeError, RegistryError
from tasks.adapters.copy_mlflow import DATABASE, copy_mlflow
from tasks.adapters.night_lock import Holder, alone_tonight, at_work
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.move import move
from tasks.workshop import Workshop

KEPT = ("alembic_version", "workspaces")


@pytest.fixture
def home(released) -> Settings:
    return released.settings


@pytest.fixture
def empty(home, tmp_path) -> Path:
    """A database as MLflow's server has made it: nothing but the default experiment, whose files would lie in `there`."""
    path = tmp_path / "new.db"
    path.write_bytes((home.mlflow / "mlflow.db").read_bytes())
    with sqlite3.connect(path) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in set(tables) - set(KEPT):
            database.execute(f"DELETE FROM {table}")
        row = (0, "Default", (tmp_path / "there" / "0").as_uri(), "active", "default")
        columns = "experiment_id, name, artifact_location, lifecycle_stage, workspace"
        database.execute(f"INSERT INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?)", row)
    return path


def rows_of(path: Path) -> dict[str, int]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    tables = [name for name in sqlalchemy.inspect(engine).get_table_names() if name != "experiments"]
    with sqlite3.connect(path) as database:
        return {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}


def test_versions_runs_and_ledger_are_there_under_their_numbers_with_their_files(home, empty, tmp_path):
    before = Workshop.anew(home).ledger.chain()
    target = f"sqlite:///{empty}"
    assert copy_mlflow(home, target, target) > 0
    assert rows_of(empty) == rows_of(home.mlflow / "mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = target
    there = Workshop.anew(home)
    assert there.ledger.chain() == before
    (home.mlflow / "artifacts").rename(tmp_path / "gone")  # nothing of it is needed any more
    there.registry.load_check(STUDENT, before.champion)
    assert copy_mlflow(home, target, target) == 0, "done again"


def test_an_mlflow_that_has_something_else_is_left_alone(home, empty):
    with sqlite3.connect(empty) as database:
        database.execute("INSERT INTO registered_models (workspace, name) VALUES ('default', 'of others')")
    with pytest.raises(RegistryError, match="not new: it has 1 registered models"):
        copy_mlflow(home, f"sqlite:///{empty}", "")


def test_another_version_of_mlflow_s_tables_is_told(home, empty):
    with sqlite3.connect(empty) as database:
        database.execute("UPDATE alembic_version SET version_num = 'later'")
    with pytest.raises(RegistryError, match=r"the server's later.*Install the same MLflow"):
        copy_mlflow(home, f"sqlite:///{empty}", "")


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:9/x", "nonsense", "sqlite:////nowhere/at/all.db"])
def test_a_database_that_cannot_be_opened_is_told_without_its_password(home, url):
    pytest.importorskip("psycopg2")
    with pytest.raises(ConfigError, match="cannot be copied") as told:
        copy_mlflow(home, url, "")
    assert "secret" not in str(told.value)


def test_files_that_cannot_be_sent_leave_the_database_empty(home, empty, tmp_path):
    (tmp_path / "there").write_text("a file in the way")
    with pytest.raises(RegistryError, match="does not take the home's files"):
        copy_mlflow(home, f"sqlite:///{empty}", f"sqlite:///{empty}")
    assert rows_of(empty)["runs"] == 0


def test_what_must_be_named_is_told(home):
    with pytest.raises(ConfigError, match="no place to move to is named"):
        move(home)
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=f"its database must be named too.*{DATABASE}"):
        move(home)


def test_a_home_at_work_is_not_moved(home):
    os.environ |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", DATABASE: "postgresql://db/mlflow"}
    night = Holder.me("nightly", "1", "all events")
    with alone_tonight(home, night, lambda holder: None), pytest.raises(HomeError, match="a night is at work: nightly"):
        move(home)


def test_no_night_begins_while_a_home_is_moved(home, monkeypatch):
    os.environ |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", DATABASE: "postgresql://db/mlflow"}
    working = []

    def looked(settings):
        working.append(at_work(settings))
        raise RegistryError("far enough")

    monkeypatch.setattr(Workshop, "of", looked)
    with pytest.raises(RegistryError, match="far enough"):
        move(home)
    assert [holder.run for holder in working] == ["recsys move"]
