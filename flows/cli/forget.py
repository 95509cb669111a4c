"""`recsys forget`: users who must not be known any more are gone from every object, and the next night never knew them."""

from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home
from recsys import wording


def command(
    users: Annotated[list[str], typer.Argument(help="Their ids, exactly as the events have them.", metavar="USER...")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
) -> None:
    """Forget users: rows of theirs are accepted no more, and all that was made from them is removed, but the champion.

    The next night makes everything anew and comes to what it would be if they had never been there.
    """
    settings = open_home(home)
    from tasks.forget_users import forget_users
    from tasks.workshop import Workshop

    if not yes:
        typer.confirm(
            f"Forget {wording.many(len(users), 'user')}? All objects of this home but the champion's files are removed, "
            "and the next night makes them anew. This cannot be undone",
            abort=True,
        )
    found = forget_users(Workshop.of(settings), users)
    console = Console(highlight=False)
    again = f" ({found.again} of them were forgotten before)" if found.again else ""
    console.print(f"{wording.many(found.users, 'user')} forgotten{again}; {wording.size(found.bytes)} removed.")
    if found.night_seconds is not None:
        console.print(f"The next night makes everything anew: about {wording.duration(found.night_seconds)}.")
    if found.champion is not None:
        console.print(
            f"Version {found.champion} still serves, and what it learnt from them stays in it until a later night's version "
            "is promoted: recsys doctor counts the days. No other version from before may serve again."
        )
    console.print("Backups and files outside this home, the shop's events among them, are yours to clear.")
