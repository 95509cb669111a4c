"""Who keeps a home up: one at a time, patient with what ends, understood by systemd."""

import fcntl
import os
import socket
import subprocess
import sys

import pytest

from recsys.errors import HomeError
from tasks.adapters import supervisor
from tasks.adapters.daemon import Daemon
from tasks.adapters.settings import Settings
from tasks.adapters.supervisor import Supervisor, standing


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment(tmp_path / "home").prepare()


def test_nobody_keeps_a_new_home_up(settings):
    assert standing(settings) is None


def test_who_has_the_lock_is_known_until_it_is_gone(settings):
    with supervisor._alone(settings):
        assert standing(settings) == Supervisor(os.getpid(), ready=False)
        supervisor._describe(settings, ready=True)
        assert standing(settings) == Supervisor(os.getpid(), ready=True)
        with pytest.raises(HomeError, match="kept up already"), supervisor._alone(settings):
            raise AssertionError
    assert standing(settings) is None


def test_what_a_killed_one_wrote_is_not_believed(settings):
    (settings.servers_file.parent / "supervisor.json").write_text('{"pid": 1, "ready": true}')
    (settings.servers_file.parent / "supervisor.lock").touch()
    assert standing(settings) is None
    with (settings.servers_file.parent / "supervisor.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert standing(settings) == Supervisor(1, ready=True)


def test_what_ends_again_and_again_is_waited_for_longer_each_time(settings, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    ended = subprocess.Popen([sys.executable, "-c", ""], stderr=subprocess.DEVNULL)
    ended.wait()
    log = settings.logs / "worker.log"
    log.write_text("no more memory\n")
    worker = Daemon("worker", (), {}, log, settings.temp, 0, ended)
    patience, said, starts = supervisor._Patience(), [], []
    while now[0] < 200:
        if patience.is_over(worker, said.append):
            starts.append(now[0])
        now[0] += 0.5
    pauses = [later - earlier for earlier, later in zip([0.0, *starts], starts, strict=False)]
    assert [round(pause) for pause in pauses[:6]] == [1, 2, 4, 8, 16, 32]
    assert max(pauses) <= 61
    assert said[0] == "worker ended with 0: no more memory; it is started again in 1 s"
    assert len(said) == len(starts) + 1, "once each"


def test_systemd_hears_when_all_is_ready(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        supervisor._tell_systemd("READY=1")
        assert systemd.recv(64) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    supervisor._tell_systemd("READY=1")
