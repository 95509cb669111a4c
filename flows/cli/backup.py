"""`recsys backup`: a home as one file, taken while it works."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.home import HomeOption, open_home
from recsys import wording


def command(
    to: Annotated[Path, typer.Option("--to", metavar="FILE.tar", help="The archive; nothing may be there yet.")],
    home: HomeOption = None,
) -> None:
    """Databases, store, models, ledger, reports and vault, with its key where the home has it: keep the archive as safe."""
    settings = open_home(home)
    from tasks.back_up import back_up

    done = back_up(settings, to, datetime.now(UTC))
    typer.echo(f"{wording.many(done.files, 'file')}, {wording.size(done.bytes)}, in {to}")
    if done.left_out:
        typer.echo(f"Not in it: {done.left_out}.")
    held = "the user ids and the key of the vault" if done.key else "what users did, and their ids, encrypted"
    typer.echo(f"It holds {held}: keep it where only you can read it.")
