"""The options that say what a night is to do: the same for `nightly` and for `plan`, which foretells it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.config import NightConfig
from recsys.known import as_of_time
from recsys.resolve import resolve
from recsys.rows import input_files
from tasks.adapters.settings import Settings
from tasks.adapters.shop import Shop, parse_columns

if TYPE_CHECKING:
    from tasks.night import Source

EventsOption = Annotated[
    str,
    typer.Option(
        "--events", help="Parquet or CSV file, or a folder of them. Default: the home's shop, else the built-in one."
    ),
]
ItemsOption = Annotated[
    str, typer.Option("--items", help="Parquet or CSV file of items. Default: the built-in shop's, or none.")
]
ColumnsOption = Annotated[
    str, typer.Option("--columns", help="Names in your files: user_id=CustomerID,item_id=SKU,...")
]
PresetOption = Annotated[str, typer.Option("--preset", help="quick, standard or large.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KNOB=VALUE", help="Turn one knob.")]
SplitOption = Annotated[str, typer.Option("--split", help="temporal or leave_one_out: short for --set data.split=...")]
AsOfOption = Annotated[
    str, typer.Option("--as-of", help="ISO 8601 time: nothing from then on is known. Default: after the newest event.")
]


def resolved(preset: str, overrides: list[str] | None, split: str) -> NightConfig:
    """The configuration of the night. ConfigError for a preset or knob that there is not."""
    return resolve(preset, [*(overrides or []), *([f"data.split={split}"] if split else [])])


def refuse_early(events: str, items: str, columns: str, as_of: str) -> None:
    """What the steps would refuse in their own words, before the seconds that Prefect and MLflow take to start."""
    if columns:
        parse_columns(columns)
    if as_of:
        as_of_time(as_of)
    for path in filter(None, (events, items)):
        input_files(Path(path).absolute())


def source_of(settings: Settings, events: str, items: str, columns: str, as_of: str) -> "Source":
    """Where its data are: what is named, else the shop that `recsys up` was told of, else the built-in one.

    Call it after the home was opened: it imports Prefect.
    """
    from tasks.night import Source

    shop = Shop() if events else Shop.of(settings)
    return Source(
        events=str(Path(events).absolute()) if events else shop.events,
        items=str(Path(items).absolute()) if items else shop.items,
        columns=parse_columns(columns) if columns else shop.columns,
        as_of=as_of,
    )
