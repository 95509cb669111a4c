"""`recsys monitor`: how the champion fares with what came after it; exit code 1 when something is wrong."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.cli.early import made_ready
from flows.cli.home import HomeOption, open_home
from flows.cli.progress import shown
from flows.cli.tables import plain_table
from recsys import small_cells, wording
from recsys.resolve import resolve_monitor
from tasks.adapters.shop import parse_columns

ALARM = 1
"""Exit code when the champion has decayed, the data drifted, something is stale or a night was missed."""


def command(
    events: Annotated[
        str, typer.Option(help="Parquet or CSV file, or a folder of them. Default: what the last night read.")
    ] = "",
    items: Annotated[str, typer.Option(help="Parquet or CSV file of items. Default: what the last night read.")] = "",
    columns: Annotated[str, typer.Option(help="Names in your files: user_id=CustomerID,item_id=SKU,...")] = "",
    home: HomeOption = None,
    as_of: Annotated[
        str, typer.Option(help="ISO 8601 time: nothing from then on is known. Default: all events, and the clock.")
    ] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="monitor.KNOB=VALUE", help="Turn one knob.")
    ] = None,
) -> None:
    """Served recommendations against later events, drift, staleness and missed nights."""
    config = resolve_monitor(set_ or [])
    settings = open_home(home)
    with made_ready(settings):
        from flows.monitor import monitor
        from flows.one_run import one_run
        from tasks.night import Source

    source = Source(
        events=str(Path(events).absolute()) if events else "",
        items=str(Path(items).absolute()) if items else "",
        columns=parse_columns(columns),
        as_of=as_of,
    )
    console = Console(highlight=False)
    with shown(console):
        looked = one_run(monitor, source=source, monitor=config)
    seen = json.loads(Path(looked.report).with_suffix(".json").read_text(encoding="utf-8"))
    console.print(told(seen))
    console.print(f"Page: {looked.report}", soft_wrap=True, markup=False)
    raise typer.Exit(ALARM if looked.alarms else 0)


def told(seen: dict[str, Any]) -> RenderableType:
    """The state in a panel, hit rates, drift and ages as tables. Texts from the data are shown as they are."""
    lines = [Text(wording.plain(seen["sentence"], 600), style="bold")]
    lines += [Text.assemble((f"{a['kind']}: ", "bold"), wording.plain(a["advice"], 600)) for a in seen["alarms"]]
    lines += [Text(wording.plain(note, 300), style="dim") for note in seen["notes"]]
    tone = "red" if seen["alarms"] else "green"
    title = Text(f" {'ALARM' if seen['alarms'] else 'FINE'} ", style=f"bold reverse {tone}")
    parts: list[RenderableType] = [
        Panel(Text("\n").join(lines), title=title, title_align="left", border_style=tone, padding=(1, 2))
    ]
    if seen["follow_up"]:
        parts += ["", _served(seen["follow_up"])]
    parts += [Text(wording.plain(seen["decay"]["sentence"], 600)), "", _ages(seen["ages"])]
    if seen["drift"]:
        parts += ["", _drift(seen["drift"])]
    return Group(*parts)


def _served(follow: dict[str, Any]) -> Table:
    back = small_cells.told(follow["users"])
    title = f"Version {follow['version']}, as of {wording.moment(follow['as_of'])}: {back} came back"
    table = plain_table(title, ["List"], ["HR@10", "NDCG@10", "Champion against it"])
    for name, rate in follow["hit_rate"].items():
        against = follow["against"].get(name)
        change = wording.percent(against["value"], signed=True) if against else wording.ABSENT
        ndcg = wording.decimal(follow["ndcg"][name]["value"])
        table.add_row(name.replace("_", "-"), wording.percent(rate["value"]), ndcg, change)
    return table


def _ages(ages: list[dict[str, Any]]) -> Table:
    table = plain_table("Ages", ["What", "When"], ["Days", ""])
    for age in ages:
        when = wording.ABSENT if age["at"] is None else wording.moment(age["at"])
        table.add_row(age["what"], when, wording.decimal(age["days"], 1), Text("stale" if age["stale"] else "", "red"))
    return table


def _drift(drift: dict[str, Any]) -> Table:
    table = plain_table("Drift from the champion's training data", ["Field"], ["PSI", "By chance up to", ""])
    for field in drift["fields"]:
        flag = Text("drifted" if field["drifted"] else "", "red")
        table.add_row(field["field"], wording.decimal(field["psi"], 3), wording.decimal(field["by_chance"], 3), flag)
    users, items = (wording.percent(drift[name]) for name in ("new_users", "new_items"))
    table.caption = f"{users} of the users and {items} of the items are new"
    return table
