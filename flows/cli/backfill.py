"""`recsys backfill`: nights of the past one after the other, each knowing only what was known then."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.cli.early import made_ready
from flows.cli.home import HomeOption, make_home
from flows.cli.night_options import (
    ColumnsOption,
    EventsOption,
    ItemsOption,
    PresetOption,
    SetOption,
    SplitOption,
    resolved,
    source_of,
)
from flows.cli.progress import shown
from flows.cli.tables import plain_table
from flows.cli.terminal import INTERRUPTED
from recsys import wording
from recsys.errors import ConfigError
from recsys.known import as_of_time
from recsys.story import Story

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_MOST = 1000  # nights


@dataclass(frozen=True)
class Done:
    """One night of a backfill."""

    until: datetime
    story: Story
    seconds: float


def command(
    from_: Annotated[str, typer.Option("--from", help="ISO 8601: the first night knows what was before it.")],
    to: Annotated[str, typer.Option("--to", help="ISO 8601: the last night, at the latest.")],
    every: Annotated[str, typer.Option(help="Between two nights: 1d, 12h, 1w.")] = "1d",
    events: EventsOption = "",
    items: ItemsOption = "",
    columns: ColumnsOption = "",
    home: HomeOption = None,
    preset: PresetOption = "quick",
    set_: SetOption = None,
    split: SplitOption = "",
) -> None:
    """Make up for nights of the past. Done again, or after Ctrl-C, it goes on where it stopped."""
    config = resolved(preset, set_, split)
    nights = list(_nights(as_of_time(from_, "--from"), as_of_time(to, "--to"), _every(every)))
    settings = make_home(home)
    with made_ready(settings):
        from flows.nightly import nightly
        from flows.one_run import one_run
    source = source_of(settings, events, items, columns, "")
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    console = Console(highlight=False)
    done: list[Done] = []
    try:
        for number, until in enumerate(nights, start=1):
            console.print(f"Night {number} of {len(nights)}: what was known before {until:%Y-%m-%d %H:%M %Z}")
            began = time.monotonic()
            with shown(console):
                outcome = one_run(nightly, source=source.known_until(until), **sections)
            done.append(Done(until, _story(outcome), time.monotonic() - began))
    except KeyboardInterrupt:
        console.print(f"Interrupted after {len(done)} of {len(nights)} nights: the same command goes on from there.")
        raise SystemExit(INTERRUPTED) from None
    finally:
        if done:
            console.print(_table(done))


def _every(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,4})([hdw])", text)
    if not match or int(match[1]) == 0:
        raise ConfigError(f"{text!r} is no time between nights", where="--every", mend="Write 1d, 12h or 1w.")
    return int(match[1]) * _UNITS[match[2]]


def _nights(first: datetime, last: datetime, every: timedelta) -> Iterator[datetime]:
    """From the first to the last, in UTC. ConfigError when there is none, or absurdly many."""
    first, last = first.astimezone(UTC), last.astimezone(UTC)
    count = (last - first) // every + 1
    if not 1 <= count <= _MOST:
        what = "before --from" if count < 1 else f"{count:,} nights away from it, more than {_MOST:,}"
        raise ConfigError(f"--to is {what}", where="--to", mend="Choose other dates, or a longer --every.")
    return (first + number * every for number in range(count))


def _story(outcome: Any) -> Story:
    return Story.from_json(Path(outcome.report).with_suffix(".json").read_text(encoding="utf-8"))


def _table(nights: list[Done]) -> Table:
    table = plain_table("Nights", ["Known until", "As of", "Verdict"], ["Artifact's NDCG@10", "Took"])
    for night in nights:
        artifact = night.story.model("artifact")
        quality = artifact.estimate("ndcg_at_10").value if artifact else None
        table.add_row(
            f"{night.until:%Y-%m-%d %H:%M}",
            wording.moment(night.story.as_of),
            night.story.decision,
            wording.ABSENT if quality is None else f"{quality:.4f}",
            wording.duration(night.seconds),
        )
    return table
