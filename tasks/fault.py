"""What fsck finds wrong, and what mends it."""

from collections.abc import Callable
from dataclasses import dataclass

Repair = Callable[[], str]
"""Mends, and says what was done. RecsysError when it could not."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be."""

    part: str  # of the home: store, ledger, ...
    what: str
    mend: str  # a command, or what to do in words
    repair: Repair | None = None  # None: only a person can


@dataclass(frozen=True)
class Line:
    """A fault, and what `--repair` did about it, if anything."""

    fault: Fault
    done: str = ""
    mended: bool = False
