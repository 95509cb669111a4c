"""`recsys down`: stops what `recsys up` started, and what a killed one left behind."""

import contextlib
import os
import signal
import time

from rich.console import Console

from flows.cli.home import HomeOption, open_home
from recsys.errors import HomeError
from tasks.adapters.servers import running, sweep_orphans
from tasks.adapters.settings import Settings
from tasks.adapters.supervisor import standing

_PATIENCE = 20.0  # seconds; it takes ten at most


def command(home: HomeOption = None) -> None:
    """Stop the servers, the worker and what runs on it. A night that is stopped goes on where it was, next time."""
    settings = open_home(home)
    say = Console(highlight=False, soft_wrap=True, markup=False).print
    if supervisor := standing(settings):
        _stop(settings, supervisor.pid)
        say("Everything is stopped.")
    elif swept := sweep_orphans(settings):
        say(f"Nobody kept this home up, but {swept} processes of it were left; they are stopped.")
    elif there := running(settings):
        say("Nothing of recsys up runs here. Where recsys ui was started, Ctrl-C stops:")
        for name, address in sorted(there.items()):
            say(f"  {name} at {address.url.removesuffix('/api')}")
    else:
        say("Nothing runs here.")


def _stop(settings: Settings, pid: int) -> None:
    """Tells the supervisor; kills it, and stops what it minded, when it does not obey."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not _gone(settings):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not _gone(settings):
            raise HomeError("the supervisor does not end", where=f"process {pid}", mend="Look at it with ps and top.")
        sweep_orphans(settings)


def _gone(settings: Settings) -> bool:
    """Whether nobody keeps the home up any more, some time from now at the latest."""
    deadline = time.monotonic() + _PATIENCE
    while standing(settings):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
