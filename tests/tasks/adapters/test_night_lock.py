"""One night of a home at a time, by real processes; the dead hold nothing."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from recsys.errors import HomeError
from tasks.adapters.night_lock import Holder, alone_tonight, at_work, no_night
from tasks.adapters.settings import Settings

HOLDS = """
import sys
import time
from pathlib import Path
from tasks.adapters.night_lock import Holder, alone_tonight
from tasks.adapters.settings import Settings
settings = Settings.from_environment(Path(sys.argv[1]))
with alone_tonight(settings, Holder.me(sys.argv[2], "id of " + sys.argv[2], "all events"), lambda holder: None):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment(tmp_path).prepare()


def holding(settings, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDS, str(settings.home), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


def test_the_second_waits_hears_of_the_first_and_learns_that_it_was_killed(settings):
    first = holding(settings, "the first")
    working = at_work(settings)
    assert working is not None
    assert (working.run, working.pid) == ("the first", first.pid)
    heard: list[Holder | None] = []

    def on_wait(holder):
        heard.append(holder)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()

    with alone_tonight(settings, Holder.me("the second", "2", "all events"), on_wait) as killed:
        assert killed == working == heard[0]
        assert at_work(settings).run == "the second"
    assert at_work(settings) is None


def test_one_that_ended_by_itself_leaves_nothing(settings):
    for _ in range(2):
        with alone_tonight(settings, Holder.me("one", "1", "all events"), lambda holder: None) as killed:
            assert killed is None
    assert at_work(settings) is None


def test_one_that_failed_is_known_to_the_next_and_to_nobody_after(settings):
    failed = Holder.me("one", "1", "all events")
    with pytest.raises(OSError, match="no room"), alone_tonight(settings, failed, lambda holder: None):
        raise OSError("no room")
    assert at_work(settings) is None
    for known in (failed, None):
        with alone_tonight(settings, Holder.me("two", "2", "all events"), lambda holder: None) as unfinished:
            assert unfinished == known


@pytest.mark.parametrize("ending", ["well", "by an error", "twice"])
def test_a_command_that_is_no_night_leaves_the_untold_one_to_the_next_night(settings, ending):
    failed = Holder.me("one", "1", "all events")
    with pytest.raises(OSError, match="no room"), alone_tonight(settings, failed, lambda holder: None):
        raise OSError("no room")
    for _ in range(2 if ending == "twice" else 1):
        with contextlib.suppress(OSError), no_night(settings, "recsys forget", "Wait."):
            assert at_work(settings).run == "recsys forget"
            if ending == "by an error":
                raise OSError("no room")
    for known in (failed, None):
        with alone_tonight(settings, Holder.me("two", "2", "all events"), lambda holder: None) as unfinished:
            assert unfinished == known


def test_a_command_does_not_wait_for_a_night_and_a_night_waits_for_it(settings):
    night, heard = Holder.me("nightly", "1", "all events"), []
    with (
        alone_tonight(settings, night, heard.append),
        pytest.raises(HomeError, match=r"a night is at work: nightly.*Later\."),
        no_night(settings, "recsys move", "Later."),
    ):
        pass
    with (
        no_night(settings, "recsys move", "Later."),
        pytest.raises(InterruptedError),
        alone_tonight(settings, night, lambda holder: interrupt(holder, heard)),
    ):
        pass
    assert [holder.run for holder in heard] == ["recsys move"]


def interrupt(holder, heard):
    heard.append(holder)
    raise InterruptedError


def test_nobody_is_at_work_where_nobody_ever_was(tmp_path):
    assert at_work(Settings.from_environment(tmp_path)) is None
