"""`recsys validate`: the dry check of your own data. Nothing is trained, nothing is kept."""

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.home import HomeOption
from flows.cli.tables import plain_table
from recsys import wording
from recsys.config import NightConfig
from recsys.dataset import Build, BuildPlan, build
from recsys.door import Door
from recsys.errors import DataError
from recsys.events import EventSource, Validation, input_files, validate_file
from recsys.items import ITEMS, ItemsValidation, validate_items
from recsys.resolve import resolve
from recsys.split import DAY
from tasks.adapters.settings import Settings
from tasks.adapters.shop import parse_columns

_EXAMPLES = 3  # of each rule


class DryCheck:
    """One check: reads into a folder, prints what it finds, collects the sentences of what is refused."""

    def __init__(self, console: Console, folder: Path, config: NightConfig, columns: Mapping[str, str]) -> None:
        self.console, self.folder, self.config, self.columns = console, folder, config, columns
        self.refused: list[DataError] = []

    def read_items(self, file: Path) -> Path | None:
        """The accepted items, or None when the file is refused."""
        out = self.folder / "items"
        columns = {name: theirs for name, theirs in self.columns.items() if name in ITEMS.names}
        try:
            validation = validate_items(file, out, columns, self.config.events.max_quarantined)
        except DataError as error:
            self.refused.append(error)
            return None
        self.console.print(_items_table(validation))
        self._tell_quarantined([out], validation.by_rule, validation.notes)
        return out / "items.parquet"

    def read_events(self, files: Sequence[Path], items: Path | None) -> list[Path]:
        """The accepted events of every file that is not refused."""
        source = EventSource(
            columns={n: theirs for n, theirs in self.columns.items() if n == "item_id" or n not in ITEMS.names},
            known_items=pq.read_table(items)["item_id"].combine_chunks() if items else None,
            not_after=int(time.time()) + DAY,
            door=Door(secrets.token_bytes(32)),  # thrown away with the tokens it makes
            on_users=lambda users: None,
        )
        read: dict[Path, Validation] = {}
        for number, file in enumerate(files):
            out = self.folder / f"events-{number}"
            try:
                read[out] = validate_file(file, out, source, self.config.events)
            except DataError as error:
                self.refused.append(error)
        if read:
            self.console.print(_events_table(list(read.values())))
        by_rule: dict[str, int] = {}
        for validation in read.values():
            for rule, rows in validation.by_rule.items():
                by_rule[rule] = by_rule.get(rule, 0) + rows
        notes = [f"{v.file}: {note}" for v in read.values() for note in v.notes]
        self._tell_quarantined(list(read), by_rule, notes)
        return [out / "accepted.parquet" for out in read]

    def build(self, accepted: Sequence[Path], items: Path | None, settings: Settings) -> None:
        """Says how the events would be split, and whether that is enough to judge a model by."""
        plan = BuildPlan(
            events=self.config.events,
            data=self.config.data,
            as_of=None,
            shards=settings.shards,
            memory_mb=settings.memory_mb,
            temp=self.folder,
            threads=settings.threads,
        )
        built = build(accepted, items, None, self.folder / "dataset", plan)
        self.console.print(_build_table(built))
        for note in built.notes:
            self.console.print(Text(f"Note: {note}"))
        self.console.print(Text(judgement(built, self.config), "bold"))

    def _tell_quarantined(self, folders: Sequence[Path], by_rule: Mapping[str, int], notes: Sequence[str]) -> None:
        if by_rule:
            self.console.print(_quarantine_table(by_rule, examples(folders, by_rule)))
        for note in notes:
            self.console.print(Text(f"Note: {wording.plain(note, 300)}"))


