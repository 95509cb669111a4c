"""`recsys report`: where the last night's report is."""

from pathlib import Path

import typer

from flows.cli.home import HomeOption, open_home
from recsys.errors import HomeError
from tasks.adapters.store import Store
from tasks.last_night import LastNight


def command(home: HomeOption = None) -> None:
    """Print the path of the last report, alone on its line: open it with a browser, or hand it to a script."""
    path = Path(LastNight.of(Store(open_home(home).store)).report)
    if not path.is_file():
        raise HomeError(
            "the last report is gone", where=str(path), mend="Run recsys nightly again: it is written anew."
        )
    typer.echo(path)
