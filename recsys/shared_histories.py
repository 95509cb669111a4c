"""Histories that may be shown to anybody: a few items that many users have done something with, and what these took then.

No user's own history is among them: with ten items in a row nearly everybody is alone, and a title can be enough to be known by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.histories import Cases
from recsys.small_cells import FEWEST

LONGEST = 4  # items
_ASKED = 20_000  # users: more share the same


@dataclass(frozen=True)
class SharedHistory:
    """Items that at least FEWEST users have in their histories, all of them, in whatever order."""

    items: np.ndarray  # (l,) int32 codes, the one that most have last
    taken: np.ndarray  # (t,) int32 codes that at least FEWEST of these users took afterwards, most first


def shared_histories(cases: Cases, most: int) -> Iterator[SharedHistory]:
    """At most `most`, the most shared first, without an item in common; none where no item is shared by so many."""
    used: set[int] = set()
    cases = cases.sample(_ASKED)
    while most and len(found := _grown(cases.histories, used)):
        having = [row for row, history in enumerate(cases.histories) if np.isin(found, history).all()]
        yield SharedHistory(found[::-1], _shared([cases.targets[row] for row in having], set()))
        used |= set(found.tolist())
        most -= 1


def _grown(histories: Sequence[np.ndarray], used: set[int]) -> np.ndarray:
    """The item that most users have, then the one that most of these have, and so on while they are enough."""
    found: list[int] = []
    while len(found) < LONGEST and len(shared := _shared(histories, used | set(found))):
        found.append(int(shared[0]))
        histories = [history for history in histories if shared[0] in history]
    return np.array(found, np.int32)


def _shared(histories: Sequence[np.ndarray], without: set[int]) -> np.ndarray:
    """Codes in at least FEWEST of the histories, most first, ties by the lower code."""
    once = [np.unique(history) for history in histories]
    codes, users = np.unique(np.concatenate([np.empty(0, np.int32), *once]), return_counts=True)
    some = (users >= FEWEST) & ~np.isin(codes, list(without))
    order = np.argsort(-users[some], kind="stable")
    return codes[some][order].astype(np.int32)
