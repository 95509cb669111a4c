"""Programs that run beside us: their logs are bounded, their last words are told, and nothing of them is left."""

import os
import signal
import subprocess
import time

import pytest

from recsys.errors import RecsysError
from tasks.adapters import daemon
from tasks.adapters.daemon import Daemon, bound, marked, stop, sweep
from tasks.adapters.settings import Settings

SLEEPER = "import time; time.sleep(600)"
STUBBORN = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print('deaf', flush=True); " + SLEEPER
PARENT = (
    "import subprocess, sys, time; "
    f"print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True).pid, flush=True); "
    "time.sleep(600)"
)


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment(tmp_path / "home").prepare()


@pytest.fixture
def modules(tmp_path):
    """Programs that `python -m` finds: sleeper, stubborn, parent."""
    for name, text in {"sleeper": SLEEPER, "stubborn": STUBBORN, "parent": PARENT}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def wait_for_words(started: Daemon) -> list[str]:
    deadline = time.monotonic() + 60
    while not started.said():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return started.said()


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return subprocess.run(["ps", "-o", "stat=", str(pid)], capture_output=True, text=True).stdout[:1] not in ("", "Z")


def test_who_does_not_listen_is_killed(settings, modules):
    deaf = Daemon.start(settings, "deaf", ["stubborn"], modules)
    wait_for_words(deaf)
    stop([deaf])
    assert deaf.process.wait(5) == -signal.SIGKILL


def test_a_grandchild_in_a_session_of_its_own_is_found_by_the_mark(settings, modules):
    parent = Daemon.start(settings, "parent", ["parent"], modules)
    child = int(wait_for_words(parent)[0])
    parent.process.kill()
    parent.process.wait()
    assert list(marked(settings)) == [child]
    assert sweep(settings) == 1
    assert not exists(child)


def test_another_homes_programs_and_those_that_are_spared_stay(settings, modules, tmp_path):
    other = Settings.from_environment(tmp_path / "other").prepare()
    theirs = Daemon.start(other, "sleeper", ["sleeper"], modules)
    spared = Daemon.start(settings, "sleeper", ["sleeper"], modules)
    try:
        assert sweep(settings, but=[spared]) == 0
        assert theirs.alive()
        assert spared.alive()
    finally:
        stop([theirs, spared])


def test_last_words_are_its_own_not_those_of_the_one_before(settings, modules):
    (settings.logs / "nobody.log").write_text("an old word\n")
    silent = Daemon.start(settings, "nobody", ["json.tool", os.devnull + "/no"], {**modules, "PYTHONPATH": ""})
    silent.process.wait(60)
    with pytest.raises(RecsysError, match=r"nobody ended with \d: .*Not a directory") as told:
        silent.require_alive()
    assert "an old word" not in str(told.value)
    assert (settings.logs / "nobody.log").read_text().startswith("an old word\n")


def test_started_again_it_has_the_same_words_and_place(settings, modules):
    first = Daemon.start(settings, "stubborn", ["stubborn"], modules)
    wait_for_words(first)
    stop([first])
    second = first.again()
    assert wait_for_words(second) == ["deaf"]
    assert (second.command, second.folder) == (first.command, settings.temp)
    stop([second])


def test_a_log_is_cut_while_its_writer_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "LARGEST_LOG", 100)
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        bound(log)
        assert not (tmp_path / "x.log.1").exists(), "it may be so large"
        writer.write(b"b")
        bound(log)
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert (tmp_path / "x.log.1").read_bytes() == b"a" * 100 + b"b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1"]


def test_a_daemon_is_deaf_to_our_ctrl_c(settings, modules):
    started = Daemon.start(settings, "sleeper", ["sleeper"], modules)
    assert os.getsid(started.process.pid) == started.process.pid != os.getsid(0)
    stop([started])
