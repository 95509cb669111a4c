"""Thirty nights of one shop, one after the other, with the events that really came later as the judge.

    python -m benchmarks.nights [--events FILE --items FILE] [--nights 30] [--set SECTION.KNOB=VALUE ...]

Each night is one `recsys nightly --as-of DAY` in one home, knowing nothing from DAY on; then the champion, if there is
one, scores everybody, and what it recommended is measured on the events of the days that follow (recsys/prequential.py),
against most-popular and neighbours made from the events before DAY. One night is made to be rejected, by a latency no
model can keep; after another the champion is rolled back. A night that is in the results is not run again.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.nights_told import as_markdown, draw
from benchmarks.one_night import last_story, recsys
from recsys import sample
from recsys.config import DataConfig, EventsConfig
from recsys.dataset import BuildPlan
from recsys.event_log import EventLog, read_log
from recsys.prequential import PEERS, look_back
from recsys.split import DAY
from tasks.adapters.settings import Settings

REJECTING = ("limits.latency_ms=0.000001",)
THRESHOLDS = ("data.test_days=28", "gate.teacher_retention=0.8", "gate.quantization_loss=0.05")
"""Of a shop with some 500 buyers a week: four weeks of test users, and margins that so many users can prove."""


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    home: Path
    events: Path
    items: Path | None
    nights: int
    follow_days: int  # after each night, in which the champion is watched
    rejected: int  # number of the night that is made to be rejected, from 1
    rolled_back: int  # the first night after which a rollback is tried; where there is nothing to go back to, the next
    options: tuple[str, ...]  # for recsys nightly


@dataclass(frozen=True)
class Served:
    """What the champion of a night had recommended, on the events of the days after it."""

    version: int
    users: int
    hit_rate: dict[str, float]  # at 10, of the champion and both peers, over the same users
    ndcg: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One night."""

    night: int
    as_of: str
    decision: str
    sentence: str
    version: int | None  # of the candidate
    champion: int | None  # at the end, a rollback included
    remark: str  # forced rejection, rollback
    ndcg: dict[str, float]  # at 10, of every model on the gate's test users
    test_users: int
    served: Served | None
    seconds: float  # of the whole command
    cpu_seconds: float  # of its steps
    cost: float
    new_teacher: bool
    reused: list[str]  # steps
    home_bytes: int
    load_before: float


