"""Nights in a real MLflow on a temporary sqlite file."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from recsys.errors import ConfigError, HomeError, RegistryError
from tasks.adapters import connection
from tasks.adapters.connection import Client
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import EXPERIMENT, Tracking


@pytest.fixture(autouse=True)
def home_database(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()


@pytest.fixture(scope="module")
def tracking(settings):
    return Tracking(settings)


def in_processes(settings: Settings, code: str, count: int) -> list[subprocess.CompletedProcess]:
    """Runs code with `tracking` at hand in several fresh processes at once."""
    start = (
        "import sys, pathlib\n"
        "from tasks.adapters.settings import Settings\n"
        "from tasks.adapters.tracking import Tracking\n"
        "tracking = Tracking(Settings.from_environment(pathlib.Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", start + code, str(settings.home)]
    running = [
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)
    ]
    return [subprocess.CompletedProcess(command, p.wait(), *p.communicate()) for p in running]


def test_many_processes_on_a_fresh_database_share_one_experiment(tmp_path):
    settings = Settings.from_environment(tmp_path / "fresh").prepare()
    done = in_processes(settings, "print(tracking.experiment_id)", 4)
    assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
    assert len({d.stdout for d in done}) == 1


def test_a_night_has_children_metrics_params_and_its_artifacts_below_the_home(tracking, settings, tmp_path):
    night = tracking.start_night("nightly", {"flow": "x"}, {"width": "64"})
    child = tracking.start_child(night, "teacher", {})
    tracking.log_metrics(child, {"loss": 2.0, "validation_ndcg_at_10": 0.1}, step=1)
    tracking.log_metrics(child, {"loss": 1.5}, step=2)
    (tmp_path / "verdict.json").write_text("{}")
    tracking.log_artifacts(night, tmp_path / "verdict.json", "verdict")
    tracking.finish(child, "FINISHED")
    tracking.finish(night, "FINISHED")
    found = tracking.client.get_run(night)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"width": "64"}
    assert found.data.tags["flow"] == "x"
    below = tracking.client.get_run(child)
    assert below.data.tags["mlflow.parentRunId"] == night
    assert [(m.step, m.value) for m in tracking.client.get_metric_history(child, "loss")] == [(1, 2.0), (2, 1.5)]
    assert [p.name for p in settings.mlflow.rglob("verdict.json")] == ["verdict.json"]


def test_more_metrics_and_params_than_fit_a_batch(tracking):
    night = tracking.start_night("nightly", {}, {f"p{i}": str(i) for i in range(250)})
    tracking.log_metrics(night, {f"m{i}": float(i) for i in range(250)}, step=0)
    data = tracking.client.get_run(night).data
    assert data.metrics["m249"] == 249.0
    assert data.params["p249"] == "249"
    tracking.finish(night, "FINISHED")


def test_a_long_parameter_is_whole_in_an_artifact(tracking, settings):
    night = tracking.start_night("nightly", {}, {"long": "x" * 7000})
    value = tracking.client.get_run(night).data.params["long"]
    assert value == "x" * 200 + "... (whole in params/long.txt)"
    kept = next(p for p in settings.mlflow.rglob("long.txt") if night in str(p))
    assert kept.read_text() == "x" * 7000
    tracking.finish(night, "FINISHED")


def test_a_name_mlflow_refuses_is_refused_here_by_name(tracking):
    night = tracking.start_night("nightly", {}, {})
    with pytest.raises(ValueError, match="ndcg@10"):
        tracking.log_metrics(night, {"ndcg@10": 0.1}, step=0)
    tracking.finish(night, "FINISHED")


def test_what_is_no_number_is_told_and_not_stored(tracking):
    night = tracking.start_night("nightly", {}, {})
    tracking.log_metrics(night, {"good": 1.0, "bad": float("inf"), "worse": float("nan")}, step=0)
    data = tracking.client.get_run(night).data
    assert data.metrics == {"good": 1.0}
    assert data.tags["recsys.not_finite"] == "bad, worse"
    tracking.finish(night, "FINISHED")


def test_a_dataset_is_known_by_our_digest(tracking):
    night = tracking.start_night("nightly", {}, {})
    digest = "0123456789abcdef" * 4
    tracking.log_dataset(night, "events", digest, source='/data/a "b".csv', rows=12)
    (found,) = tracking.client.get_run(night).inputs.dataset_inputs
    assert found.dataset.digest == digest[:32]
    assert {t.key: t.value for t in found.tags} == {"mlflow.data.context": "training", "recsys.sha256": digest}
    assert found.dataset.source == '{"uri": "/data/a \\"b\\".csv"}'
    tracking.finish(night, "FINISHED")


def test_finishing_a_night_closes_the_children_a_failure_left_open(tracking):
    night = tracking.start_night("nightly", {}, {})
    child = tracking.start_child(night, "trial 0", {})
    tracking.finish(night, "FAILED")
    assert tracking.client.get_run(child).info.status == "FAILED"


def test_a_killed_night_is_closed_by_the_next_and_a_living_one_is_not(tracking, settings):
    living = tracking.start_night("nightly", {}, {})
    (killed,) = in_processes(
        settings,
        "import os\n"
        "night = tracking.start_night('killed', {}, {})\n"
        "print(night, tracking.start_child(night, 'teacher', {}), flush=True)\n"
        "os._exit(9)\n",
        1,
    )
    assert killed.returncode == 9, killed.stderr
    next_night = tracking.start_night("nightly", {}, {})
    statuses = [tracking.client.get_run(r).info.status for r in (*killed.stdout.split(), living, next_night)]
    assert statuses == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
    tracking.finish(living, "FINISHED")
    tracking.finish(next_night, "FINISHED")
    assert not list((settings.home / "run" / "nights").iterdir())


def test_a_run_created_twice_by_a_lost_response_is_one_run(tracking):
    create = tracking.client.create_run

    class Dropping:
        """Forwards, loses the response, and asks again, as MLflow's own HTTP client does."""

        def __getattr__(self, name):
            return getattr(tracking.client, name)

        def create_run(self, *args, **kwargs):
            create(*args, **kwargs)
            return create(*args, **kwargs)

    dropping = Tracking(tracking.settings)
    dropping.__dict__["client"] = Dropping()
    night = dropping.start_night("twice", {}, {})
    found = tracking.client.search_runs([tracking.experiment_id], "attributes.run_name = 'twice'")
    assert [run.info.run_id for run in found] == [night]
    dropping.finish(night, "FINISHED")


