"""Requests a second of `recsys serve` beside `mlflow models serve`, same student, same minute. `python -m benchmarks.serving`

A throwaway home with two untrained students (speed does not depend on what was learnt). MLflow's server answers twice:
with the artifact as it is registered, and with the student in plain torch float32, as somebody would log it who has no
artifact (benchmarks/plain_torch.py). The servers answer the same histories in turns, over one kept connection each.
Under load while the champion changes: benchmarks/soak.py.
"""

import argparse
import contextlib
import functools
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.plain_torch import save_plain
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.student import Student
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe
from tasks.workshop import Workshop

BINARIES = Path(sys.executable).parent
TURN = 50
"""Requests to one server before the other has its turn."""
LENGTH = 50


@dataclass
class Peer:
    """One server and what its answers took."""

    name: str
    process: subprocess.Popen[str]
    port: int
    page: str
    seconds: list[float] = field(default_factory=list)
    cpu_before: float = 0.0  # seconds of its processes, before the first request

    @functools.cached_property
    def connection(self) -> http.client.HTTPConnection:
        """Kept open."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, body: bytes) -> bytes:
        """One answer; RuntimeError when it is none."""
        began = time.perf_counter()
        self.connection.request("POST", self.page, body, {"content-type": "application/json"})
        reply = self.connection.getresponse()
        answer = reply.read()
        self.seconds.append(time.perf_counter() - began)
        if reply.status != 200:
            raise RuntimeError(f"{self.name} answers {reply.status}: {answer[:200]!r}")
        return answer

    def connect(self) -> None:
        """Anew: a server closes a connection that idles while the other has its turn."""
        self.connection.close()
        self.connection.connect()

    def line(self) -> str:
        """A row of the table."""
        p50, p99 = (1000 * np.percentile(self.seconds, [50, 99])).tolist()
        rate = len(self.seconds) / sum(self.seconds)
        cpu = 1000 * (cpu_seconds(self.process.pid) - self.cpu_before) / len(self.seconds)
        memory = megabytes(self.process.pid)
        return f"| {self.name} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {cpu:.2f} | {memory:.0f} |"


def main() -> int:
    """Prints a markdown table; exit code 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, help="to each server")
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--width", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        settings = home_of(Path(folder), names(asked.items), asked.width)
        histories = histories_of(asked.items, asked.requests)
        plain = save_plain(Path(folder) / "plain", asked.items, asked.width)
        with (
            served(settings, poll=10) as ours,
            _mlflow(settings, f"models:/{STUDENT}@champion", "mlflow, the artifact") as theirs,
            _mlflow(settings, str(plain), "mlflow, plain torch") as rival,
        ):
            _in_turns(ours, [theirs, rival], histories)
            print(f"{asked.items:,} items, width {asked.width}, load {os.getloadavg()[0]:.1f}\n")
            print("| server | requests/s | p50 ms | p99 ms | CPU ms a request | MB |\n|---|---|---|---|---|---|")
            print(f"{ours.line()}\n{theirs.line()}\n{rival.line()}")
    return 0


def _in_turns(ours: Peer, others: list[Peer], histories: list[list[str]]) -> None:
    for peer in (ours, *others):
        peer.cpu_before = cpu_seconds(peer.process.pid)
    for start in range(0, len(histories), TURN):
        ours.connect()
        for history in histories[start : start + TURN]:
            ours.ask(json.dumps({"history": history}).encode())
        for peer in others:
            peer.connect()
            for history in histories[start : start + TURN]:
                frame = {"columns": ["history"], "data": [[history]]}
                peer.ask(json.dumps({"dataframe_split": frame, "params": {"k": 10}}).encode())


# --- the home and the servers -------------------------------------------------------------------------------------


def home_of(folder: Path, items: Sequence[str], width: int, versions: int = 2) -> Settings:
    """So many versions of untrained students over items of these ids; version 1 is the champion."""
    settings = Settings.from_environment(folder).prepare().export()
    workshop = Workshop.of(settings)
    run_id = workshop.tracking.start_night("benchmark", {}, {})
    for seed in range(1, versions + 1):
        made = workshop.store.make(
            Recipe("artifact", 1, {"seed": seed}, ()),
            functools.partial(_write_artifact, seed=seed, items=items, width=width),
        )
        published = workshop.store.open("artifact", made.digest)
        workshop.registry.register(
            STUDENT, published, "recsys.runtime", run_id=run_id, intent=str(seed), tags={}, description=""
        )
    workshop.tracking.finish(run_id, "FINISHED")
    promote(settings, 1)
    return settings


def _write_artifact(out: Path, seed: int, items: Sequence[str], width: int) -> None:
    student = Student.untrained(DecoderShape.of(len(items), width, 1, LENGTH), 0.0, seed=seed).eval()
    nothing = [None] * len(items)
    catalog = Catalog(list(items), nothing, nothing, nothing)
    export(student, Publication(catalog, np.arange(len(items), 0, -1), "exclude", {"dataset": "none"}), 8, out)


def promote(settings: Settings, version: int) -> None:
    """By the ledger alone, without a load test."""
    ledger = Workshop.of(settings).ledger
    ledger.append(Entry("promote", version, ledger.chain().last, "", "benchmark", f"at {time.time_ns()}"))


def names(items: int) -> list[str]:
    """`item-0` and so on."""
    return [f"item-{item}" for item in range(items)]


def histories_of(items: int, count: int) -> list[list[str]]:
    """Random ones, always the same."""
    rng = np.random.default_rng(0)
    return [[f"item-{item}" for item in rng.integers(items, size=rng.integers(1, LENGTH))] for _ in range(count)]


@contextlib.contextmanager
def served(settings: Settings, poll: float) -> Iterator[Peer]:
    """`recsys serve` on a free port."""
    command = [str(BINARIES / "recsys"), "serve", "--home", str(settings.home), "--port", "0", "--poll", str(poll)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = re.search(r":(\d+),", process.stdout.readline() if process.stdout else "")
    assert found, "recsys serve says where it listens"
    with _ended(Peer("recsys serve", process, int(found[1]), "/recommend")) as peer:
        yield peer


@contextlib.contextmanager
def _mlflow(settings: Settings, model: str, name: str) -> Iterator[Peer]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(BINARIES / "mlflow"), "models", "serve", "--env-manager", "local", "-p", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": settings.tracking_uri}
    process = subprocess.Popen(
        [*command, "-m", model], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    with _ended(Peer(name, process, port, "/invocations")) as peer:
        yield peer


@contextlib.contextmanager
def _ended(peer: Peer) -> Iterator[Peer]:
    """The server once it answers; ended afterwards, with what it started."""
    try:
        for _ in range(600):
            with contextlib.suppress(OSError, http.client.HTTPException):
                peer.connection.request("GET", "/health" if peer.page == "/recommend" else "/ping")
                reply = peer.connection.getresponse()
                said = reply.read()
                if reply.status == 200 and (peer.page != "/recommend" or b'"state":"current"' in said):
                    break
            peer.connection.close()
            time.sleep(0.2)
        yield peer
    finally:
        peer.process.terminate()
        peer.process.wait(20)


def megabytes(pid: int) -> float:
    """Resident memory of a process and of those it started."""
    return sum(each.memory_info().rss for each in _tree(pid)) / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those it started."""
    return sum(sum(each.cpu_times()[:2]) for each in _tree(pid))


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


if __name__ == "__main__":
    sys.exit(main())
