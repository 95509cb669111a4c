"""`recsys doctor`: is this home well? Every line green, yellow or red, with the command that mends it."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.home import HomeOption
from flows.cli.tables import plain_table
from recsys.errors import HomeError
from tasks.adapters.settings import Settings
from tasks.finding import Tone
from tasks.patient import examinable

if TYPE_CHECKING:
    from tasks.checkup import Checkup

UNWELL = 1
"""Exit code when a line is red."""

_MARKS: dict[Tone, tuple[str, str]] = {"green": ("✓", "green"), "yellow": ("!", "yellow"), "red": ("✗", "bold red")}


def command(
    home: HomeOption = None,
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 for yellow lines too.")] = False,
) -> None:
    """Examine a home. Exit code 0: nothing is red, 1: something is (with --strict: or yellow)."""
    settings = Settings.from_environment(home)
    if not settings.home.is_dir():
        raise HomeError(
            "there is no home of recsys here",
            where=str(settings.home),
            mend="Name another folder with --home, or make this one with recsys nightly.",
        )
    examinable(settings).export()  # before Prefect and MLflow are imported

    from tasks.checkup import check

    found = check(settings)
    if json_:
        typer.echo(json.dumps(found.plain(), indent=1))
    else:
        Console(highlight=False).print(told(found))
    if found.worst == "red" or (strict and found.worst == "yellow"):
        raise typer.Exit(UNWELL)


def told(found: "Checkup") -> Table:
    """Line by line; below one that is not green, what mends it."""
    table = plain_table(_title(found), ["", "Check", "What was found"])
    table.columns[1].no_wrap = True
    for line in found.lines:
        mark, style = _MARKS[line.tone]
        said = Text(line.sentence)
        if line.mend:
            said.append(f"\n→ {line.mend}", style="bold")
        table.add_row(Text(mark, style=style), Text(line.name, style="" if line.tone == "green" else style), said)
    return table


def _title(found: "Checkup") -> str:
    red, yellow = len(found.of("red")), len(found.of("yellow"))
    if not red and not yellow:
        return f"All {len(found.lines)} checks are green."
    counts = [f"{red} red"] * bool(red) + [f"{yellow} yellow"] * bool(yellow)
    return f"{' and '.join(counts)} of {len(found.lines)} checks."
