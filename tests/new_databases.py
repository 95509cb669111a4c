"""MLflow's and Prefect's database of a new home, made once in a run of the tests and copied from then on.

From an empty file the migrations take MLflow two and Prefect seven seconds of a core. Homes that `test_up.py`,
`test_tracking.py`, `test_killed.py` and others begin in processes of their own have theirs made as a user's are.
"""

import fcntl
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from tests.fork_server import OURS

PLACE = "TESTS_NEW_DATABASES"
"""The variable that names the folder where they are, for all processes of a run. Without it nothing is laid anywhere."""

ROOT = Path(__file__).parents[1]
_MLFLOW = """
import sys
from mlflow import MlflowClient
MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}").search_experiments(max_results=1)
"""
_PREFECT = """
import os, runpy, sys
os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{sys.argv[1]}"
sys.argv = "prefect server database upgrade --yes".split()
runpy.run_module("prefect", run_name="__main__")
"""


def begin() -> None:
    """A folder for them, which `end` removes."""
    os.environ[PLACE] = tempfile.mkdtemp(prefix="new-databases-")


def end() -> None:
    shutil.rmtree(os.environ.pop(PLACE))


@functools.cache
def folder() -> Path | None:
    """Where they are, also after a command has taken another environment."""
    return Path(os.environ[PLACE]) if PLACE in os.environ else None


def mlflow(database: Path) -> None:
    """Lays one there, unless there is one."""
    _lay("mlflow.db", _MLFLOW, database)


def prefect(home: Path) -> None:
    """Lays one into a folder of Prefect's, unless there is one."""
    _lay("prefect.db", _PREFECT, home / "prefect.db")


def _lay(name: str, program: str, to: Path) -> None:
    if (there := folder()) is None or to.exists():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f"{to.name}.copied")
    shutil.copy(_made(there / name, program), draft)
    draft.rename(to)


def _made(made: Path, program: str) -> Path:
    """The one that is copied, a single file. Whoever wants it first makes it."""
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            draft = made.with_suffix(".draft")
            bare = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
            home = {"PREFECT_HOME": str(made.parent / "home"), "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
            words = [sys.executable, "-c", program, str(draft)]
            done = subprocess.run(words, env=bare | home, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            with closing(sqlite3.connect(draft)) as database:
                database.execute("PRAGMA journal_mode = DELETE")
            draft.rename(made)
    return made
