"""The chain of promotions: its records, what they say together, and the rule by which one of two writers wins. Pure.

A record is valid only if the record it expected was still the last valid one, and it carries the seal of that one, so
that none can be changed afterwards without contradicting the next.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from recsys.errors import RegistryError
from tasks.adapters.manifest import canonical

Op = Literal["promote", "rollback", "manual", "repair"]
"""manual: the alias was moved by hand. repair: the same files under a new version, where the old one was deleted."""


@dataclass(frozen=True)
class Entry:
    """What is to be recorded: `to` becomes the champion if record `expected` (0: none) is still the last valid one."""

    op: Op
    to: int
    expected: int
    evidence: str  # digest of the verdict, empty where there is none
    actor: str
    reason: str

    @property
    def intent(self) -> str:
        """The same entry is recorded once, however often it is sent."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()


@dataclass(frozen=True)
class Record:
    """One line of the ledger. `digest` is of the files of version `to`, `previous` of the valid record before."""

    number: int
    intent: str
    op: Op
    to: int
    came_from: int | None  # the champion that `to` replaces
    expected: int
    evidence: str
    digest: str
    actor: str
    reason: str
    previous: str
    at: str  # ISO 8601, UTC

    @classmethod
    def read(cls, number: int, text: str) -> Self:
        """A record from its tag. ValueError, KeyError or TypeError when it is not one."""
        fields: dict[str, Any] = json.loads(text)
        return cls(number=number, came_from=fields.pop("from"), **fields)

    def text(self) -> str:
        """The tag: canonical JSON without the number, which the server gives."""
        fields = asdict(self)
        del fields["number"]
        fields["from"] = fields.pop("came_from")
        return canonical(fields).decode("ascii")

    @property
    def seal(self) -> str:
        """What the next valid record refers to."""
        return hashlib.sha256(f"{self.number} {self.text()}".encode("ascii")).hexdigest()

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.op} {self.came_from or 'nothing'} -> {self.to} by {self.actor}: {self.reason}"


@dataclass(frozen=True)
class Chain:
    """The valid records in order. `broken` says what contradicts them, if anything does."""

    records: tuple[Record, ...]
    broken: str = ""
    applied: bool = True  # whether the aliases were set after the last valid record
    moving: frozenset[int] = frozenset()  # versions that a host is just pointing the aliases at, or was when it died

    @property
    def last(self) -> int:
        """Number of the last valid record; 0 when there is none."""
        return self.records[-1].number if self.records else 0

    @property
    def champion(self) -> int | None:
        """The version that serves."""
        return self._standing()[-1]

    @property
    def champion_digest(self) -> str:
        """Of the champion's files; empty when there is no champion."""
        return self.records[-1].digest if self.records else ""

    @property
    def previous(self) -> int | None:
        """The version that a rollback goes to."""
        return self._standing()[-2]

    def require_intact(self) -> Self:
        """RegistryError when the chain is broken."""
        if self.broken:
            raise RegistryError(
                f"the ledger contradicts itself: {self.broken}",
                mend="Compare it with its mirror in the home's ledger folder; nothing is promoted until they agree.",
            )
        return self

    @property
    def served(self) -> tuple[int, ...]:
        """Every version that was a champion once, the newest first, without the one that is."""
        newest_first = dict.fromkeys(record.to for record in reversed(self.records))
        return tuple(number for number in newest_first if number != self.champion)

    @property
    def withdrawn(self) -> Mapping[str, Record]:
        """The record that took files away again, by their digest. Whoever serves again is no longer withdrawn."""
        found: dict[str, Record] = {}
        digest = ""
        for record in self.records:
            if digest and record.op in ("rollback", "manual"):
                found[digest] = record
            digest = record.digest
            found.pop(digest, None)
        return found

    def _standing(self) -> list[int | None]:
        """Champions one above the other: a promotion adds one, a rollback uncovers one, a repair renames one."""
        standing: list[int | None] = [None, None]
        for record in self.records:
            if record.op == "repair":
                standing = [record.to if number == record.came_from else number for number in standing]
            elif record.op == "rollback" and record.to in standing:
                while standing[-1] != record.to:
                    standing.pop()
            else:
                standing.append(record.to)
        return standing


def fold(texts: Sequence[tuple[int, str]]) -> Chain:
    """The chain in (number, text) of every record, lowest number first.

    A repeated intent is a response that was lost, a stale `expected` one that lost a race: both are passed over.
    """
    valid: list[Record] = []
    seen: set[str] = set()
    for count, (number, text) in enumerate(texts, start=1):
        if number != count:
            return Chain(tuple(valid), broken=f"record {count} is missing")
        try:
            record = Record.read(number, text)
        except (ValueError, KeyError, TypeError):
            return Chain(tuple(valid), broken=f"record {number} cannot be read")
        if record.intent in seen or record.expected != (valid[-1].number if valid else 0):
            seen.add(record.intent)
            continue
        seen.add(record.intent)
        if record.previous != (valid[-1].seal if valid else ""):
            return Chain(tuple(valid), broken=f"record {record.expected} was changed after record {number}")
        valid.append(record)
    return Chain(tuple(valid))