def main() -> None:
    """Runs the nights that are missing, then draws and tells all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("build/nights"))
    parser.add_argument("--out", type=Path, default=Path("docs/nights.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/nights.png"))
    parser.add_argument("--events", type=Path, default=sample.EVENTS)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--follow-days", type=int, default=7)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--reject", type=int, default=10, help="number of the night that is made to be rejected")
    parser.add_argument("--roll-back", type=int, default=18, help="the first night after which it is tried")
    parser.add_argument("--set", action="append", default=None, help=f"knobs; default: {' '.join(THRESHOLDS)}")
    asked = parser.parse_args()
    knobs = THRESHOLDS if asked.set is None else asked.set
    plan = Plan(
        home=asked.home.absolute(),
        events=asked.events.absolute(),
        items=asked.items or (sample.ITEMS if asked.events == sample.EVENTS else None),
        nights=asked.nights,
        follow_days=asked.follow_days,
        rejected=asked.reject,
        rolled_back=asked.roll_back,
        options=("--preset", asked.preset, *(word for knob in knobs for word in ("--set", knob))),
    )
    rows = simulate(plan, asked.out)
    asked.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, asked.picture)
    print(as_markdown(rows, plan.options))


def simulate(plan: Plan, out: Path) -> list[dict]:
    """One row a night, appended to `out` as soon as it is known."""
    settings = Settings.from_environment(plan.home).prepare().export()
    there = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for number, as_of in enumerate(days_to_live(plan), start=1):
        if any(row["as_of"] == as_of for row in there):
            continue
        row = asdict(live(plan, settings, number, as_of, there))
        there.append(row)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        print(f"{number:2} {as_of} {row['decision']:9} champion {row['champion']} {row['seconds']:.0f} s", flush=True)
    return there


def days_to_live(plan: Plan) -> list[str]:
    """The last days with events that `follow_days` of events come after; as of the midnight that ends each."""
    times = pq.read_table(plan.events, columns=["timestamp"])["timestamp"].to_numpy()
    midnights = (np.unique(times // DAY) + 1) * DAY
    chosen = midnights[midnights + plan.follow_days * DAY <= times.max() + DAY][-plan.nights :]
    return [f"{datetime.fromtimestamp(int(midnight), UTC):%Y-%m-%d}" for midnight in chosen]


def live(plan: Plan, settings: Settings, number: int, as_of: str, before: Sequence[dict]) -> Row:
    """One night: the factory's run, perhaps a rollback, batch scores, and what came of them."""
    from flows.cli.status import bytes_of
    from tasks.batch_scores import publish
    from tasks.workshop import Workshop

    forced = [word for knob in REJECTING for word in ("--set", knob)] if number == plan.rejected else []
    words = ["nightly", "--as-of", as_of, "--events", str(plan.events), *plan.options, *forced]
    load, began = round(os.getloadavg()[0], 1), time.monotonic()
    log = plan.home / "nights.log"
    recsys(plan.home, *words, *(["--items", plan.items] if plan.items else []), log=log)
    seconds = round(time.monotonic() - began, 1)
    remark = "made to be rejected" if forced else ""
    workshop = Workshop.of(settings)
    previous = workshop.ledger.chain().previous
    rolled_back = any("rolled back" in row["remark"] for row in before)
    if number >= plan.rolled_back and not rolled_back and previous:
        recsys(plan.home, "rollback", "--to", str(previous), "--reason", "drill", log=log)
        remark = f"rolled back to version {previous}"
    champion = workshop.ledger.chain().champion
    if champion:
        publish(workshop, 10, lambda done: None)
    head = workshop.store.head("last-night") or {}
    story = last_story(plan.home)
    steps = story["steps"]
    return Row(
        night=number,
        as_of=as_of,
        decision=story["decision"],
        sentence=story["sentence"],
        version=head["version"],
        champion=champion,
        remark=remark,
        ndcg={model["name"]: model["metrics"]["ndcg_at_10"]["value"] for model in story["models"]},
        test_users=story["data"]["test_users"],
        served=watched(plan, settings, champion, as_of) if champion else None,
        seconds=seconds,
        cpu_seconds=round(sum(step["cpu_seconds"] for step in steps), 1),
        cost=sum(step["cost"] for step in steps),
        new_teacher=not next(step["reused"] for step in steps if step["name"] == "teach"),
        reused=[step["name"] for step in steps if step["reused"]],
        home_bytes=bytes_of(settings.home),
        load_before=load,
    )


def watched(plan: Plan, settings: Settings, champion: int, as_of: str) -> Served:
    """The champion's batch scores of that day on the days that follow."""
    from recsys.artifact import CARD, Card
    from tasks.adapters.registry import STUDENT
    from tasks.adapters.vault import Vault
    from tasks.served import batches
    from tasks.workshop import Workshop

    workshop = Workshop.of(settings)
    day = int(datetime.fromisoformat(as_of).replace(tzinfo=UTC).timestamp())
    batch = next(each for each in batches(settings) if (each.as_of, each.version) == (day, champion))
    digest = workshop.registry.version(STUDENT, champion).digest
    card = Card.from_bytes((workshop.store.open("artifact", digest) / CARD).read_bytes())
    lists = batch.lists(Vault(settings.vault, settings.vault_key).door)
    after = look_back(lists, whole_log(settings), card.repeats, plan.follow_days)
    means = {name: float(values.mean()) for name, values in after.ndcg.items()}
    rates = {name: after.hit_rate(name) for name in ("champion", *PEERS)}
    return Served(version=champion, users=after.users, hit_rate=rates, ndcg=means)


def whole_log(settings: Settings) -> EventLog:
    """Every event, also those that no night has known yet: the judge's view."""
    from tasks.workshop import Workshop

    store = Workshop.of(settings).store
    dataset = store.manifest("build", (store.head("last-night") or {})["dataset"])
    accepted = store.open("validate", dataset.parents[0]) / "accepted.parquet"
    plan = BuildPlan(
        events=EventsConfig.model_validate(dataset.config["events"]),
        data=DataConfig(repeats="allow"),
        as_of=None,
        shards=settings.shards,
        memory_mb=settings.memory_mb,
        temp=settings.temp,
        threads=settings.threads,
    )
    return read_log([accepted], None, plan)


if __name__ == "__main__":
    main()
