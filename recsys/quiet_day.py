"""Whether the newest day brought far fewer events than that day of the week does: an export that was cut off, or half sent.

Days are of 24 hours and counted backwards from the as-of. The newest is compared with the median of the same day in the
weeks before, which knows that a shop is closed on Sundays. Holidays are told of as well.
"""

from collections.abc import Sequence
from statistics import median

DAYS = 8 * 7 + 1
"""Looked back."""
_ENOUGH_WEEKS = 4
_ENOUGH_EVENTS = 30  # of a usual day: of fewer a quarter can come by chance
_SHARE = 0.25


def quiet_day(events: Sequence[int]) -> str | None:
    """A sentence about the first of `events`, counts a day, the newest first, as far back as the data reaches.

    None where nothing is to be said.
    """
    earlier = events[7:DAYS:7]
    usual = median(earlier) if earlier else 0
    if len(earlier) < _ENOUGH_WEEKS or usual < _ENOUGH_EVENTS or events[0] >= _SHARE * usual:
        return None
    return (
        f"the newest day has {events[0]:,} events, that day of the week usually {usual:,.0f}: "
        "if no holiday explains it, see whether the shop's export is whole"
    )
