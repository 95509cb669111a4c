"""A Prefect server for one command: there at once, answered in time, gone with whoever started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from recsys.errors import RecsysError
from tasks.adapters import passing_server
from tasks.adapters.passing_server import PassingServer
from tasks.adapters.settings import Settings


@pytest.fixture
def settings(own_environment, tmp_path) -> Settings:
    return Settings.from_environment(tmp_path / "home").prepare().export()


def test_it_can_be_asked_before_it_is_ready_and_ends_by_itself_when_its_command_is_killed(settings):
    command = (
        "import sys, time; from pathlib import Path; from tasks.adapters.passing_server import PassingServer\n"
        "server = PassingServer(Path(sys.argv[1])); print(server.url, server.process.pid, flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", command, str(settings.logs / "prefect.log")]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ, cwd=Path(__file__).parents[3]
    ) as ours:
        url, pid = ours.stdout.readline().split()
        with urlopen(f"{url}/health", timeout=120) as answer:
            assert answer.read() == b"true"
        assert (settings.prefect / "prefect.db").exists()
        ours.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the server outlived its command")


def test_one_whose_command_was_killed_before_it_could_ask_to_be_told_ends_at_once():
    with socket.create_server((passing_server.HOST, 0)) as listening:
        words = [sys.executable, "-m", passing_server.__name__, str(listening.fileno()), "1"]  # 1 is not its parent
        done = subprocess.run(words, pass_fds=[listening.fileno()], cwd=Path(__file__).parents[3], timeout=60)
    assert done.returncode == 0


def test_one_that_cannot_start_is_told_with_its_log(settings, monkeypatch):
    monkeypatch.setattr(passing_server, "_PASSING", {"PREFECT_API_DATABASE_CONNECTION_URL": "nonsense://"})
    server = PassingServer(settings.logs / "prefect.log")
    with pytest.raises(RecsysError, match=r"Prefect's server did not start: .*prefect\.log"):
        server.wait()
    server.stop()
    assert "nonsense" in (settings.logs / "prefect.log").read_text()
