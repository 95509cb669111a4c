"""Whether the newest day is rated on another scale than those before: `events.min_rating` would then ask for something else.

Looked at only where a minimum is asked, for otherwise no rating is read.
"""

from dataclasses import dataclass

_ENOUGH, _ENOUGH_BEFORE = 30, 300
_TIMES = 1.5


@dataclass(frozen=True)
class Ratings:
    """Of some days."""

    count: int
    smallest: float
    largest: float


def rating_scale(newest: Ratings, earlier: Ratings, minimum: float) -> str | None:
    """A sentence about the newest day's ratings, held against those of the days before; None where nothing is to be said."""
    if newest.count < _ENOUGH or earlier.count < _ENOUGH_BEFORE:
        return None
    mend = f"see whether events.min_rating = {minimum:g} still means what it did"
    if earlier.largest > 0 and not earlier.largest / _TIMES <= newest.largest <= earlier.largest * _TIMES:
        return f"the newest day is rated up to {newest.largest:g}, the days before up to {earlier.largest:g}: {mend}"
    if newest.smallest == newest.largest and earlier.smallest < earlier.largest:
        return f"all {newest.count:,} ratings of the newest day are {newest.largest:g}: {mend}"
    return None
