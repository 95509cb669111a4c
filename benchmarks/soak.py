"""A million requests to `recsys serve` while the champion changes fifty times. `python -m benchmarks.soak`

A real process on loopback, some connections that ask without a pause, and a promotion whenever the next share of the
requests is done. Every fifth champion is forged: its files are those that were registered, and its answers are not those
it was made with. The law:

    no request fails
    every answer is, to the bit, that of the version it names, and of a version that may be served: never of a forged one
    each good champion comes to serve, each forged one is refused by name
    the memory of the last third is that of the middle third, within 5 %

Items must be many more than k, or versions would answer alike; how many questions tell all versions apart is printed.
`--requests 20000 --swaps 5` takes a minute and says nothing about memory.
"""

import argparse
import http.client
import itertools
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import Peer, histories_of, home_of, megabytes, names, promote, served
from recsys.artifact import MODEL, write_manifest
from recsys.runtime import Runtime
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe
from tasks.workshop import Workshop

GOOD = 4
FORGED = GOOD + 1
QUESTIONS = 300
FLAT = 0.05
"""Share by which the memory of the last third may be above that of the middle third."""
_PATIENCE = 180.0  # seconds for which a swap is waited for
_LONG_ENOUGH = 9  # samples of memory below which nothing is said of it

Answered = tuple[tuple[str, float, str], ...]


@dataclass(frozen=True)
class Asked:
    """What is asked, and what each version must answer."""

    bodies: Sequence[bytes]
    answers: Sequence[dict[int, Answered]]  # of each body, by version

    @property
    def telling(self) -> int:
        """Questions that no two versions answer alike."""
        return sum(len(set(by_version.values())) == len(by_version) for by_version in self.answers)


@dataclass
class Tally:
    """What became of the requests. Each client counts its own; the sums are read while they run."""

    done: int = 0
    wrong: list[str] = field(default_factory=list)  # answers that are not those of the version they name
    failed: list[str] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Memory:
    """Resident MB of the server after so many requests."""

    requests: int
    megabytes: float


def ask(peer: Peer, asked: Asked, tally: Tally, until: int) -> None:
    """One client: asks until it has its number of answers. It begins anew after a failure, and goes on."""
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=60)
    for number in itertools.cycle(range(len(asked.bodies))):
        if tally.done >= until:
            break
        try:
            connection.request("POST", peer.page, asked.bodies[number], {"content-type": "application/json"})
            reply = connection.getresponse()
            judge(reply.status, reply.read(), asked.answers[number], tally)
        except Exception as error:  # whatever a client may see: each is a failed request
            tally.failed.append(f"{type(error).__name__}: {error}")
            connection.close()
        tally.done += 1
    connection.close()


def judge(status: int, body: bytes, answers: dict[int, Answered], tally: Tally) -> None:
    """Whether an answer is one, and is that of the version it names."""
    if status != 200:
        tally.failed.append(f"{status}: {body[:200]!r}")
        return
    answer = json.loads(body)
    version = answer["model"]["version"]
    tally.versions[version] += 1
    items = tuple((item["item_id"], item["score"], item["source"]) for item in answer["items"])
    if items != answers.get(version):
        tally.wrong.append(f"version {version} answered {items[:3]}, not {answers.get(version, ())[:3]}")


