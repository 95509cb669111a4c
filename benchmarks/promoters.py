"""Eight promoters at once, paused, killed and disturbed by a hand in MLflow. `python -m benchmarks.promoters --seeds 5`

Each promoter is a process that promotes and rolls back on one home until so many moves have won. The load test alone is
faked (one version fails it): it costs a second and decides nothing here. Every call of the ledger is written down before
and after. The law, a line of docs/promoters.jsonl for each seed; a seed that is there is not run again:

    the ledger is a compare-and-set register: one order of all calls, each between its beginning and its end, explains
    every answer (benchmarks/register.py), and it is the order of the records
    who was told "promoted" is in the ledger, after the champion it was told; who was refused is not
    every record "manual" has a hand before it
    in the end the aliases stand where the ledger says; the version that fails its load test never was the champion
    nobody is told anything else than a promotion or why there is none

A seed draws what is done, not how the machine takes turns: run again it is another history.
"""

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing.util
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from benchmarks.promoting import Diaries, Diary, aliases_of, has_moved, promoting, read_back, watched
from benchmarks.promotions import live_home, stock
from benchmarks.register import Swap, linearized
from recsys.errors import RecsysError
from tasks.adapters.ledger import Chain
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.settle_alias import settle_alias

VERSIONS = 6  # the last one fails its load test
PROCESSES = multiprocessing.get_context("forkserver")
"""A promoter is killed with -9 and another begun at the price of a fork: the server has imported MLflow once."""


@dataclass(frozen=True)
class Plan:
    """What a round does."""

    seed: int
    promoters: int
    promotions: int  # moves that must have won before it ends


@dataclass(frozen=True)
class Hand:
    """Somebody moved the alias champion in MLflow, to a version or away."""

    at: int  # ns of the monotonic clock, before
    to: int | None


@dataclass(frozen=True)
class Befallen:
    """What befell the promoters."""

    hands: tuple[Hand, ...]
    pauses: int
    kills: int


@dataclass(frozen=True)
class Round:
    """One seed: what was done, what came of it, and each breach of the law."""

    seed: int
    promoters: int
    promotions: int  # moves that won, by promoters
    asked: int
    refused: int
    adopted: int  # hands that became records
    hands: int
    pauses: int
    kills: int
    calls: int  # of the ledger, all explained by one order
    double_winners: int
    wrong_beliefs: int
    seconds: float
    breaches: tuple[str, ...]


def held(plan: Plan, hosts: Sequence[Settings], versions: Sequence[int], folder: Path) -> Round:
    """One round on one home, or on several that share an MLflow, with these versions and no champion yet.

    Promoters come from the homes in turn; the diaries are left in `folder`.
    """
    began = time.monotonic()
    befallen = _disturb(plan, hosts, versions, folder)
    seconds = time.monotonic() - began
    workshop = watched(hosts[0], Diary(io.StringIO()), bad=versions[-1])
    settle_alias(workshop)
    chain = workshop.ledger.chain()
    diaries = read_back(folder, {record.number: record.intent for record in chain.records})
    breaches = {"beliefs": list(wrong_beliefs(diaries, chain)), "winners": list(double_winners(diaries))}
    others = [*against_the_register(diaries, chain), *phantom_hands(diaries, chain, befallen.hands)]
    others += [f"told {turn.sentence}" for turn in diaries.turns if turn.told == "failed"]
    others += [f"version {versions[-1]} was the champion" for record in chain.records if record.to == versions[-1]]
    if (shown := aliases_of(workshop)) != (said := _aliases(chain)):
        others.append(f"the aliases are {shown}, the ledger says {said}")
    told = Counter(turn.told for turn in diaries.turns)
    ops = Counter(record.op for record in chain.records)
    return Round(
        seed=plan.seed,
        promoters=plan.promoters,
        promotions=ops["promote"] + ops["rollback"],
        asked=len(diaries.turns) - told["looked"],
        refused=told["refused"],
        adopted=ops["manual"],
        hands=len(befallen.hands),
        pauses=befallen.pauses,
        kills=befallen.kills,
        calls=len(diaries.calls),
        double_winners=len(breaches["winners"]),
        wrong_beliefs=len(breaches["beliefs"]),
        seconds=round(seconds, 1),
        breaches=(*breaches["winners"], *breaches["beliefs"], *others),
    )


def make_ready() -> None:
    """Starts the process that promoters are forked from, before a home changes the environment."""
    stores = ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
    PROCESSES.set_forkserver_preload(["benchmarks.promoting", "mlflow", *stores])
    with _usual_temp():
        multiprocessing.util.get_temp_dir()
        forkserver.ensure_running()


@contextlib.contextmanager
def _usual_temp() -> Iterator[None]:
    """Not that of a home, which is gone before the process is."""
    folder, tempfile.tempdir = tempfile.tempdir, None
    try:
        yield
    finally:
        tempfile.tempdir = folder


# --- what befalls them --------------------------------------------------------------------------------------------


