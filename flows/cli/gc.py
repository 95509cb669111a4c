"""`recsys gc`: free the disk of what nothing needs any more."""

from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home
from flows.cli.tables import plain_table
from recsys import wording
from recsys.retention import RetentionConfig


def command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, list what would be.")] = False,
    keep_nights: Annotated[int, typer.Option(min=1, help="Newest nights that are kept with all they made.")] = 14,
    keep_days: Annotated[
        float, typer.Option(min=0, help="What is younger is kept, so that a killed night goes on.")
    ] = 2,
    home: HomeOption = None,
) -> None:
    """Keep what aliases, the ledger, the last nights and the batch scores need; a running night is not disturbed."""
    settings = open_home(home)
    from tasks.collect_garbage import collect_garbage
    from tasks.workshop import Workshop

    freed = collect_garbage(Workshop.of(settings), RetentionConfig(nights=keep_nights, days=keep_days), dry_run=dry_run)
    table = plain_table("Would be freed" if dry_run else "Freed", ["What"], ["Files and folders", "Size"])
    for kind in freed:
        table.add_row(kind.kind, wording.count(kind.things), wording.size(kind.bytes))
    table.add_section()
    table.add_row("all", wording.count(sum(k.things for k in freed)), wording.size(sum(k.bytes for k in freed)))
    Console(highlight=False).print(table)
