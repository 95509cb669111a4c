"""`recsys nightly`: the main job, as a real Prefect flow run recorded in the home."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.early import made_ready
from flows.cli.progress import shown
from flows.cli.terminal import follow
from recsys.errors import ConfigError
from recsys.resolve import resolve
from recsys.story import Story
from tasks.adapters.settings import Settings


def command(
    events: Annotated[
        str, typer.Option(help="Parquet or CSV file, or a folder of them. Default: the built-in shop.")
    ] = "",
    items: Annotated[
        str, typer.Option(help="Parquet or CSV file of items. Default: the built-in shop's, or none.")
    ] = "",
    columns: Annotated[str, typer.Option(help="Names in your files: user_id=CustomerID,item_id=SKU,...")] = "",
    home: Annotated[
        Path | None, typer.Option(help="Where everything is kept. Default: RECSYS_HOME or ~/.recsys.")
    ] = None,
    preset: Annotated[str, typer.Option(help="quick, standard or large.")] = "quick",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KNOB=VALUE", help="Turn one knob.")
    ] = None,
    split: Annotated[str, typer.Option(help="temporal or leave_one_out: short for --set data.split=...")] = "",
    as_of: Annotated[
        str, typer.Option(help="ISO 8601 time: nothing from then on is known. Default: after the newest event.")
    ] = "",
    require_promotion: Annotated[bool, typer.Option(help="Exit with 3 when nothing was promoted.")] = False,
) -> None:
    """Take a shop's events to a judged, compressed student in the MLflow registry."""
    overrides = [*(set_ or []), *([f"data.split={split}"] if split else [])]
    config = resolve(preset, overrides)
    settings = Settings.from_environment(home)
    settings.prepare()
    settings.export()  # before Prefect and MLflow are imported: they read their places once

    with made_ready(settings):
        from flows.nightly import nightly
        from tasks.night import Source

    source = Source(
        events=str(Path(events).absolute()) if events else "",
        items=str(Path(items).absolute()) if items else "",
        columns=parse_columns(columns),
        as_of=as_of,
    )
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    console = Console(highlight=False)
    with follow(console) as screen, shown(console):
        outcome = nightly(source=source, **sections)
    screen.show(Story.from_json(Path(outcome.report).with_suffix(".json").read_text(encoding="utf-8")))
    console.print(f"Report: {outcome.report}", soft_wrap=True, markup=False)
    if require_promotion and outcome.decision != "PROMOTE":
        raise typer.Exit(3)


def parse_columns(text: str) -> dict[str, str]:
    """`user_id=CustomerID,item_id=SKU` -> {"user_id": "CustomerID", "item_id": "SKU"}. ConfigError when malformed."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    for ours, equals, theirs in pairs:
        if not (ours.strip() and equals and theirs.strip()):
            raise ConfigError(
                f"{text!r} does not pair our column names with yours",
                where="--columns",
                mend="Write --columns user_id=CustomerID,item_id=SKU.",
            )
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
