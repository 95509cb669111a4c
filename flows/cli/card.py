"""`recsys card`: the model card of a version, as MLflow's registry shows it."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from flows.cli.home import HomeOption, open_home
from flows.cli.lineage import numbered
from recsys import wording
from tasks.adapters.registry import LONGEST_TEXT, STUDENT, TEACHER
from tasks.workshop import Workshop


def command(
    version: Annotated[str, typer.Argument(help="A number, or champion, previous, challenger.")] = "champion",
    teacher: Annotated[bool, typer.Option("--teacher", help="Of the teacher.")] = False,
    home: HomeOption = None,
) -> None:
    """What a version is, its data, figures and limits, and what it is for."""
    workshop, model = Workshop.of(open_home(home)), TEACHER if teacher else STUDENT
    card = workshop.registry.version(model, numbered(workshop, version, model)).description
    Console().print(Markdown("\n".join(wording.plain(line, LONGEST_TEXT) for line in card.splitlines())))
