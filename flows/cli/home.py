"""The home a command works in: its option, and how it is opened."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import HomeError
from tasks.adapters.settings import Settings

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where everything is kept. Default: RECSYS_HOME or ~/.recsys.")
]


def make_home(home: Path | None) -> Settings:
    """Settings of a home, made where there is none. Prefect and MLflow may be imported afterwards, not before."""
    return Settings.from_environment(home).prepare().export()


def open_home(home: Path | None) -> Settings:
    """As `make_home`, for commands that only read. HomeError where there is no home."""
    return settings_of(home).prepare().export()


def settings_of(home: Path | None) -> Settings:
    """Of a home that is there, before anything in it is opened. HomeError where there is none."""
    settings = Settings.from_environment(home)
    if not settings.servers_file.parent.is_dir():
        raise HomeError(
            "there is no home of recsys here",
            where=str(settings.home),
            mend="Name another folder with --home, or make this one with recsys nightly.",
        )
    return settings
