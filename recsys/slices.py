"""Groups of users who must not pay for a better mean: by length of history, and those who want the tail."""

from dataclasses import dataclass

import numpy as np

from recsys.small_cells import withheld
from recsys.statistics import Interval, holm, p_of_loss, paired_ratio

SLICES = ("cold", "short", "long", "heavy", "tail")
MIN_USERS = 30
"""A group with fewer users is not tested: a handful of users proves nothing. With far fewer it is not shown either."""
_ALPHA = 0.05  # of the whole family


@dataclass(frozen=True)
class Slice:
    """Some of the C users."""

    name: str
    title: str
    members: np.ndarray  # (C,) bool
    kind: str = ""  # slices of one kind are parts of all users; who is in none of them is the rest


@dataclass(frozen=True)
class SliceTest:
    """What a model lost in a slice, against another model."""

    slice: Slice
    users: int
    change: Interval  # relative, of the mean
    tested: bool
    withheld: bool  # its figures are not shown: they tell about single users, or what others hide
    worse: bool  # proven to have lost more than allowed, the family of slices taken together


def slices_of(history_lengths: np.ndarray, tail_share: np.ndarray) -> list[Slice]:
    """The groups, by quarters of the history length (C,), and by where a user's targets lie (C,).

    Equal lengths are never parted, so a quarter can be larger or empty.
    """
    first, half = np.quantile(history_lengths, [0.25, 0.5], method="lower")
    third = np.quantile(history_lengths, 0.75, method="higher")
    short = (history_lengths > first) & (history_lengths <= half)
    long = (history_lengths > half) & (history_lengths < third)
    groups = [
        (f"cold users (history of at most {first})", history_lengths <= first),
        (f"shorter histories (up to {half})", short),
        (f"longer histories (below {third})", long),
        (f"heavy users (history of at least {third})", history_lengths >= third),
        ("users who want the tail of the catalog", tail_share > 0.5),
    ]
    return [
        Slice(name, title, members, "tail" if name == "tail" else "history")
        for name, (title, members) in zip(SLICES, groups, strict=True)
    ]


def untold(slices: list[Slice]) -> list[bool]:
    """Which slices' figures may not be shown, each kind taken for itself, with the rest that is in no slice of it."""
    hidden: dict[str, bool] = {}
    for kind in {part.kind for part in slices}:
        parts = [part for part in slices if part.kind == kind]
        rest = ~np.any([part.members for part in parts], axis=0)
        sizes = [int(members.sum()) for members in (*(part.members for part in parts), rest)]
        hidden |= {part.name: bool(flag) for part, flag in zip(parts, withheld(sizes), strict=False)}
    return [hidden[part.name] for part in slices]


def compare(slices: list[Slice], a: np.ndarray, b: np.ndarray, loss: float) -> list[SliceTest]:
    """Whether `a` (C,) has lost more than `loss` of `b` (C,) in a slice: by Holm, at 5 % over all slices."""
    sizes = [int(part.members.sum()) for part in slices]
    tested = [size >= MIN_USERS for size in sizes]
    members = [part.members for part, enough in zip(slices, tested, strict=True) if enough]
    adjusted = iter(holm(np.array([p_of_loss(a[m], b[m], loss) for m in members])))
    return [
        SliceTest(
            slice=part,
            users=size,
            change=paired_ratio(a[part.members], b[part.members]),
            tested=enough,
            withheld=hidden,
            worse=enough and bool(next(adjusted) <= _ALPHA),
        )
        for part, size, enough, hidden in zip(slices, sizes, tested, untold(slices), strict=True)
    ]