def _disturb(plan: Plan, hosts: Sequence[Settings], versions: Sequence[int], folder: Path) -> Befallen:
    """Promoters until enough was promoted; meanwhile they are paused and killed, and a hand moves the alias."""
    registry = watched(hosts[0], Diary(io.StringIO()), bad=0).registry
    draw, names, happened, hands = random.Random(plan.seed), itertools.count(), Counter[str](), []

    def begun() -> Any:
        number = next(names)
        name = f"promoter {plan.seed}-{number}"
        words = (hosts[number % len(hosts)], dict(os.environ), name, versions, plan.promotions, folder)
        process = PROCESSES.Process(target=promoting, name=name, args=words, daemon=True)
        process.start()
        return process

    living = [begun() for _ in range(plan.promoters)]
    while living := [process for process in living if process.is_alive()]:
        victim = draw.choice(living)
        what = draw.choices(["pause", "kill", "hand"], [5, 2, 2])[0]
        if what == "kill" and not has_moved(folder, victim.name):
            what = "pause"  # or on a busy machine nobody would live long enough to promote anything
        happened[what] += 1
        if what == "pause":
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(victim.pid, signal.SIGSTOP)
                time.sleep(draw.uniform(0.02, 1.0))
                os.kill(victim.pid, signal.SIGCONT)
        elif what == "kill":
            victim.kill()
            victim.join()
            living.append(begun())
        else:
            hands.append(Hand(time.monotonic_ns(), draw.choice([*versions, None])))
            with contextlib.suppress(RecsysError):  # an alias that is not there cannot be taken away
                registry.set_alias(STUDENT, "champion", hands[-1].to)
        time.sleep(draw.uniform(0.1, 0.6))
    return Befallen(tuple(hands), happened["pause"], happened["kill"])


# --- the law ------------------------------------------------------------------------------------------------------


def against_the_register(diaries: Diaries, chain: Chain) -> Iterator[str]:
    """Why no compare-and-set register can have answered so, or how its order differs from the records."""
    yield from (f"said to be broken: {said}" for said in (*diaries.broken, *filter(None, [chain.broken])))
    found = linearized(diaries.calls)
    records = tuple(record.intent for record in chain.records)
    if found.held is None:
        yield found.why
    elif found.held != records[: len(found.held)]:
        yield f"the calls explain {len(found.held)} values, and the records are others"


def double_winners(diaries: Diaries) -> Iterator[str]:
    """Two different values that both replaced the same one."""
    winners: dict[str, str] = {}
    for call in diaries.calls:
        if isinstance(call, Swap) and call.won and winners.setdefault(call.expected, call.value) != call.value:
            yield f"two winners over {call.expected[:12]}: {winners[call.expected][:12]} and {call.value[:12]}"


def wrong_beliefs(diaries: Diaries, chain: Chain) -> Iterator[str]:
    """Promoters whose answer the ledger contradicts."""
    records = {record.reason: record for record in chain.records}
    for turn in diaries.turns:
        record = records.get(turn.reason)
        if (record is None) == (turn.told == "promoted"):
            if record is None or turn.told:  # a killed one was told nothing
                yield f"{turn.reason} was told {turn.told} ({turn.sentence}), and the ledger has {record}"
        elif record is not None:
            after = "no champion" if record.came_from is None else f"version {record.came_from}"
            believed = f"{STUDENT} version {record.to} is the champion, after {after}"
            if believed != turn.sentence:
                yield f"{turn.reason} believes {turn.sentence}, the ledger has {record.sentence}"


def phantom_hands(diaries: Diaries, chain: Chain, hands: Sequence[Hand]) -> Iterator[str]:
    """Records of a hand that nobody moved: a promoter took another's alias for a person's."""
    left = list(hands)
    for record in chain.records:
        if record.op == "manual":
            asked = [call.began for call in diaries.calls if isinstance(call, Swap) and call.value == record.intent]
            before = [hand for hand in left if hand.to == record.to and hand.at < min(asked, default=0)]
            if before:
                left.remove(before[-1])
            else:
                yield f"record {record.number} says that a hand moved the alias to {record.to}; none did"


def _aliases(chain: Chain) -> dict[str, int]:
    wanted = {"champion": chain.champion, "previous": chain.previous}
    return {alias: number for alias, number in wanted.items() if number is not None}


# --- the command --------------------------------------------------------------------------------------------------


def _unheard(settings: Settings) -> None:
    """No Prefect is there to be told: it would cost each new promoter the import."""
    running = json.loads(settings.servers_file.read_bytes())
    settings.servers_file.write_text(json.dumps({"mlflow": running["mlflow"]}))


def main() -> int:
    """Prints a row a seed; exit code 1 when the law was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--promoters", type=int, default=8)
    parser.add_argument("--promotions", type=int, default=200, help="moves that win, in each seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "promoters.jsonl")
    asked = parser.parse_args()
    make_ready()
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    known = {round_["seed"]: round_ for round_ in map(json.loads, lines)}
    for seed in range(asked.seeds):
        if seed not in known:
            with (
                tempfile.TemporaryDirectory(prefix="promoters-") as folder,
                live_home(Path(folder, "home")) as settings,
            ):
                diaries = Path(folder, "diaries")
                diaries.mkdir()
                _unheard(settings)
                plan = Plan(seed, asked.promoters, asked.promotions)
                made = held(plan, [settings], stock(settings, VERSIONS), diaries)
            known[seed] = asdict(made)
            with asked.out.open("a") as file:
                file.write(json.dumps(known[seed]) + "\n")
    names = [name for name in Round.__dataclass_fields__ if name != "breaches"]
    print("| " + " | ".join(name.replace("_", " ") for name in names) + " |\n|" + "---|" * len(names))
    for seed in range(asked.seeds):
        print("| " + " | ".join(f"{known[seed][name]:,}" for name in names) + " |")
    broken = [breach for seed in range(asked.seeds) for breach in known[seed]["breaches"]]
    print("\n".join(broken))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
