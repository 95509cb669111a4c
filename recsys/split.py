"""Where time is cut: test is the last days before as-of, validation the days before those."""

from dataclasses import dataclass

import numpy as np

DAY = 86_400
"""Seconds."""

_LARGEST_SHARE = 4  # a window may be extended to a quarter of the time there is, so that half remains for training


@dataclass(frozen=True)
class Window:
    """A window [start, end) of time, and how many users have a history before it and something in it."""

    start: int  # seconds UTC
    end: int
    users: int

    @property
    def days(self) -> int:
        """How long it is."""
        return (self.end - self.start) // DAY


@dataclass(frozen=True)
class Cuts:
    """Where histories are cut. Without windows: leave-one-out, of users with three events or more."""

    test: Window | None = None
    validation: Window | None = None

    def ends(self, times: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many events of each user come before the validation and the test cut, (U,) int32 each.

        `times` (E,) are seconds UTC, oldest first within a user; user u owns [offsets[u], offsets[u + 1]).
        """
        if self.test is not None and self.validation is not None:
            return _before(self.validation.start, times, offsets), _before(self.test.start, times, offsets)
        lengths = np.diff(offsets)
        held_out = (lengths >= 3).astype(np.int64)
        return (lengths - 2 * held_out).astype(np.int32), (lengths - held_out).astype(np.int32)


def window_before(end: int, first: np.ndarray, last: np.ndarray, days: int, min_users: int) -> Window:
    """The window of `days` or more days before `end` (seconds UTC).

    `first` and `last` (U,) are the times of each user's first event and of the last one before `end`; a user
    counts when first < start <= last. The window is extended day by day until it has `min_users` users, at
    most to a quarter of the time before `end`; where that is not reached it is the shortest window with the
    most users.
    """
    reachable = (end - int(first.min(initial=end))) // _LARGEST_SHARE // DAY
    starts = end - DAY * np.arange(days, max(days, reachable) + 1)
    users = np.searchsorted(np.sort(first), starts) - np.searchsorted(np.sort(last), starts)
    enough = np.flatnonzero(users >= min_users)
    chosen = int(enough[0]) if len(enough) else int(users.argmax())
    return Window(int(starts[chosen]), end, int(users[chosen]))


def _before(cut: int, times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(U,) int32: events of each user before `cut`."""
    running = np.concatenate([[0], np.cumsum(times < cut)])
    return np.asarray(running[offsets[1:]] - running[offsets[:-1]], np.int32)
