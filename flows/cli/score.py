"""`recsys score`: recommendations for every user, or for those of a file, as one Parquet file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home
from recsys import wording
from tasks.adapters.shop import parse_columns


def command(
    users: Annotated[str, typer.Option(metavar="all|FILE", help="all, or a file with a column user_id.")] = "all",
    k: Annotated[int, typer.Option("-k", min=1, help="Items a user.")] = 10,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("recs.parquet"),
    model: Annotated[str, typer.Option(help="champion, challenger or the number of a version.")] = "champion",
    events: Annotated[
        Path | None, typer.Option(help="Events to read histories from. Default: those of the last night.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="A file of items: those that the model does not know are ranked by their texts.")
    ] = None,
    columns: Annotated[str, typer.Option(help="Names in your files: user_id=CustomerID,item_id=SKU,...")] = "",
    home: HomeOption = None,
) -> None:
    """Serve many users at once: columns user_id, item_id, rank, score, source and model_version."""
    settings = open_home(home)
    from tasks.score_users import Request, score_users

    request = Request(
        model=model,
        users=None if users == "all" else Path(users),
        events=events,
        columns=parse_columns(columns),
        k=k,
        out=out,
        items=items,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    with console.status("Scoring ...") as status:
        scored = score_users(settings, request, lambda done: status.update(f"{done:,} users"))
    for note in scored.notes:
        console.print(note)
    console.print(
        f"Version {scored.version} served {scored.users:,} users, {scored.by_popularity:,} of them by popularity, "
        f"from their histories up to {wording.moment(scored.as_of)}."
    )
    typer.echo(f"{scored.rows:,} rows in {out}")