def questions_of(settings: Settings, items: int) -> Asked:
    """Histories, sessions and filters, with the answers of every good version by its own runtime."""
    rng, asked = np.random.default_rng(1), []
    for number, history in enumerate(histories_of(items, QUESTIONS)):
        question: dict[str, Any] = {"history": history, "k": int(rng.integers(1, 20))}
        if number % 4 == 1:
            question["session"] = [f"item-{item}" for item in rng.integers(items, size=3)]
        if number % 4 == 2:
            question["exclude"] = [f"item-{item}" for item in rng.integers(items, size=20)]
        if number % 4 == 3:
            question["allow"] = [f"item-{item}" for item in rng.integers(items, size=items // 20)]
        asked.append(question)
    answers: list[dict[int, Answered]] = [{} for _ in asked]
    workshop = Workshop.of(settings)
    for version in workshop.registry.versions(STUDENT):
        if version.number != FORGED:
            runtime = Runtime.open(workshop.store.open("artifact", version.digest), threads=1)
            for by_version, question in zip(answers, asked, strict=True):
                by_version[version.number] = _answer(runtime, question)
    return Asked([json.dumps(question).encode() for question in asked], answers)


def _answer(runtime: Runtime, question: dict[str, Any]) -> Answered:
    chosen = runtime.columns.filter(question.get("allow"), question.get("exclude", ()))
    (items,) = runtime.recommend([[*question["history"], *question.get("session", ())]], question["k"], [chosen])
    return tuple((item.item_id, item.score, item.source) for item in items)


def forge(settings: Settings) -> None:
    """Registers version 5: the files of version 1 with the weights of version 2, and a manifest that says so."""
    workshop = Workshop.of(settings)
    one, two = (workshop.store.open("artifact", workshop.registry.version(STUDENT, number).digest) for number in (1, 2))

    def build(out: Path) -> None:
        for file in one.iterdir():
            shutil.copyfile(file, out / file.name)
        shutil.copyfile(two / MODEL, out / MODEL)
        write_manifest(out)

    made = workshop.store.make(Recipe("artifact", 1, {"forged": True}, ()), build)
    run_id = workshop.tracking.start_night("forged", {}, {})
    published = workshop.store.open("artifact", made.digest)
    number = workshop.registry.register(
        STUDENT, published, "recsys.runtime", run_id=run_id, intent="forged", tags={}, description=""
    )
    workshop.tracking.finish(run_id, "FINISHED")
    assert number == FORGED


def soak(settings: Settings, peer: Peer, asked: Asked, requests: int, swaps: int, clients: int) -> int:
    """Prints what came of it; 1 when the law was broken."""
    tallies = [Tally() for _ in range(clients)]
    share = [requests * (number + 1) // clients - requests * number // clients for number in range(clients)]
    threads = [
        threading.Thread(target=ask, args=(peer, asked, tally, until), daemon=True)
        for tally, until in zip(tallies, share, strict=True)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    memory, refusals = _swap(settings, peer, tallies, requests, swaps)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    failed = [why for tally in tallies for why in tally.failed]
    wrong = [why for tally in tallies for why in tally.wrong]
    versions = sum((tally.versions for tally in tallies), Counter[int]())
    growth = grown(memory)
    done = sum(tally.done for tally in tallies)
    slope = slope_of(memory)
    print("| requests | swaps | forged, refused | failed | mixed or wrong | MB at first | MB at last | MB a 100,000 requests | growth | requests/s |")  # fmt: skip
    print("|" + "---|" * 10)
    said = "-" if growth is None else f"{growth:+.1%}"
    print(
        f"| {done:,} | {swaps} | {refusals} | {len(failed):,} | {len(wrong):,} | {memory[0].megabytes:.0f} | "
        f"{memory[-1].megabytes:.0f} | {slope:+.1f} | {said} | {done / seconds:,.0f} |"
    )
    print(
        f"answers by version {dict(sorted(versions.items()))}; {asked.telling} of {QUESTIONS} questions tell all apart"
    )
    print("\n".join([*failed[:5], *wrong[:5]]))
    return int(bool(failed or wrong or FORGED in versions or (growth is not None and growth > FLAT)))


def _swap(
    settings: Settings, peer: Peer, tallies: Sequence[Tally], requests: int, swaps: int
) -> tuple[list[Memory], int]:
    """Promotes whenever a share of the requests is done, and sees each champion served or refused."""
    memory, refusals = [], 0
    for number in range(swaps):
        while (done := sum(tally.done for tally in tallies)) < requests * (number + 1) // (swaps + 1):
            time.sleep(0.05)
        memory.append(Memory(done, megabytes(peer.process.pid)))
        champion = FORGED if number % 5 == 4 else 1 + (number + 1) % GOOD
        promote(settings, champion)
        forged = champion == FORGED
        _await(peer, f"version {champion} is {'refused' if forged else 'the champion'}")
        refusals += forged
        wrong = sum(len(tally.failed) + len(tally.wrong) for tally in tallies)
        print(f"{done:,} requests, {number + 1} swaps, {wrong} wrong, {memory[-1].megabytes:.0f} MB", file=sys.stderr)
    while (done := sum(tally.done for tally in tallies)) < requests:
        time.sleep(0.05)
    return [*memory, Memory(done, megabytes(peer.process.pid))], refusals


def _await(peer: Peer, sentence: str) -> None:
    """RuntimeError when the server does not say so in three minutes."""
    deadline, said = time.monotonic() + _PATIENCE, ""
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=60)
        connection.request("GET", "/health")
        said = json.loads(connection.getresponse().read())["registry"]["sentence"]
        connection.close()
        if sentence in said:
            return
        time.sleep(0.1)
    raise RuntimeError(f"{sentence!r} was waited for; the server says {said!r}")


def grown(memory: Sequence[Memory]) -> float | None:
    """Share by which the median of the last third is above that of the middle third; None for too few samples."""
    if len(memory) < _LONG_ENOUGH:
        return None
    third = len(memory) // 3
    middle, last = (np.median([each.megabytes for each in part]) for part in (memory[third:-third], memory[-third:]))
    return float(last / middle - 1)


def slope_of(memory: Sequence[Memory]) -> float:
    """MB a 100,000 requests, by least squares over the second half; both runtimes are loaded by then."""
    half = memory[len(memory) // 2 :]
    if len(half) < 2:
        return 0.0
    return float(np.polyfit([each.requests for each in half], [each.megabytes for each in half], 1)[0] * 1e5)


def main() -> int:
    """Exit code 1 when the law was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--width", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        settings = home_of(Path(folder), names(asked.items), asked.width, GOOD)
        forge(settings)
        questions = questions_of(settings, asked.items)
        with served(settings, poll=0.5) as peer:
            return soak(settings, peer, questions, asked.requests, asked.swaps, asked.clients)


if __name__ == "__main__":
    sys.exit(main())