def test_a_dead_server_is_told_with_its_address(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryError, match="the MLflow server does not answer") as told:
        _ = Tracking(Settings.from_environment(tmp_path).prepare()).client
    assert uri in str(told.value)


def test_a_silent_server_is_told_within_fifteen_seconds(monkeypatch, tmp_path):
    """By a clock that stands but for its pauses, and for as long as it would wait for each answer."""
    clock = [0.0]

    def pass_by(seconds: float) -> None:
        clock.append(clock[-1] + seconds)

    def silent(_url: str, timeout: float) -> None:
        pass_by(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(connection.time, "sleep", pass_by)
    monkeypatch.setattr(connection.urllib.request, "urlopen", silent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    with pytest.raises(RegistryError, match="does not answer: timed out") as told:
        _ = Tracking(Settings.from_environment(tmp_path).prepare()).client
    assert "http://mlflow.invalid:5000" in str(told.value)
    assert 4 < clock[-1] <= 15


class Losing:
    """A connection whose answer to one kind of call is lost: MLflow is asked again and hears what it says to that."""

    def __init__(self, client: Client, lost: str) -> None:
        self.client, self.lost, self.uri = client, lost, client.uri

    def __getattr__(self, name: str):
        call = getattr(self.client, name)

        def twice(*args, **kwargs):
            call(*args, **kwargs)
            return call(*args, **kwargs)

        return twice if name == self.lost else call


def test_an_experiment_whose_creation_is_asked_for_twice_is_there(tmp_path):
    tracking = Tracking(Settings.from_environment(tmp_path / "home").prepare())
    tracking.__dict__["client"] = Losing(tracking.client, "create_experiment")
    assert tracking.client.get_experiment(tracking.experiment_id).name == EXPERIMENT


def test_a_database_without_a_server_gets_no_experiment_of_ours(monkeypatch, tmp_path):
    class New:
        uri = "postgresql://mlflow@db/mlflow"

        def get_experiment_by_name(self, name: str) -> None:
            return None

    monkeypatch.setenv("MLFLOW_TRACKING_URI", New.uri)
    tracking = Tracking(Settings.from_environment(tmp_path).prepare())
    tracking.__dict__["client"] = New()
    with pytest.raises(ConfigError, match="no place for artifacts that other machines could read"):
        _ = tracking.experiment_id


class Told(BaseException):
    """As what Prefect raises for SIGTERM, no Exception."""


@pytest.mark.parametrize("times", [1, 2])
def test_a_night_told_to_stop_while_its_database_is_written_can_write_that_it_ended(tracking, settings, times):
    """A write of MLflow's that is interrupted can leave its transaction open, for which the next one waits until it is refused."""
    night, written, heard = tracking.start_night("stopped", {}, {}), [], []

    @event.listens_for(Engine, "after_cursor_execute")
    def stop(_connection, _cursor, statement, *_):
        if statement.startswith("INSERT INTO tags") and not written:
            written.append(statement)
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # that the main thread hears of it first

    def tell(*_):
        heard.append(time.monotonic())
        raise Told

    before = signal.signal(signal.SIGTERM, tell)
    try:
        with pytest.raises(Told):
            tracking.client.set_tag(night, "told", "to stop")
        tracking.finish(night, "FAILED")
    finally:
        signal.signal(signal.SIGTERM, before)
        event.remove(Engine, "after_cursor_execute", stop)
    assert len(heard) == times
    run = tracking.client.get_run(night)
    assert (run.info.status, run.data.tags["told"]) == ("FAILED", "to stop")


def test_a_moved_home_is_told(tracking, settings, tmp_path):
    _ = tracking.experiment_id
    moved = Settings.from_environment(tmp_path / "moved").prepare()
    (moved.mlflow / "mlflow.db").write_bytes((settings.mlflow / "mlflow.db").read_bytes())
    with pytest.raises(HomeError, match="the home was moved"):
        _ = Tracking(moved).experiment_id