def command(
    path: Annotated[Path, typer.Argument(help="Parquet or CSV file of events, or a folder of them.")],
    items: Annotated[Path | None, typer.Option(help="Parquet or CSV file of items.")] = None,
    columns: Annotated[str, typer.Option(help="Names in your files: user_id=CustomerID,item_id=SKU,...")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KNOB=VALUE", help="Turn one knob.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Say what a night would accept, quarantine or refuse of your files, and whether they are enough. Exit code 2: refused."""
    config, settings = resolve("quick", set_ or []), Settings.from_environment(home)
    console = Console(highlight=False)
    place = settings.temp if settings.temp.is_dir() else None
    with TemporaryDirectory(dir=place, prefix="recsys-validate-") as folder:
        check = DryCheck(console, Path(folder), config, parse_columns(columns))
        read_items = check.read_items(items) if items else None
        accepted = check.read_events(input_files(path), read_items)
        if not check.refused:
            check.build(accepted, read_items, settings)
    if check.refused:
        *others, last = check.refused
        for error in others:
            Console(stderr=True, highlight=False).print(f"recsys: {error}", markup=False)
        raise last


def judgement(built: Build, config: NightConfig) -> str:
    """Whether the users of the two windows are enough for a verdict."""
    users = f"{built.test_users:,} users to test on and {built.validation_users:,} to validate on"
    asked = config.gate.min_users
    if built.test_users >= asked:
        return f"Large enough to judge: {users}; gate.min_users asks for {asked:,} to test on."
    return (
        f"Too small to judge: {users}, and gate.min_users asks for {asked:,} to test on. A night would end as HOLD; "
        "bring more events, or lower gate.min_users and accept wider intervals."
    )


def examples(folders: Sequence[Path], by_rule: Mapping[str, int]) -> dict[str, list[str]]:
    """Up to three quarantined rows of each rule: file, row and what stood there. A user id was never written."""
    found: dict[str, list[str]] = {rule: [] for rule in by_rule}
    wanted = {rule: min(rows, _EXAMPLES) for rule, rows in by_rule.items()}
    for folder in folders:
        for batch in pq.ParquetFile(folder / "quarantine.parquet").iter_batches():
            if all(len(found[rule]) == wanted[rule] for rule in wanted):
                return found
            for row in batch.to_pylist():
                rule = f"{row['column']} {row['rule']}" if row["column"] else row["rule"]
                if len(found[rule]) < wanted[rule]:
                    value = "(withheld)" if row["value"] is None else row["value"]
                    found[rule].append(f"{row['file']}, row {row['row']:,}: {wording.plain(value, 60)}")
    return found


# --- as tables ----------------------------------------------------------------------------------------------------


def _events_table(validations: Sequence[Validation]) -> Table:
    table = plain_table("Events", ["File"], ["Rows", "Accepted", "Quarantined", "Users", "Items", "Days"])
    for v in validations:
        counts = [f"{number:,}" for number in (v.lines, v.accepted, v.quarantined, v.users, v.items)]
        table.add_row(Text(wording.plain(v.file)), *counts, f"{_day(v.oldest)}\n{_day(v.newest)}")
    return table


def _items_table(validation: ItemsValidation) -> Table:
    table = plain_table("Items", ["File"], ["Rows", "Accepted", "Duplicates", "Quarantined"])
    counts = (validation.lines, validation.accepted, validation.duplicates, validation.quarantined)
    table.add_row(Text(wording.plain(validation.file)), *(f"{number:,}" for number in counts))
    return table


def _quarantine_table(by_rule: Mapping[str, int], shown: Mapping[str, list[str]]) -> Table:
    table = plain_table("Quarantined", ["Column and rule", "For example"], ["Rows"])
    for rule, rows in sorted(by_rule.items(), key=lambda pair: -pair[1]):
        table.add_row(rule, Text("\n".join(shown[rule])), f"{rows:,}")
    return table


def _build_table(built: Build) -> Table:
    table = plain_table("Events that would be used", [""], ["Number"])
    rows = {
        "accepted": built.accepted,
        "duplicates": built.duplicates,
        "rated too low, or of a kind with weight 0": built.left_out,
        "repeats of an item by a user": built.repeats,
        "older than the newest kept of one user": built.capped,
        "kept": built.kept,
        "users": built.users,
        "items": built.items,
        "users to validate on": built.validation_users,
        "users to test on": built.test_users,
    }
    for name, number in rows.items():
        table.add_row(name, f"{number:,}")
    return table


def _day(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
