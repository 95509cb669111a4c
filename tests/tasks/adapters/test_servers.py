"""What keeps a home from having its servers twice, half, or on a port of somebody else."""

import fcntl
import json
import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from recsys.errors import ConfigError, HomeError, RecsysError
from tasks.adapters import servers
from tasks.adapters.daemon import Daemon, marked
from tasks.adapters.servers import Address, Ports, running, serving
from tasks.adapters.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment(tmp_path / "home").prepare()


@pytest.fixture
def taken():
    """A port somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def healthy_url():
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def start(settings: Settings, ports: Ports = Ports()) -> None:  # noqa: B008
    with serving(settings, ports):
        raise AssertionError("they must not start")


def write(settings: Settings, **addresses: object) -> None:
    settings.servers_file.write_text(json.dumps(addresses))


def test_a_port_that_is_taken_is_refused_by_its_option(settings, taken):
    with pytest.raises(ConfigError, match=rf"port {taken} cannot be listened on .--mlflow-port"):
        start(settings, Ports(mlflow=taken))
    assert not settings.servers_file.exists()


def test_the_two_may_not_share_a_port(settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError, match="--prefect-port"):
        start(settings, Ports(prefect=port, mlflow=port))


def test_the_usual_port_gives_way_to_the_next_free_one(taken):
    assert servers._free_port(None, taken, "--mlflow-port", but=taken + 1) > taken + 1


def test_who_answers_is_running_and_is_not_started_again(settings, healthy_url):
    write(settings, mlflow={"url": healthy_url, "pid": os.getpid()})
    assert running(settings) == {"mlflow": Address(healthy_url, os.getpid())}
    with pytest.raises(
        HomeError, match=rf"running already: mlflow at {healthy_url} .*recsys down.*kill -INT -- -{os.getpid()}\."
    ):
        start(settings)
    assert settings.servers_file.exists(), "the file is theirs"


def test_what_a_killed_command_left_is_not_running(settings, taken):
    write(settings, mlflow={"url": f"http://127.0.0.1:{taken + 1}", "pid": 2**22 + 1})
    assert running(settings) == {}


def test_what_a_killed_command_left_running_is_stopped_before_another_starts(settings, taken):
    orphan = Daemon.start(settings, "mlflow", ["http.server", "0", "--bind", "127.0.0.1"], os.environ)
    while orphan.process.pid not in marked(settings):  # the kernel shows its environment a moment after it has begun
        assert orphan.process.poll() is None
    write(settings, mlflow={"url": "http://127.0.0.1:1", "pid": orphan.process.pid})
    with pytest.raises(ConfigError, match="--mlflow-port"):
        start(settings, Ports(mlflow=taken))
    assert orphan.process.wait(10) < 0
    assert not settings.servers_file.exists()


def test_two_that_start_at_once_do_not_both_start(settings):
    with (settings.servers_file.parent / "servers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HomeError, match="just being started or stopped"):
            start(settings)


def test_a_server_that_ends_at_once_is_told_by_its_last_words(settings, monkeypatch):
    monkeypatch.setattr(servers, "_prefect", lambda port: ["json.tool", "--no-such-option"])
    monkeypatch.setattr(servers, "_mlflow", lambda settings, port: ["http.server", str(port)])
    with pytest.raises(RecsysError, match=r"prefect ended with 2: .*unrecognized arguments") as told:
        start(settings)
    assert str(settings.logs / "prefect.log") in str(told.value)
    assert not settings.servers_file.exists()
