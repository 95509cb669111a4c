"""`recsys promote`: a version becomes the champion, by its verdict or because a person answers for it."""

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home
from recsys.errors import ConfigError
from tasks.change_champion import Move, Moved, change_champion
from tasks.workshop import Workshop


def command(
    version: Annotated[int | None, typer.Option(min=1, help="Which one. Default: the challenger.")] = None,
    approve: Annotated[
        str, typer.Option(metavar="NAME", help="Who answers for it, where the gate's word is not enough.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "",
    home: HomeOption = None,
) -> None:
    """Make a version the champion: load-tested, by the ledger's compare-and-set."""
    settings = open_home(home)
    if approve and not reason:
        raise ConfigError("an approval needs a reason", where="--approve", mend="Add --reason TEXT.")
    move = Move(
        op="promote",
        to=version,
        actor=approve or getpass.getuser(),
        reason=reason,
        approved=bool(approve),
        at=datetime.now(UTC),
    )
    show(change_champion(Workshop.of(settings), move))


def show(moved: Moved) -> None:
    """One line on stdout; what else was settled on the way on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    for note in moved.notes:
        console.print(f"{note}.")
    typer.echo(f"{moved.sentence}.")
