"""How a table looks on a terminal: a title, no frame, texts on the left and numbers on the right."""

from collections.abc import Sequence

from rich import box
from rich.table import Table


def plain_table(title: str, texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """An empty table with the columns `texts`, which wrap, and then `numbers`, which do not."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
