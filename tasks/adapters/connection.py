"""The connection to MLflow: made once, told when dead, its refusals as RegistryError.

MLflow is imported on first use, because that takes a second and a half.
"""

import contextlib
import fcntl
import functools
import logging
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recsys.errors import HomeError, RegistryError
from tasks.adapters.disk import remove
from tasks.adapters.settings import Settings

_NO_DISK = ("database or disk is full", "disk I/O error", "attempt to write a readonly database")  # SQLite's words

_PAUSES, _ANSWER_SECONDS = (0, 1, 2), 4
"""Seconds before each question whether a server is there, and for its answer: 15 until it is told that it is not."""


class RefusedError(RegistryError):
    """MLflow refused a call or could not be reached; `code` is its own name for why."""

    def __init__(self, code: str, what: str, where: str) -> None:
        self.code = code
        super().__init__(what, where=where)


class Client:
    """`mlflow.MlflowClient`, method for method, raising `RefusedError` instead of MLflow's exceptions."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        # it prints the traceback of every refusal of SQLite's, which is told as a sentence here
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.uri = uri
        self._mlflow = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._mlflow, name)

        @functools.wraps(method)
        def told(*args: Any, **kwargs: Any) -> Any:
            from mlflow.exceptions import MlflowException

            try:
                return self._to_its_end(method, *args, **kwargs)
            except MlflowException as error:
                _require_disk(self.uri, str(error.message))
                raise RefusedError(str(error.error_code), f"MLflow says: {error.message}", self.uri) from error

        return told

    def _to_its_end(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Signals raise in the main thread, so that a database is written in another one, which is waited for.

        MLflow leaves a transaction open when a write to a database is ended by what Prefect raises for SIGTERM, or by
        Ctrl-C, and the next write, the one that closes the run, waits for it until the database gives up.
        """
        if self.uri.startswith("http"):
            return method(*args, **kwargs)
        with ThreadPoolExecutor(max_workers=1) as writer:
            return writer.submit(method, *args, **kwargs).result()

    def erase(self, place: str, folder: str | None = None) -> None:
        """Artifacts that are gone for good: all at an address of MLflow's, or a folder of them. Nothing there is fine."""
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(place, tracking_uri=self.uri)
        try:
            if repository.list_artifacts(folder):
                repository.delete_artifacts(folder)
        except (MlflowException, OSError) as error:
            raise RefusedError("ERASE", f"MLflow could not remove {folder or 'files'}: {error}", place) from error


def _require_disk(uri: str, said: str) -> None:
    """HomeError when what MLflow said is that its file could not be written."""
    why = next((words for words in _NO_DISK if words in said), None)
    if why is None or not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    size, free = path.stat().st_size if path.exists() else 0, shutil.disk_usage(path.parent).free
    raise HomeError(
        f"cannot write MLflow's database: {why}; it has {size:,} bytes and more are needed, {free:,} bytes are free",
        where=str(path),
        mend="Make room, or choose another home with RECSYS_HOME; then run the same command again.",
    )


def connect(settings: Settings) -> Client:
    """A client whose database is there. RegistryError within 15 seconds when a server does not answer."""
    uri = settings.tracking_uri
    if uri.startswith("http"):
        _reach(uri)
    with alone(settings):  # four processes on a fresh database crash in its migrations
        if uri == settings.mlflow_database:
            _make(settings.mlflow / "mlflow.db")
        client = Client(uri)
        client.search_experiments(max_results=1)
    return client


def _make(database: Path) -> None:
    """The database of a new home, whole or absent: one that was killed between its migrations could not be gone on with."""
    draft = database.with_name(database.name + ".part")
    for left in database.parent.glob(f"{draft.name}*"):
        remove(left)
    if not database.exists():
        Client(f"sqlite:///{draft}").search_experiments(max_results=1)
        draft.rename(database)


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """One process of this home at a time."""
    path = Path(settings.home, "run", "mlflow.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reach(uri: str) -> None:
    """MLflow's own retries would take minutes to tell."""
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_SECONDS):
                return
        except OSError as error:
            why = error
    raise RegistryError(
        f"the MLflow server does not answer: {why}",
        where=uri,
        mend="Start it, or unset MLFLOW_TRACKING_URI to use the home's own database.",
    )
