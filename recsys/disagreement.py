"""Where two models part: how often they agree over all test users, and what each shows to more of them than the other.

Sums over users only: what is shown of one item is shown where its two audiences differ by FEWEST users at least.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from recsys.small_cells import FEWEST


@dataclass(frozen=True)
class Shift:
    """An item, and the users who see it among their first from either model."""

    code: int
    users: int
    others: int


@dataclass(frozen=True)
class Disagreement:
    """Of a model with another one, over the same users."""

    first: float  # share of users whose first item is the same
    shared: float  # items in common, mean over users
    more: tuple[Shift, ...]  # that the model shows to more users than the other, the largest difference first
    less: tuple[Shift, ...]  # to fewer

    @classmethod
    def of(cls, top: np.ndarray, other: np.ndarray, most: int) -> Self | None:
        """(U, K) codes of both models, best first, 0 where nothing is left; at most `most` shifts each way.

        None with fewer than FEWEST users.
        """
        if len(top) < FEWEST:
            return None
        common = (top[:, :, None] == other[:, None, :]) & (top > 0)[:, :, None]
        here, there = (_audience(each, int(max(top.max(), other.max()))) for each in (top, other))
        more = here - there
        return cls(
            first=float((top[:, 0] == other[:, 0]).mean()),
            shared=float(common.sum() / len(top)),
            more=tuple(Shift(code, int(here[code]), int(there[code])) for code in _largest(more, most)),
            less=tuple(Shift(code, int(here[code]), int(there[code])) for code in _largest(-more, most)),
        )


def _audience(top: np.ndarray, last: int) -> np.ndarray:
    """(last + 1,) users by code; nobody is shown the padding."""
    users = np.bincount(top.ravel(), minlength=last + 1)
    users[0] = 0
    return users


def _largest(differences: np.ndarray, most: int) -> list[int]:
    """Codes of at least FEWEST users' difference, the largest first, ties by the lower code."""
    ranked = np.argsort(-differences, kind="stable")[:most]
    return [int(code) for code in ranked if differences[code] >= FEWEST]
