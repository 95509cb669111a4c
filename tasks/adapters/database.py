"""A SQLite database as a file: whether it is sound, and which migration of its package it has come to."""

import contextlib
import re
import sqlite3
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

_REVISION = re.compile(r"^(down_)?revision\b[^=\n]*=([^\n]*)", re.MULTILINE)
_QUOTED = re.compile(r"[\"']([^\"']+)[\"']")
_WAIT_SECONDS = 10

DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading a damaged file raises: what SQLite says of it may quote bytes that are no text."""


@dataclass(frozen=True)
class Database:
    """One file of SQLite, only ever read here."""

    path: Path

    def faults(self) -> str:
        """What is wrong with the file; empty when it is sound. Reads all of it."""
        try:
            return "" if (said := str(self._one("PRAGMA quick_check(1)"))) == "ok" else said
        except DAMAGED as error:
            return str(error)

    def revision(self) -> str:
        """The migration it has come to; empty when there was none."""
        try:
            return str(self._one("SELECT version_num FROM alembic_version") or "")
        except sqlite3.OperationalError:
            return ""

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """What a query gives. sqlite3.DatabaseError when it cannot be asked."""
        uri = f"file:{quote(str(self.path))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_SECONDS)) as connection:
            return connection.execute(query).fetchall()

    def _one(self, query: str) -> object:
        rows = self.rows(query)
        return rows[0][0] if rows else None


def newest_migration(package: str, folder: str) -> str:
    """The last migration that an installed package brings, read from its scripts, of which none is run.

    `folder` is below the package's own. Alembic would import every script, which takes seconds.
    """
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    scripts = Path(spec.submodule_search_locations[0]) / folder
    there: set[str] = set()
    built_on: set[str] = set()
    for script in scripts.glob("*.py"):
        for down, value in _REVISION.findall(script.read_text(encoding="utf-8")):
            (built_on if down else there).update(_QUOTED.findall(value))
    (newest,) = there - built_on
    return newest
