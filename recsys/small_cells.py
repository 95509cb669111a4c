"""Figures of so few people that they tell about single ones: which groups of a table are withheld, and in what words.

Suppression of small cells, with the complementary suppression that a total asks for (Hundepool et al. 2012, Statistical
Disclosure Control, chapter 4). What is decided by such figures is decided by all of them: only what is shown changes.
"""

from collections.abc import Sequence

import numpy as np

FEWEST = 10
"""Users of a group from which on its figures are shown; also how many must share what is shown of a history."""
FEW = f"fewer than {FEWEST} users"
WITHHELD = "withheld"


def told(users: int | None) -> str:
    """1234 -> "1,234 users"; a few are not counted out, and None is a few that were not. Nobody is no few."""
    return FEW if users is None or 0 < users < FEWEST else f"{users:,} users"


def withheld(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(G,) bool: which of G groups, that together are everybody, may not be shown.

    Those of fewer than FEWEST users; and while these together are so few that the total less the others tells them, the
    next smallest too. A group of nobody tells nothing by its absence.
    """
    order, hidden = np.argsort(sizes, kind="stable"), np.asarray(sizes) < FEWEST
    for group in order:
        if hidden[group]:
            continue
        if not 0 < np.asarray(sizes)[hidden].sum() < FEWEST:
            break
        hidden[group] = True
    return hidden
