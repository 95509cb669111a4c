"""Where things are, and what Prefect and MLflow are told of it."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from recsys.errors import ConfigError, HomeError
from recsys.spread import InlineExecutor
from tasks.adapters.execution import open_workers
from tasks.adapters.settings import Settings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nobody's variables before a test, and this process's own again after it."""
    before, temp = dict(os.environ), tempfile.tempdir
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_", "HF_", "XDG_")):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = temp


def test_the_home_is_the_argument_then_the_variable_then_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.from_environment().home == tmp_path / ".recsys"
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path / "b"))
    assert Settings.from_environment().home == tmp_path / "b"
    assert Settings.from_environment(tmp_path / "c").home == tmp_path / "c"


def test_fields_are_read_from_their_variables(monkeypatch, tmp_path):
    for name, value in {"THREADS": "3", "WORKERS": "2", "SHARDS": "8", "MEMORY_MB": "900"}.items():
        monkeypatch.setenv(f"RECSYS_{name}", value)
    monkeypatch.setenv("RECSYS_STORE", str(tmp_path / "elsewhere"))
    found = Settings.from_environment(tmp_path)
    assert (found.threads, found.workers, found.shards, found.memory_mb) == (3, 2, 8, 900)
    assert found.store == tmp_path / "elsewhere"


