"""The home's own servers: Prefect's and MLflow's, on loopback, over the databases that the nights write to.

A home has them at most once. Who started them stops them: their addresses are in `settings.servers_file` only while
both answer, and a lock is held as long.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TextIO

from recsys.errors import ConfigError, HomeError, RecsysError
from tasks.adapters.daemon import Daemon, stop, sweep
from tasks.adapters.settings import Settings

HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000

_PORTS_TRIED = 50
_START_SECONDS = 180.0  # first migrations of both databases on a busy machine


@dataclass(frozen=True)
class Address:
    """Where a server answers (`url`/health says whether) and the process that leads its group."""

    url: str
    pid: int


@dataclass(frozen=True)
class Ports:
    """Where to listen. None: the usual port, else the next free one."""

    prefect: int | None = None
    mlflow: int | None = None


@dataclass(frozen=True)
class Server:
    """A started server and where it is asked."""

    daemon: Daemon
    url: str

    def answers(self) -> bool:
        """Whether its health page does."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
        return False

    def again(self) -> "Server":
        """The same on the same port, started once more."""
        return Server(self.daemon.again(), self.url)


def running(settings: Settings) -> Mapping[str, Address]:
    """The servers of a home that are alive and answer, by name."""
    alive = settings.running()
    if not alive:
        return {}
    written = json.loads(settings.servers_file.read_bytes())
    return {name: Address(url, int(written[name]["pid"])) for name, url in alive.items()}


@contextlib.contextmanager
def serving(settings: Settings, ports: Ports) -> Iterator[dict[str, Server]]:
    """Both servers, answering. They are stopped, and their file is gone, when the block ends.

    Who starts one again puts it in the dictionary and publishes. HomeError when this home has servers already,
    ConfigError for a port that is taken, RecsysError when one does not come up.
    """
    with _only_one(settings):
        prefect = _free_port(ports.prefect, PREFECT_PORT, "--prefect-port", but=ports.mlflow)
        mlflow = _free_port(ports.mlflow, MLFLOW_PORT, "--mlflow-port", but=prefect)
        servers: dict[str, Server] = {}
        try:
            servers["prefect"] = _start(settings, "prefect", _prefect(prefect), f"http://{HOST}:{prefect}/api")
            servers["mlflow"] = _start(settings, "mlflow", _mlflow(settings, mlflow), f"http://{HOST}:{mlflow}")
            _wait_for(servers)
            publish(settings, servers)
            yield servers
        finally:
            settings.servers_file.unlink(missing_ok=True)
            stop(server.daemon for server in servers.values())
            sweep(settings)


def publish(settings: Settings, servers: Mapping[str, Server]) -> None:
    """Tells every command of this home where its servers are."""
    addresses = {name: asdict(Address(server.url, server.daemon.process.pid)) for name, server in servers.items()}
    draft = settings.servers_file.with_name(settings.servers_file.name + ".part")
    draft.write_text(json.dumps(addresses, sort_keys=True, indent=1))
    draft.rename(settings.servers_file)


def sweep_orphans(settings: Settings) -> int:
    """Stops what a killed command left running, unless somebody minds it. How many processes that were."""
    with _lock_of(settings) as lock:
        return _sweep(settings) if _locked(lock) else 0


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Holds the home's lock on servers. The kernel drops it with its holder, so that it is never stale."""
    with _lock_of(settings) as lock:
        held = _locked(lock)
        if held:
            _sweep(settings)
        if there := running(settings):
            groups = " ".join(f"-{address.pid}" for address in there.values())
            raise HomeError(
                "the servers of this home are running already: "
                + " and ".join(f"{name} at {address.url}" for name, address in sorted(there.items())),
                where=str(settings.home),
                mend=f"Use them, or stop them: recsys down, Ctrl-C where they were started, or kill -INT -- {groups}.",
            )
        if not held:
            raise HomeError(
                "the servers of this home are just being started or stopped",
                where=str(settings.home),
                mend="Try again in half a minute.",
            )
        yield


def _sweep(settings: Settings) -> int:
    swept = sweep(settings)
    if swept:
        settings.servers_file.unlink(missing_ok=True)
    return swept


def _lock_of(settings: Settings) -> TextIO:
    return (settings.servers_file.parent / "servers.lock").open("w")


def _locked(file: TextIO) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_port(asked: int | None, usual: int, option: str, but: int | None) -> int:
    """The port asked for, or the first free one from `usual` on that is not `but`."""
    for port in [asked] if asked else range(usual, usual + _PORTS_TRIED):
        if port != but and _is_free(port):
            return port
    where = f"port {asked}" if asked else f"ports {usual} to {usual + _PORTS_TRIED - 1}"
    raise ConfigError(f"{where} cannot be listened on", where=option, mend="Choose another one.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def _prefect(port: int) -> list[str]:
    return ["prefect", "server", "start", "--host", HOST, "--port", str(port)]


def _mlflow(settings: Settings, port: int) -> list[str]:
    artifacts = (settings.mlflow / "artifacts").as_uri()
    stores = ["--backend-store-uri", settings.mlflow_database, "--default-artifact-root", artifacts]
    proxied = ["--artifacts-destination", artifacts]
    return ["mlflow", "server", *stores, *proxied, "--host", HOST, "--port", str(port), "--workers", "1"]


def _start(settings: Settings, name: str, command: list[str], url: str) -> Server:
    # a server that knew another one's address would ask it instead of its database
    elsewhere = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI")
    environment = {n: value for n, value in os.environ.items() if n not in elsewhere}
    environment["PREFECT_UI_API_URL"] = url  # else Prefect's page asks port 4200, whichever port it came from
    return Server(Daemon.start(settings, name, command, environment), url)


def _wait_for(servers: Mapping[str, Server]) -> None:
    """Until all answer. RecsysError when one ends, or takes more than three minutes."""
    deadline = time.monotonic() + _START_SECONDS
    waiting = list(servers.values())
    while waiting:
        for server in waiting:
            server.daemon.require_alive()
        waiting = [server for server in waiting if not server.answers()]
        if waiting and time.monotonic() > deadline:
            raise RecsysError(
                f"{waiting[0].daemon.name} does not answer after {_START_SECONDS:.0f} seconds",
                where=str(waiting[0].daemon.log),
                mend="Read its log, then start it again.",
            )
        time.sleep(0.2)
