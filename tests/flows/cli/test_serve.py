"""`recsys serve`, the real process: champions change under load, MLflow goes away, SIGTERM ends it in time."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from flows.cli.serve import listen
from recsys.artifact import write_manifest
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.student import Student
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe
from tasks.workshop import Workshop

RECSYS = Path(sys.executable).with_name("recsys")
ITEMS = [f"item-{number}" for number in range(40)]
FORGED = 3
SWAPS = 20
QUESTIONS = [
    {"history": ["item-3"], "k": 5},
    {"history": ["item-3"], "session": ["item-9", "item-1"], "k": 3, "exclude": ["item-2"]},
    {"history": [], "k": 4},
    {"history": ["item-7", "item-8"], "allow": ["item-1", "item-5", "item-6"]},
]


def write_artifact(out: Path, seed: int) -> None:
    student = Student.untrained(DecoderShape.of(40, 16, 1, 8), 0.0, seed=seed).eval()
    catalog = Catalog(ITEMS, [None] * 40, [None] * 40, [None] * 40)
    export(student, Publication(catalog, np.arange(40, 0, -1), "exclude", {"dataset": "ab" * 32}), 8, out)


def write_forged(good: Path, other: Path, out: Path) -> None:
    for file in good.iterdir():
        shutil.copyfile(file, out / file.name)
    shutil.copyfile(other / "model.onnx", out / "model.onnx")
    write_manifest(out)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A home whose champion is version 1; version 2 is good too, version 3 answers otherwise than it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
        workshop = Workshop.of(settings)
        folders = []
        for seed in (0, 1):
            recipe = Recipe("artifact", 1, {"seed": seed}, ())
            made = workshop.store.make(recipe, functools.partial(write_artifact, seed=seed))
            folders.append(workshop.store.open("artifact", made.digest))
        made = workshop.store.make(Recipe("artifact", 1, {"forged": 1}, ()), functools.partial(write_forged, *folders))
        folders.append(workshop.store.open("artifact", made.digest))
        run_id = workshop.tracking.start_night("nightly", {}, {})
        for number, folder in enumerate(folders, start=1):
            workshop.registry.register(
                STUDENT, folder, "recsys.runtime", run_id=run_id, intent=str(number), tags={}, description=""
            )
        workshop.tracking.finish(run_id, "FINISHED")
        promote(settings, 1)
        yield settings


def promote(settings: Settings, version: int) -> None:
    ledger = Workshop.of(settings).ledger
    entry = Entry("promote", version, ledger.chain().last, "", "somebody", f"moment {time.time_ns()}")
    assert ledger.append(entry).won


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    return {**kept, "HOME": "/proc/nobody", "OMP_NUM_THREADS": "1", **more}


class Serving:
    """A `recsys serve` process."""

    def __init__(self, settings: Settings, *arguments: str, **more: str) -> None:
        command = [str(RECSYS), "serve", "--home", str(settings.home), "--port", "0", "--poll", "0.1", *arguments]
        self.log = (settings.home / "serve.log").open("w+")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment(**more)
        )
        first = self.process.stdout.readline()
        found = re.search(r"http://\S+:\d+", first)
        assert found, first + Path(self.log.name).read_text()
        self.url = found[0]

    def get(self, page: str) -> tuple[int, bytes]:
        return self._open(urllib.request.Request(self.url + page))

    def post(self, body: object, page: str = "/recommend") -> tuple[int, dict]:
        headers = {"content-type": "application/json"}
        status, answer = self._open(urllib.request.Request(self.url + page, json.dumps(body).encode(), headers))
        return status, json.loads(answer)

    def health(self) -> dict:
        return json.loads(self.get("/health")[1])

    def until(self, fits) -> dict:
        for _ in range(1200):
            with contextlib.suppress(OSError):
                found = self.health()
                if fits(found):
                    return found
            time.sleep(0.05)
        raise AssertionError(f"{self.health()}\n{Path(self.log.name).read_text()}")

    def _open(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextlib.contextmanager
def serving(settings: Settings, *arguments: str, **more: str):
    server = Serving(settings, *arguments, **more)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()
        server.log.close()


@pytest.fixture(scope="module")
def server(settings):
    with serving(settings) as server:
        server.until(lambda health: health["registry"]["state"] == "current")
        yield server


def expected_answers(settings: Settings) -> dict[int, list[list[tuple]]]:
    """By version, what each question must be answered with."""
    workshop, answers = Workshop.of(settings), {}
    for version in workshop.registry.versions(STUDENT):
        runtime = Runtime.open(workshop.store.open("artifact", version.digest))
        filters = [runtime.columns.filter(q.get("allow"), q.get("exclude", ())) for q in QUESTIONS]
        histories = [[*q["history"], *q.get("session", ())] for q in QUESTIONS]
        found = runtime.recommend(histories, 10, filters)
        answers[version.number] = [
            [tuple(item) for item in items[: question.get("k", 10)]]
            for items, question in zip(found, QUESTIONS, strict=True)
        ]
    return answers


def test_champions_change_under_load_without_a_failed_or_a_mixed_answer(settings, server):
    expected, ended = expected_answers(settings), threading.Event()
    wrong: list[object] = []
    versions: set[int] = set()
    asked = [0, 0, 0]

    def ask(client: int) -> None:
        while not ended.is_set():
            which = asked[client] % len(QUESTIONS)
            try:
                status, answer = server.post(QUESTIONS[which])
                items = [(item["item_id"], item["score"], item["source"]) for item in answer["items"]]
                if status != 200 or items != expected[answer["model"]["version"]][which]:
                    wrong.append((status, answer))
                versions.add(answer["model"]["version"])
            except Exception as error:
                wrong.append(error)
            asked[client] += 1

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(3)]
    for client in clients:
        client.start()
    try:
        champions = ([2, FORGED, 1] * SWAPS)[:SWAPS]
        for version in champions:
            promote(settings, version)
            sentence = f"version {version} is {'refused' if version == FORGED else 'the champion'}"
            server.until(lambda health, sentence=sentence: sentence in health["registry"]["sentence"])
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert wrong[:3] == []
    assert versions == {1, 2}
    assert min(asked) > SWAPS
    metrics = server.get("/metrics")[1].decode()
    good = [version for version in champions if version != FORGED]
    assert f"recsys_model_swaps_total {sum(a != b for a, b in zip([1, *good], good, strict=False))}.0" in metrics
    assert f"recsys_model_refused_total {champions.count(FORGED)}.0" in metrics
    promote(settings, 1)
    server.until(lambda health: health["version"] == 1)


def test_a_hand_moved_alias_is_adopted_and_served(settings, server):
    Workshop.of(settings).registry.set_alias(STUDENT, "champion", 2)
    server.until(lambda health: health["version"] == 2)
    assert Workshop.of(settings).ledger.chain().records[-1].op == "manual"
    promote(settings, 1)
    server.until(lambda health: health["version"] == 1)


def test_the_serving_process_is_without_torch_and_small(server):
    process = Path("/proc", str(server.process.pid))
    libraries = {Path(line.split()[-1]).name for line in (process / "maps").read_text().splitlines() if ".so" in line}
    assert any(name.startswith("onnxruntime") for name in libraries), "it is looked at rightly"
    assert not [name for name in libraries if "torch" in name or "duckdb" in name]
    memory = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
    assert int(memory[1]) < 400_000, "most of it is MLflow's client"


def test_without_mlflow_it_serves_its_last_copy(settings, server):
    champion = Workshop.of(settings).registry.alias(STUDENT, "champion")
    with serving(settings, MLFLOW_TRACKING_URI="http://127.0.0.1:9") as alone:
        found = alone.until(lambda health: health["registry"]["state"] == "stale")
        assert (found["status"], found["version"], found["digest"]) == ("ok", champion.number, champion.digest)
        assert alone.post(QUESTIONS[0])[0] == 200


def test_an_answer_does_not_wait_for_an_acknowledgement():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_told(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [str(RECSYS), "serve", "--home", str(settings.home), "--port", str(taken.getsockname()[1])],
            capture_output=True, text=True, env=environment(),
        )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "cannot listen on 127.0.0.1" in done.stderr


def test_sigterm_ends_it_after_the_requests_under_way(server):
    body = b'{"history": ["item-3"]}'
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as half:
        half.sendall(
            b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body[:5]
        )
        server.get("/health")  # by now the half request is under way
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        half.sendall(body[5:])
        assert b" 200 OK" in half.makefile("rb").readline()
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 10
