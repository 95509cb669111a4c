"""`recsys fsck`: read everything a home relies on, and say what is wrong and what mends it, or mend it."""

from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home
from recsys import wording


def command(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without a person.")] = False,
    home: HomeOption = None,
) -> None:
    """Store, ledger, registry, vault and databases. Exit code 0: all is well or was mended; 1: something is not."""
    settings = open_home(home)
    from tasks.check_home import check_home
    from tasks.check_store import read_store
    from tasks.workshop import Workshop

    console = Console(highlight=False, soft_wrap=True, markup=False)
    workshop = Workshop.of(settings)
    scrubbed = read_store(workshop)
    console.print(
        f"Store: {wording.many(scrubbed.objects, 'object')} in {wording.many(scrubbed.blobs, 'file')}, {wording.size(scrubbed.bytes)}; "
        f"{wording.many(scrubbed.orphans, 'file')} of no object, {wording.size(scrubbed.orphan_bytes)}: recsys gc frees them."
    )
    left = 0
    for line in check_home(workshop, scrubbed, repair=repair):
        console.print(f"{line.fault.part}: {wording.plain(line.fault.what, 600)}.")
        console.print(f"  {wording.plain(line.done, 600) or line.fault.mend}.")
        left += not line.mended
    console.print("All is well." if not left else f"{left} to be mended.")
    if left:
        raise typer.Exit(1)
