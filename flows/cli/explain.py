"""`recsys explain`: what one user is recommended, and because of which events of their history."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli.home import HomeOption, open_home
from flows.cli.tables import plain_table
from recsys import wording


def command(
    user: Annotated[str, typer.Option(metavar="ID", help="A user id as the events have it.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Items.")] = 10,
    model: Annotated[str, typer.Option(help="champion, challenger or the number of a version.")] = "champion",
    home: HomeOption = None,
) -> None:
    """Why a user is recommended what they are: each item with the events without which its score falls most."""
    settings = open_home(home)
    from tasks.explain_user import Recommended, explain_user

    def because(item: Recommended) -> str:
        if item.basis == "popularity":
            return "it is popular: nothing in the history is known to the model"
        if item.basis == "history":
            return f"{wording.plain(item.causes[0].title)}, the whole history: without it popularity would answer"
        causes = [f"{wording.plain(each.title)} ({wording.percent(each.share, digits=0)})" for each in item.causes]
        return "\n".join(causes) or "no single event: leaving out any one does not lower its score"

    told = explain_user(settings, user, k, model)
    notes = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    for note in told.notes:
        notes.print(note)
    table = plain_table(f"Recommended by version {told.version}", ["Rank", "Title", "Because of"])
    table.columns[0].justify = "right"
    for rank, item in enumerate(told.items, start=1):
        table.add_row(str(rank), Text(wording.plain(item.title)), Text(because(item)))
    Console(highlight=False).print(table)
    notes.print(
        f"From a history of {told.events:,} events up to {wording.moment(told.as_of)}, of which the model reads "
        f"{told.read:,}. In brackets: an event's share of all falls of the score that leaving out one event makes."
    )
