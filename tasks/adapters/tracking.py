"""Nights in MLflow: one parent run a night, children for trainings and trials, datasets by our own digest.

Everything goes through an explicit client; MLflow's global active run is never touched.
"""

import contextlib
import fcntl
import json
import math
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TextIO
from urllib.parse import unquote, urlparse

from recsys.errors import ConfigError, HomeError
from tasks.adapters.connection import Client, RefusedError, alone, connect
from tasks.adapters.disk import remove
from tasks.adapters.settings import Settings

EXPERIMENT = "recsys"
NIGHT = "recsys.night"
"""Tag of a night's run and of its children: the name of the lock its process holds while it lives."""

OCCASION = "recsys.occasion"
"""Tag of a parent run that is no night: what it is instead."""

WATCH = "monitor"
"""The occasion that looks and makes nothing."""

_NAME = re.compile(r"[\w./ -]{1,250}\Z", re.ASCII)
_LONGEST_PARAM = 6000  # characters; MLflow cuts longer ones without a word
_BATCH = 100

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracking:
    """The MLflow experiment of a home."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._alive: dict[str, TextIO] = {}  # run id -> its held lock

    @cached_property
    def client(self) -> Client:
        """The connection, shared with the registry."""
        return connect(self.settings)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment, its artifacts in the home unless a server of yours keeps them."""
        folder = self.settings.artifacts
        client = self.client
        with alone(self.settings):
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                _require_keeper(folder, client.uri)
                experiment = _made(client, folder.as_uri() if folder else None)
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
        there = urlparse(experiment.artifact_location)
        if folder and there.scheme == "file" and not _same(Path(unquote(there.path)), folder):
            raise HomeError(
                f"the home was moved: MLflow keeps its artifacts in {unquote(there.path)}",
                where=str(self.settings.home),
                mend="Move it back, or put a symbolic link to it at the old place and use that.",
            )
        return str(experiment.experiment_id)

    # -- runs

    def start_night(self, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> str:
        """Opens the parent run of a night and gives its id. Runs left open by killed nights become KILLED."""
        token = uuid.uuid4().hex
        self._reap()
        lock = _held(self._nights / token)
        assert lock is not None  # nobody else knows the name
        run_id = self._create(name, {**tags, NIGHT: token})
        self._alive[run_id] = lock
        self.log_params(run_id, params)
        return run_id

    def start_child(self, parent_run_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Opens a run below another one and gives its id."""
        parent = self.client.get_run(parent_run_id).data.tags
        night = {NIGHT: parent[NIGHT]} if NIGHT in parent else {}
        return self._create(name, {**tags, **night, "mlflow.parentRunId": parent_run_id})

    def finish(self, run_id: str, status: Status) -> None:
        """Closes a run as what it became; with a night's run those of its children that are still open."""
        self.client.set_terminated(run_id, status)
        if lock := self._alive.pop(run_id, None):
            self._close_open_runs(Path(lock.name).name, status)
            remove(Path(lock.name))
            lock.close()

    def close_dead(self) -> int:
        """Closes as KILLED every open run whose night no living process of this home holds, and gives how many.

        In an MLflow of yours, which other hosts may use, only those whose process is known to have died here.
        """
        open_before = self._runs("attributes.status = 'RUNNING'")
        self._reap()
        for run in self._runs("attributes.status = 'RUNNING'") if self.settings.artifacts else ():
            night = run.data.tags.get(NIGHT)
            if night and not (self._nights / night).exists():
                self.client.set_terminated(run.info.run_id, "KILLED")
        return len(open_before) - len(self._runs("attributes.status = 'RUNNING'"))

    # -- what a run records

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Metrics at a step. One that is no finite number is named in the tag recsys.not_finite instead."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(_checked(n), float(v), now, step) for n, v in metrics.items() if math.isfinite(v)]
        for batch in _batches(entities):
            self.client.log_batch(run_id, metrics=batch)
        if strange := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self.client.set_tag(run_id, "recsys.not_finite", ", ".join(strange))

    def metrics(self, run_id: str) -> Mapping[str, float]:
        """The newest value of every metric of a run."""
        metrics: Mapping[str, float] = self.client.get_run(run_id).data.metrics
        return metrics

    def ended(self, run_id: str) -> int | None:
        """When a run ended, seconds UTC; None while it is open, and when there is no such run."""
        try:
            ended = self.client.get_run(run_id).info.end_time
        except RefusedError:
            return None
        return None if ended is None else int(ended) // 1000

    def nights_after(self, run_id: str | None) -> list[Mapping[str, float]]:
        """The metrics of every night and refresh that began after a run and came past its first step.

        Of all of them where the run is None or gone.
        """
        condition = "metrics.`cost/validate` >= 0"
        if run_id is not None:
            with contextlib.suppress(RefusedError):
                condition += f" and attributes.start_time > {self.client.get_run(run_id).info.start_time}"
        return [run.data.metrics for run in self._runs(condition) if run.data.tags.get(OCCASION) != WATCH]

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters; one too long for MLflow is whole in the artifact params/<name>.txt."""
        from mlflow.entities import Param

        entities = []
        for name, value in params.items():
            if len(value) > _LONGEST_PARAM:
                self.client.log_text(run_id, value, f"params/{_checked(name)}.txt")
                value = f"{value[:200]}... (whole in params/{name}.txt)"
            entities.append(Param(_checked(name), value))
        for batch in _batches(entities):
            self.client.log_batch(run_id, params=batch)

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags of a run."""
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(name, value) for name, value in tags.items()]):
            self.client.log_batch(run_id, tags=batch)

    def log_artifacts(self, run_id: str, path: Path, folder: str = "") -> None:
        """A file, or a folder's files, as artifacts of a run."""
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder or None)
        else:
            self.client.log_artifact(run_id, str(path), folder or None)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """A text as an artifact of a run."""
        self.client.log_text(run_id, text, name)

    def log_dataset(
        self, run_id: str, name: str, digest: str, *, source: str, rows: int, context: str = "training"
    ) -> None:
        """A dataset by our sha256 `digest`. MLflow's own digest reads only the first 10,000 rows.

        MLflow has room for 36 characters: the digest shown is the first 32, the tag recsys.sha256 has all.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:32],
            source_type="recsys",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows}),
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("recsys.sha256", digest)]
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset, tags=tags)])

    def erase_from_nights(self, folder: str) -> None:
        """A folder of artifacts is gone from every night that came to a verdict."""
        for run in self._runs("tags.`recsys.artifact` != ''"):
            self.client.erase(run.info.artifact_uri, folder)

    # -- inside

    @property
    def _nights(self) -> Path:
        return self.settings.home / "run" / "nights"

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        """A new run. A lost response makes MLflow create two; the one that is not ours is deleted."""
        intent = uuid.uuid4().hex
        run = self.client.create_run(self.experiment_id, run_name=name, tags={**tags, "recsys.intent": intent})
        for twin in self._runs(f"tags.`recsys.intent` = '{intent}'"):
            if twin.info.run_id != run.info.run_id:
                self.client.delete_run(twin.info.run_id)
        return str(run.info.run_id)

    def _runs(self, condition: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _reap(self) -> None:
        """Closes as KILLED what nights left open whose process is gone: the kernel dropped their locks."""
        self._nights.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._nights.iterdir()):
            if lock := _held(path):
                with lock:
                    self._close_open_runs(path.name, "KILLED")
                    remove(path)

    def _close_open_runs(self, night: str, status: Status) -> None:
        for run in self._runs(f"tags.`{NIGHT}` = '{night}' and attributes.status = 'RUNNING'"):
            self.client.set_terminated(run.info.run_id, status)


def _made(client: Client, location: str | None) -> Any:
    """The new experiment. There is one already where another host was faster, or an answer was lost and MLflow asked again."""
    try:
        client.create_experiment(EXPERIMENT, artifact_location=location)
    except RefusedError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(EXPERIMENT)


def _require_keeper(folder: Path | None, uri: str) -> None:
    """ConfigError for a database without a server: MLflow would put artifacts into whatever folder a command is started in."""
    if folder is None and not uri.startswith("http"):
        raise ConfigError(
            "an MLflow database without a server has no place for artifacts that other machines could read",
            where="MLFLOW_TRACKING_URI",
            mend="Start mlflow server over it and name the server's address, or unset it to use the home's own database.",
        )


def _held(path: Path) -> TextIO | None:
    """The lock of a living process, or None when another has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"MLflow takes no metric or parameter called {name!r}: letters, digits and _ . / - only")
    return name


def _batches(entities: list[Any]) -> Iterable[list[Any]]:
    return (entities[i : i + _BATCH] for i in range(0, len(entities), _BATCH))
