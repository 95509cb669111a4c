"""`recsys restore`: a home from a backup, here or elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.wording import many


def command(
    archive: Annotated[Path, typer.Argument(help="What recsys backup wrote.")],
    home: Annotated[Path, typer.Option("--home", help="Where the home is to be; nothing may be there yet.")],
) -> None:
    """Make a home of an archive, whole or not at all. A damaged, partial or hostile archive is refused."""
    from tasks.back_up import restore

    done = restore(archive, home)
    typer.echo(f"{many(done.files, 'file')} of {done.home} as of {done.made}, now in {home.absolute()}")
    if done.places:
        typer.echo(f"{done.places:,} places in MLflow's database name the new home.")
    if done.closed:
        typer.echo(f"Closed as KILLED: {many(done.closed, 'run')} that had not ended when the backup was taken.")
    typer.echo(f"Next: recsys fsck --home {home.absolute()}")
