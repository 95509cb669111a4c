"""`recsys status`: who is champion and how it got there, what the last night said, the last runs, the disk."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.cli.home import HomeOption, open_home
from flows.cli.tables import plain_table
from recsys import wording
from recsys.errors import HomeError
from tasks.adapters.ledger import Chain, Ledger
from tasks.adapters.registry import STUDENT, Registry
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.adapters.tracking import EXPERIMENT, OCCASION, Tracking
from tasks.batch_scores import newest
from tasks.last_night import LastNight
from tasks.workshop import Workshop

_RECORDS = 5  # newest of the ledger that are shown
_NIGHTS = 5
_RUNS_LOOKED_AT = 500  # trainings and trials are runs too


@dataclass(frozen=True)
class Standing:
    """What the ledger and the registry say about the champion."""

    chain: Chain
    alias: int | None  # where MLflow's alias champion points
    why: str  # the verdict on the champion, in one sentence
    gone: bool = False  # the champion's version was deleted in MLflow


@dataclass(frozen=True)
class NightRun:
    """One night in MLflow."""

    name: str
    began: datetime
    seconds: float | None  # None while it runs
    status: str
    decision: str


def command(home: HomeOption = None) -> None:
    """Champion, last verdict, last nights and disk of a home."""
    settings = open_home(home)
    workshop = Workshop.of(settings)
    parts = [
        _home(settings),
        "",
        *_champion(standing(settings, workshop.registry)),
        "",
        *_verdict(settings),
        *_scores(settings),
    ]
    nights = last_nights(workshop.tracking)
    parts += ["", _runs(nights)] if nights else []
    Console(highlight=False).print(Group(*parts, "", _disk(settings)))


def standing(settings: Settings, registry: Registry) -> Standing:
    """Read only: an alias that was moved by hand is told, and settled by the next command that serves or promotes."""
    ledger = Ledger(settings, registry)
    chain, alias = ledger.chain(), registry.aliases(STUDENT).get("champion")
    if chain.champion is None:
        return Standing(chain, alias, "")
    said = {version.number: version.sentence for version in registry.all_versions(STUDENT)}
    if chain.champion not in said:
        return Standing(chain, alias, f"{ledger.gone(chain.champion)}.", gone=True)
    return Standing(chain, alias, said[chain.champion])


def last_nights(tracking: Tracking) -> list[NightRun]:
    """The newest runs in MLflow that are nights and no part of another run, newest first."""
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    runs = tracking.client.search_runs(
        [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=_RUNS_LOOKED_AT
    )
    nights = [run for run in runs if not {"mlflow.parentRunId", OCCASION} & set(run.data.tags)]
    return [_night(run) for run in nights[:_NIGHTS]]


def bytes_of(folder: Path) -> int:
    """On the disk. A file of several names, as the store's views have, counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in _files(folder):
        sizes[path.st_dev, path.st_ino] = path.st_blocks * 512
    return sum(sizes.values())


def _files(folder: Path) -> Iterator[os.stat_result]:
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(root, name))
            except FileNotFoundError:  # a night at work removes what it no longer needs
                continue


def _night(run: Any) -> NightRun:
    ended = run.info.end_time
    return NightRun(
        name=run.info.run_name or "",
        began=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        seconds=None if ended is None else (ended - run.info.start_time) / 1000,
        status=run.info.status,
        decision=run.data.tags.get("recsys.decision", ""),
    )


# --- as text ------------------------------------------------------------------------------------------------------


def _home(settings: Settings) -> RenderableType:
    lines = [f"Home {settings.home}"]
    lines += [f"{name} at {url.removesuffix('/api')}" for name, url in sorted(settings.running().items())]
    return Text("\n".join(lines), style="dim")


def _champion(now: Standing) -> list[RenderableType]:
    chain = now.chain
    if chain.champion is None:
        parts: list[RenderableType] = [Text("No champion yet.", style="bold")]
    else:
        head = f"Champion: {STUDENT} version {chain.champion}"
        previous = f", a rollback goes to version {chain.previous}" if chain.previous else ""
        parts = [Text.assemble((head, "bold"), previous), Text(wording.plain(now.why, 600)), "", _ledger(chain)]
    if chain.broken:
        parts.append(Text(f"The ledger contradicts itself: {chain.broken}. Nothing is promoted until mended.", "red"))
    elif chain.applied and now.alias != chain.champion and not (now.gone and now.alias is None):
        moved = f"The alias champion was moved by hand to {now.alias or 'nothing'}: the next command adopts it or puts it back."
        parts.append(Text(moved, "yellow"))
    return parts


def _ledger(chain: Chain) -> Table:
    table = plain_table("How it got there", ["When", "What", "By", "Why"])
    for record in reversed(chain.records[-_RECORDS:]):
        what = f"{record.op} {record.came_from or 'nothing'} → {record.to}"
        when = wording.moment(int(datetime.fromisoformat(record.at).timestamp()))
        table.add_row(when, what, Text(wording.plain(record.actor, 30)), Text(wording.plain(record.reason, 200)))
    return table


def _verdict(settings: Settings) -> list[RenderableType]:
    try:
        last = LastNight.of(Store(settings.store))
    except HomeError as error:
        return [Text(str(error))]
    lines = [
        Text.assemble((f"Last verdict: {last.decision}", "bold"), f", as of {wording.moment(last.as_of)}"),
        Text(wording.plain(last.sentence, 600)),
    ]
    lines += [Text(f"What to do: {wording.plain(last.advice, 600)}")] if last.advice else []
    return [*lines, Text(f"Report: {last.report}", style="dim")]


def _scores(settings: Settings) -> list[RenderableType]:
    scores = newest(settings)
    return [Text(f"Batch scores: {scores.sentence}.")] if scores else []


def _runs(nights: list[NightRun]) -> Table:
    table = plain_table("Last runs", ["Run", "Began", "Took", "Status", "Verdict"])
    for night in nights:
        took = "still running" if night.seconds is None else wording.duration(night.seconds)
        began = f"{night.began:%Y-%m-%d %H:%M} UTC"
        table.add_row(Text(wording.plain(night.name, 40)), began, took, night.status, night.decision)
    return table


def _disk(settings: Settings) -> Table:
    table = plain_table("Disk", ["Part"], ["Size"])
    parts = {"store": settings.store, "models and runs": settings.mlflow, "Prefect": settings.prefect}
    parts |= {"vault": settings.vault, "ledger": settings.ledger, "cache": settings.cache, "temporary": settings.temp}
    for name, folder in parts.items():
        table.add_row(name, wording.size(bytes_of(folder)))
    table.add_section()
    table.add_row("all", wording.size(bytes_of(settings.home) + _elsewhere(settings)), style="bold")
    return table


def _elsewhere(settings: Settings) -> int:
    """Bytes of a store that does not lie in the home."""
    return 0 if settings.store.is_relative_to(settings.home) else bytes_of(settings.store)
