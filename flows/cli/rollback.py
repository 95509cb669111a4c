"""`recsys rollback`: an earlier champion serves again, with the catalog and item vectors that are part of it."""

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer

from flows.cli.home import HomeOption, open_home
from flows.cli.promote import show
from tasks.change_champion import Move, change_champion
from tasks.workshop import Workshop


def command(
    reason: Annotated[str, typer.Option(help="Why. Kept in the ledger.")],
    to: Annotated[
        int | None, typer.Option(min=1, help="An earlier champion. Default: the one before this one.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Make an earlier champion the champion again."""
    settings = open_home(home)
    move = Move(op="rollback", to=to, actor=getpass.getuser(), reason=reason, at=datetime.now(UTC))
    show(change_champion(Workshop.of(settings), move))
