"""Keeps an installation up: two servers and a worker. What ends is started again, until we are told to stop."""

import contextlib
import fcntl
import json
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import NoReturn, TextIO

from recsys.errors import HomeError, RecsysError
from tasks.adapters.daemon import Daemon, bound, sweep
from tasks.adapters.servers import Ports, Server, publish, serving
from tasks.adapters.settings import Settings

POOL = "recsys"
"""The work pool of this home's deployments, and its worker."""

Say = Callable[[str], None]

_CALM = 60.0  # seconds a daemon must run to be thought well again
_LONGEST_PAUSE = 60.0  # seconds
_WORKER_SECONDS = 120.0
_BOUND_EVERY = 60.0  # seconds between two looks at the sizes of logs
_WORKER = (
    "prefect",
    "worker",
    "start",
    "--pool",
    POOL,
    "--name",
    POOL,
    "--type",
    "process",
    "--install-policy",
    "never",
)


@dataclass(frozen=True)
class Supervisor:
    """Who keeps an installation up."""

    pid: int
    ready: bool  # servers answer, the worker runs, the deployments are applied


def standing(settings: Settings) -> Supervisor | None:
    """Who keeps this home up, if anybody does."""
    while _held(settings):
        with contextlib.suppress(FileNotFoundError):  # it has the lock and is just writing who it is
            return Supervisor(**json.loads((settings.servers_file.parent / "supervisor.json").read_bytes()))
        time.sleep(0.05)
    return None


def supervise(settings: Settings, ports: Ports, deploy: Sequence[str], say: Say) -> NoReturn:
    """Starts the servers, runs the module `deploy` once, starts the worker, and minds them all.

    Ends by an exception only, KeyboardInterrupt for example; nothing is left running then. HomeError when the home is
    kept up already; RecsysError when something fails at the start.
    """
    with _alone(settings), serving(settings, ports) as servers:
        say(f"Prefect  {servers['prefect'].url.removesuffix('/api')}")
        say(f"MLflow   {servers['mlflow'].url}")
        settings.export()  # from here on what is started finds the servers
        environment = {**os.environ, "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false"}
        try:
            _run_once(Daemon.start(settings, "deploy", deploy, environment), servers, say)
            began = datetime.now(UTC)
            worker = Daemon.start(settings, "worker", _WORKER, environment)
            _await_worker(worker, servers["prefect"].url, began)
            _describe(settings, ready=True)
            _tell_systemd("READY=1")
            _mind(settings, servers, worker, say)
        finally:
            sweep(settings, but=[server.daemon for server in servers.values()])


def _run_once(daemon: Daemon, servers: Mapping[str, Server], say: Say) -> None:
    """Until it has ended well; a server that ends meanwhile is an error too."""
    while daemon.alive():
        for server in servers.values():
            server.daemon.require_alive()
        time.sleep(0.1)
    if daemon.process.returncode:
        raise RecsysError(daemon.farewell(), where=str(daemon.log), mend="Mend it, then start again.")
    for line in daemon.said():
        say(line)


def _await_worker(worker: Daemon, api: str, began: datetime) -> None:
    """Until Prefect has heard of the worker. RecsysError when it ends, or takes more than two minutes."""
    deadline = time.monotonic() + _WORKER_SECONDS
    while not _heard_since(api, began):
        worker.require_alive()
        if time.monotonic() > deadline:
            raise RecsysError("the worker does not report to Prefect", where=str(worker.log), mend="Read its log.")
        time.sleep(0.5)


def _heard_since(api: str, began: datetime) -> bool:
    request = urllib.request.Request(
        f"{api}/work_pools/{POOL}/workers/filter", b"{}", {"Content-Type": "application/json"}
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as reply:
        return any(datetime.fromisoformat(each["last_heartbeat_time"]) >= began for each in json.load(reply))
    return False


def _mind(settings: Settings, servers: dict[str, Server], worker: Daemon, say: Say) -> NoReturn:
    patience = {name: _Patience() for name in (*servers, "worker")}
    bounded = time.monotonic()
    while True:
        for name, server in servers.items():
            if patience[name].is_over(server.daemon, say):
                servers[name] = server.again()
                publish(settings, servers)
        if patience["worker"].is_over(worker, say):
            worker = worker.again()
        if time.monotonic() - bounded > _BOUND_EVERY:
            bounded = time.monotonic()
            for log in settings.logs.glob("*.log"):
                bound(log)
        time.sleep(0.5)


class _Patience:
    """When what ended is started again: after a second, twice as long each time, and as at first after a calm minute."""

    def __init__(self) -> None:
        self._pause = 1.0
        self._well_since = time.monotonic()
        self._due: float | None = None

    def is_over(self, daemon: Daemon, say: Say) -> bool:
        """Whether it has ended and is to be started now. Says so once."""
        now = time.monotonic()
        if daemon.alive():
            return False
        if self._due is None:
            if now - self._well_since > _CALM:
                self._pause = 1.0
            say(f"{daemon.farewell()}; it is started again in {self._pause:.0f} s")
            self._due, self._pause = now + self._pause, min(_LONGEST_PAUSE, 2 * self._pause)
        if now < self._due:
            return False
        self._due, self._well_since = None, now
        return True


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Holds the home's lock on supervisors, and says who holds it."""
    with (settings.servers_file.parent / "supervisor.lock").open("w") as lock:
        if not _got(lock):
            raise HomeError(
                "this home is kept up already", where=str(settings.home), mend="See recsys up, recsys down."
            )
        try:
            _describe(settings, ready=False)
            yield
        finally:
            (settings.servers_file.parent / "supervisor.json").unlink(missing_ok=True)


def _got(lock: TextIO) -> bool:
    """Whether the lock could be had. Who only looks whether somebody has it, has it for an instant."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _held(settings: Settings) -> bool:
    """Whether somebody holds the lock on supervisors."""
    path = settings.servers_file.parent / "supervisor.lock"
    if not path.exists():
        return False
    with path.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _describe(settings: Settings, ready: bool) -> None:
    path = settings.servers_file.parent / "supervisor.json"
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(asdict(Supervisor(os.getpid(), ready))))
    draft.rename(path)


def _tell_systemd(text: str) -> None:
    """As sd_notify(3); nothing where systemd has not started us."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
