"""The time budget of a night: a moment that no key knows of, after which steps go on with the best they have."""

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Deadline:
    """`at` is seconds of this machine's monotonic clock; None: there is all the time."""

    at: float | None = None

    @classmethod
    def of(cls, minutes: float) -> Self:
        """So many minutes from now; 0: none."""
        return cls(time.monotonic() + 60 * minutes if minutes else None)

    def passed(self) -> bool:
        """Whether the budget is used up."""
        return self.at is not None and time.monotonic() >= self.at


@dataclass(frozen=True)
class Got:
    """How far a build came that the time budget may end early: so many of those asked for."""

    done: int
    asked: int
    what: str  # epochs, trials, points

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.done >= self.asked

    def __str__(self) -> str:
        return f"{self.done} of {self.asked} {self.what}"


class CutShort(Exception):  # noqa: N818  no error: the step goes on with what there is
    """Ends the build of an object for which there was no more time."""

    def __init__(self, got: Got) -> None:
        self.got = got
        super().__init__(str(got))