@pytest.mark.parametrize(("name", "value"), [("THREADS", "0"), ("WORKERS", "two"), ("SHARDS", "3"), ("THREADS", "-1")])
def test_an_impossible_number_is_told_with_its_variable(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(f"RECSYS_{name}", value)
    with pytest.raises(ConfigError, match=f"RECSYS_{name}"):
        Settings.from_environment(tmp_path)


def test_ranks_that_hosts_cannot_share_or_that_cannot_meet_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RECSYS_RANKS", "4")
    assert Settings.from_environment(tmp_path).ranks == 4
    monkeypatch.setenv("RECSYS_HOSTS", "2")
    with pytest.raises(ConfigError, match=r"4 ranks on 2 hosts that meet at '' cannot be launched"):
        Settings.from_environment(tmp_path)
    monkeypatch.setenv("RECSYS_RENDEZVOUS", "first:29400")
    assert Settings.from_environment(tmp_path).rendezvous == "first:29400"
    monkeypatch.setenv("RECSYS_RANKS", "3")
    with pytest.raises(ConfigError, match="RECSYS_HOSTS"):
        Settings.from_environment(tmp_path)


def test_prepare_makes_private_folders(tmp_path):
    settings = Settings.from_environment(tmp_path / "home").prepare()
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    assert stat.S_IMODE(settings.vault.stat().st_mode) == 0o700
    settings.prepare()  # twice is fine


def test_a_file_in_the_way_of_the_home_is_told(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(HomeError, match=r"the home cannot be written.*RECSYS_HOME") as told:
        Settings.from_environment(tmp_path / "home" / "deeper").prepare()
    assert str(tmp_path / "home") in str(told.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_home_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(HomeError, match="Permission denied"):
        Settings.from_environment(tmp_path / "home").prepare()


def test_shards_are_fixed_for_a_home(monkeypatch, tmp_path):
    Settings.from_environment(tmp_path).prepare()
    monkeypatch.setenv("RECSYS_SHARDS", "8")
    with pytest.raises(ConfigError, match="this home has 4 shards, not 8"):
        Settings.from_environment(tmp_path).prepare()


def test_everything_prefect_and_mlflow_write_is_below_the_home(tmp_path):
    settings = Settings.from_environment(tmp_path).prepare().export()
    for name in ("PREFECT_HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME"):
        assert os.environ[name].startswith(str(tmp_path)), name
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] == f"sqlite+aiosqlite:///{tmp_path}/prefect/prefect.db"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert tempfile.gettempdir() == str(settings.temp)
    assert "PREFECT_API_URL" not in os.environ


def test_nothing_is_unpickled_run_or_told_whatever_was_set_before(monkeypatch, tmp_path):
    off = {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    for name, value in off.items():
        monkeypatch.setenv(name, {"false": "true", "true": "false", "1": "0"}[value])
    settings = Settings.from_environment(tmp_path).prepare().export()
    assert {name: os.environ[name] for name in off} == off
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    assert settings.child_environment()["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_a_home_of_its_own_after_another(tmp_path):
    for name in ("a", "b"):
        Settings.from_environment(tmp_path / name).prepare().export()
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/{name}/mlflow/mlflow.db"
        assert os.environ["HF_HOME"] == f"{tmp_path}/{name}/cache/huggingface"


def test_your_own_servers_and_caches_are_left_alone(monkeypatch, tmp_path):
    yours = {
        "MLFLOW_TRACKING_URI": "https://mlflow.shop.example",
        "PREFECT_API_URL": "https://prefect.shop.example/api",
        "HF_HOME": "/models",
    }
    for name, value in yours.items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment(tmp_path).prepare().export()
    assert {name: os.environ[name] for name in yours} == yours
    assert settings.tracking_uri == yours["MLFLOW_TRACKING_URI"]
    assert settings.artifacts is None
    Settings.from_environment(tmp_path).export()  # and again, as in a child process
    assert {name: os.environ[name] for name in yours} == yours


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("/health") else 404)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def test_running_servers_of_the_home_are_used_and_dead_ones_are_not(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    settings = Settings.from_environment(tmp_path).prepare()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def write(pid: int) -> None:
        servers = {"mlflow": {"url": url, "pid": pid}, "prefect": {"url": f"{url}/api", "pid": pid}}
        settings.servers_file.write_text(json.dumps(servers))

    write(os.getpid())
    settings.export()
    assert os.environ["MLFLOW_TRACKING_URI"] == url
    assert os.environ["PREFECT_API_URL"] == f"{url}/api"
    assert settings.artifacts == tmp_path / "mlflow" / "artifacts"
    write(gone.pid)
    assert settings.running() == {}
    write(os.getpid())
    server.shutdown()
    server.server_close()
    assert settings.running() == {}
    settings.export()
    assert os.environ["MLFLOW_TRACKING_URI"] == settings.mlflow_database
    assert "PREFECT_API_URL" not in os.environ


def test_a_damaged_servers_file_is_told(tmp_path):
    settings = Settings.from_environment(tmp_path).prepare()
    settings.servers_file.write_text("[1]")
    with pytest.raises(HomeError, match="the file of running servers is damaged"):
        settings.running()


def test_one_worker_is_this_process_and_more_are_others(monkeypatch, tmp_path):
    with open_workers(Settings.from_environment(tmp_path)) as workers:
        one = workers.executor
        assert isinstance(one, InlineExecutor)
        assert list(one.map(abs, [-1, 2])) == [1, 2]
        assert one.submit(os.getpid).result() == os.getpid()
        with pytest.raises(ZeroDivisionError):
            one.submit(divmod, 1, 0).result()
    monkeypatch.setenv("RECSYS_WORKERS", "2")
    monkeypatch.setenv("RECSYS_THREADS", "6")
    monkeypatch.setenv("RECSYS_MEMORY_MB", "900")
    with open_workers(Settings.from_environment(tmp_path)) as workers:
        two = workers.executor
        assert two.submit(os.getpid).result() != os.getpid()
        assert two.submit(os.getenv, "OMP_NUM_THREADS").result() == "3"
        assert (workers.threads, workers.memory_mb, workers.name) == (3, 450, "2 processes")


def test_a_worker_process_that_is_killed_ends_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("RECSYS_WORKERS", "2")
    with (
        pytest.raises(HomeError, match=r"a worker process ended by itself \(RECSYS_WORKERS\)"),
        open_workers(Settings.from_environment(tmp_path)) as workers,
    ):
        workers.executor.submit(os._exit, 9).result()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", ""),
        ("dask://local", "local"),
        ("dask://10.0.0.7:8786", "tcp://10.0.0.7:8786"),
        ("dask://[::1]:8786", "tcp://[::1]:8786"),
        ("dask+tls://scheduler.shop-1.internal:8786", "tls://scheduler.shop-1.internal:8786"),
    ],
)
def test_the_executor_is_none_or_a_dask_cluster(monkeypatch, tmp_path, text, address):
    monkeypatch.setenv("RECSYS_EXECUTOR", text)
    assert Settings.from_environment(tmp_path).cluster == address


@pytest.mark.parametrize(
    "text",
    ["dask", "dask://", "dask://host", "dask://host:", "dask://host:x", "ray://host:1", "tcp://h:1", "dask://h:1/x"],
)
def test_another_executor_is_refused(monkeypatch, tmp_path, text):
    monkeypatch.setenv("RECSYS_EXECUTOR", text)
    with pytest.raises(
        ConfigError, match=r"is no executor \(RECSYS_EXECUTOR\)\. Write dask://HOST:PORT or dask://local"
    ):
        Settings.from_environment(tmp_path)
