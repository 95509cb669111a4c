"""A mutator spoils one thing of a valid input; what it may be applied to is said by tags."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random
from typing import Any

import pyarrow as pa


class Stage(IntEnum):
    """In which order the mutators of one case take their turns."""

    COLUMNS = 0
    ROWS = 1
    WRITING = 2  # of Parquet
    BYTES = 3
    NAME = 4


@dataclass(frozen=True)
class Mutator:
    """What it is called, when its turn is, the tags an input must have, and what it does to it in place."""

    name: str
    stage: Stage
    on: frozenset[str]
    spoil: Callable[[Any, Random], None]


MUTATORS: dict[str, Mutator] = {}
"""All of them, by name; the modules beside this one add theirs."""


def mutator(stage: Stage, *on: str) -> Callable[[Callable], Callable]:
    """Registers a function under its name."""

    def registered(spoil: Callable) -> Callable:
        MUTATORS[spoil.__name__] = Mutator(spoil.__name__, stage, frozenset(on), spoil)
        return spoil

    return registered


def fitting(tags: frozenset[str]) -> list[Mutator]:
    """Those that an input with these tags can take, by name."""
    return [each for _, each in sorted(MUTATORS.items()) if each.on <= tags]


@dataclass
class Delivery:
    """A file of events, items or users on its way: a table until it is written, bytes from then on."""

    kind: str
    csv: bool
    table: pa.Table
    writing: dict[str, Any] = field(default_factory=dict)  # for pyarrow.parquet.write_table
    raw: bytes = b""
    name: str = ""
    touched: bool = False  # the bytes are not what was written: nothing is known of the rows

    @property
    def tags(self) -> frozenset[str]:
        """What kind of mutator fits."""
        return frozenset({"file", self.kind, "csv" if self.csv else "parquet"})


@dataclass
class Words:
    """What somebody types: a preset and `--set` words, or `--columns`, or `--as-of`."""

    kind: str
    words: list[str]
    preset: str = "quick"

    @property
    def tags(self) -> frozenset[str]:
        """What kind of mutator fits."""
        return frozenset({"words", self.kind})


@dataclass
class Ask:
    """A request to `recsys serve`: its JSON until it is written, bytes from then on."""

    kind: str  # request: through the app in process; wire: bytes through a socket
    body: dict[str, Any]
    batch: bool
    method: str = "POST"
    path: str = "/recommend"
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])
    raw: bytes = b""
    told: bytes | None = None  # content-length; None: the true one

    @property
    def tags(self) -> frozenset[str]:
        """What kind of mutator fits."""
        return frozenset({"ask", self.kind})
