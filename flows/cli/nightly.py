"""`recsys nightly`: the main job, as a real Prefect flow run recorded in the home."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.early import made_ready
from flows.cli.home import HomeOption, make_home
from flows.cli.night_options import (
    AsOfOption,
    ColumnsOption,
    EventsOption,
    ItemsOption,
    PresetOption,
    SetOption,
    SplitOption,
    refuse_early,
    resolved,
    source_of,
)
from flows.cli.progress import shown
from flows.cli.terminal import follow
from recsys.story import Story


def command(
    events: EventsOption = "",
    items: ItemsOption = "",
    columns: ColumnsOption = "",
    home: HomeOption = None,
    preset: PresetOption = "quick",
    set_: SetOption = None,
    split: SplitOption = "",
    as_of: AsOfOption = "",
    require_promotion: Annotated[bool, typer.Option(help="Exit with 3 when nothing was promoted.")] = False,
) -> None:
    """Take a shop's events to a judged, compressed student in the MLflow registry."""
    config = resolved(preset, set_, split)
    refuse_early(events, items, columns, as_of)
    settings = make_home(home)  # before Prefect and MLflow are imported: they read their places once

    with made_ready(settings):
        from flows.nightly import nightly
        from flows.one_run import one_run

    source = source_of(settings, events, items, columns, as_of)
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    console = Console(highlight=False)
    with follow(console) as screen, shown(console):
        outcome = one_run(nightly, source=source, **sections)
    screen.show(Story.from_json(Path(outcome.report).with_suffix(".json").read_text(encoding="utf-8")))
    console.print(f"Report: {outcome.report}", soft_wrap=True, markup=False)
    if require_promotion and outcome.decision != "PROMOTE":
        raise typer.Exit(3)
