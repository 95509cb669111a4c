"""`recsys move`: a home's store to a bucket and its MLflow to a server, for several machines."""

import typer

from flows.cli.home import HomeOption, open_home
from recsys.wording import many


def command(home: HomeOption = None) -> None:
    """Copy the store to RECSYS_STORE and MLflow's data to the server at MLFLOW_TRACKING_URI over MLFLOW_BACKEND_STORE_URI.

    What was in the home stays there. Afterwards set the first two for every command.
    """
    settings = open_home(home)
    from tasks.move import move

    done = move(settings)
    if done.store:
        typer.echo(
            f"Store: {many(done.store.objects, 'object')}, {many(done.store.remembered, 'remembered one')} and "
            f"{many(done.store.heads, 'head')} are in {settings.shared.text if settings.shared else ''}."
        )
    if done.rows is not None:
        typer.echo(f"MLflow: {done.rows or 'no more'} rows were copied to {settings.tracking_uri}.")
    champion = f"version {done.champion} is the champion and was loaded from there" if done.champion else "no champion"
    typer.echo(f"Ledger: {many(done.records, 'record')}, {champion}.")
    typer.echo("Next: keep RECSYS_STORE and MLFLOW_TRACKING_URI set for every command, then recsys plan.")
