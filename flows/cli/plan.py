"""`recsys plan`: what a night with these options would reuse, what it would compute and why."""

import typer
from rich.console import Console
from rich.text import Text

from flows.cli.home import HomeOption, open_home
from flows.cli.night_options import (
    AsOfOption,
    ColumnsOption,
    EventsOption,
    ItemsOption,
    PresetOption,
    SetOption,
    SplitOption,
    resolved,
    source_of,
)
from flows.cli.tables import plain_table
from recsys import wording


def command(
    events: EventsOption = "",
    items: ItemsOption = "",
    columns: ColumnsOption = "",
    home: HomeOption = None,
    preset: PresetOption = "quick",
    set_: SetOption = None,
    split: SplitOption = "",
    as_of: AsOfOption = "",
) -> None:
    """Rehearse a night: its steps, what each would do and why, seconds and disk by what earlier nights took."""
    config = resolved(preset, set_, split)
    settings = open_home(home)
    from flows.planning import plan
    from tasks.workshop import Workshop

    steps = plan(Workshop.of(settings), source_of(settings, events, items, columns, as_of), config)
    table = plain_table("Tonight", ["Step", "What", "Why"], ["Time", "Disk"])
    for step in steps:
        cost = (wording.duration(step.estimate.seconds), wording.size(step.estimate.bytes))
        table.add_row(step.name, step.what, Text(wording.plain(step.why, 300)), *cost)
    table.add_section()
    table.add_row(
        "at most",
        "",
        "",
        wording.duration(sum(step.estimate.seconds or 0 for step in steps)),
        wording.size(sum(step.estimate.bytes or 0 for step in steps)),
    )
    Console(highlight=False).print(table)
    if any(step.what != "reuse" and step.estimate.seconds is None for step in steps):
        typer.echo("A step without a time was never computed here; it is not in the sum.")
