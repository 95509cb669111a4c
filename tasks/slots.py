"""Slots: the times a schedule gives, and which run makes up for which. Knows no clock, no server: all is handed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

CatchUp = Literal["latest", "all", "none"]

GRACE = timedelta(hours=2)
"""A night that ends so long after its time is not yet missed."""


@dataclass(frozen=True)
class Slot:
    """One scheduled run of a deployment. Times are UTC."""

    run_id: str
    run: str  # its name
    at: datetime  # when it was due
    began: datetime | None = None
    works: bool = False  # it holds the home's lock
    done: bool = False  # it ended well, having worked


@dataclass(frozen=True)
class Turn:
    """Whether a run works, and what it may know; `sentence` says why not, or for whom else."""

    works: bool
    until: datetime | None  # nothing from then on is known; None: no bound
    sentence: str = ""
    made_up: tuple[datetime, ...] = ()  # other slots, due before, that nobody has done


def whose_turn(policy: CatchUp, mine: Slot, others: Sequence[Slot], now: datetime) -> Turn:
    """What a scheduled run does, by the policy for missed nights; `others` are the deployment's other scheduled runs.

    latest: the first to begin does the newest slot that is due, whichever slot it was made for, because a server with
    a concurrency limit may cancel the newer runs while it is at work; whoever was due before it began steps aside.
    all: each does its own. none: one that is later than half the time between two slots steps aside.
    """
    due = sorted({slot.at for slot in others if slot.at <= now} | {mine.at})
    if policy == "all":
        return Turn(True, mine.at)
    if policy == "none":
        return _unless_late(mine, period(sorted({slot.at for slot in others} | {mine.at})), now)
    for other in others:
        if (other.works or other.done) and other.began is not None and other.began >= mine.at:
            doing = "is at work on" if other.works else "has done"
            return Turn(
                False, None, f"{other.run}, begun {_minute(other.began)}, {doing} all that this night could know"
            )
    known = max((slot.began for slot in others if slot.done and slot.began), default=None)
    missed = tuple(at for at in due[:-1] if known is None or at > known)
    if not missed:
        return Turn(True, due[-1])
    return Turn(True, due[-1], f"this night makes up for {_nights(len(missed))} since {_minute(missed[0])}", missed)


def nights_missed(
    knew: datetime | None,
    due: Sequence[datetime],
    now: datetime,
    every: timedelta | None = None,
    grace: timedelta = GRACE,
) -> tuple[datetime, ...]:
    """The slots that no night has made up for although `every`, the time to the next one, and `grace` have passed.

    `knew` is the moment up to which the last night that ended well could know all: its beginning, or its as-of bound;
    None where none did. `due` are the schedule's times up to `now`. Oldest first.
    """
    patience = grace + (every or timedelta())
    return tuple(at for at in sorted(due) if (knew is None or at > knew) and now - at > patience)


def period(times: Sequence[datetime]) -> timedelta | None:
    """The shortest time between two slots, oldest first; None where there are not two."""
    gaps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    return min(gaps, default=None)


def _unless_late(mine: Slot, every: timedelta | None, now: datetime) -> Turn:
    late = now - mine.at
    if every is None or late <= every / 2:
        return Turn(True, mine.at)
    return Turn(False, None, f"it is {_hours(late)} late, and run.catch_up says that missed nights are not made up for")


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _nights(count: int) -> str:
    return "a missed night" if count == 1 else f"{count} missed nights"


def _hours(late: timedelta) -> str:
    hours = late.total_seconds() / 3600
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
