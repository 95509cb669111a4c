"""`recsys history`: the ledger, newest first: who made which version the champion, when, why, and on what evidence."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli.home import HomeOption, open_home
from flows.cli.tables import plain_table
from recsys import wording
from tasks.adapters.ledger import Record
from tasks.adapters.registry import STUDENT
from tasks.workshop import Workshop


def command(
    home: HomeOption = None,
    number: Annotated[int, typer.Option("-n", min=1, help="How many, the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Every promotion, rollback and hand move, from the ledger."""
    workshop = Workshop.of(open_home(home))
    chain = workshop.ledger.chain()
    verdicts = {version.number: version.sentence for version in workshop.registry.all_versions(STUDENT)}
    newest = list(reversed(chain.records))[:number]
    if as_json:
        typer.echo(json.dumps([_document(record, verdicts) for record in newest], indent=1, ensure_ascii=False))
    else:
        _print(newest, verdicts)
    if chain.broken:
        Console(stderr=True).print(Text(f"The ledger contradicts itself: {chain.broken}.", "red"))
        raise typer.Exit(2)


def _document(record: Record, verdicts: dict[int, str]) -> dict[str, object]:
    """A record with the names of the ledger, and what the gate said of the version it made champion."""
    fields = asdict(record)
    fields["from"] = fields.pop("came_from")
    return {**fields, "verdict": verdicts.get(record.to)}


def _print(records: list[Record], verdicts: dict[int, str]) -> None:
    if not records:
        typer.echo("Nothing was promoted yet.")
        return
    table = plain_table(f"Champions of {STUDENT}", ["No.", "When", "What", "By", "Why"])
    for column in table.columns[:3]:
        column.no_wrap = True
    for record in records:
        moved = f"{record.op} {record.came_from or 'nothing'} → {record.to}"
        when = f"{datetime.fromisoformat(record.at):%Y-%m-%d %H:%M}"
        by = Text(wording.plain(record.actor, 40))
        table.add_row(str(record.number), when, moved, by, _why(record, verdicts.get(record.to)))
    Console(highlight=False).print(table)


def _why(record: Record, verdict: str | None) -> Text:
    """The reason and, where it is another text, what the gate said of the version."""
    reason = Text(wording.plain(record.reason, 300))
    if verdict == record.reason:  # a night gives its verdict as the reason
        return reason
    said = "The version was deleted." if verdict is None else wording.plain(verdict, 300)
    return Text("\n").join([reason, Text(said, style="dim")])
