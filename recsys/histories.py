"""Coded histories in memory: who did what, in order, and where the cuts are. Numpy only."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Catalog:
    """The items. Code c (from 1) is row c - 1 of every column; codes are append-only, so an old code keeps its item."""

    item_ids: list[str]
    titles: list[str | None]
    categories: list[str | None]
    descriptions: list[str | None]

    @property
    def items(self) -> int:
        """N, how many items there are."""
        return len(self.item_ids)


@dataclass(frozen=True)
class Histories:
    """U users' events in one flat layout. User u owns `items[offsets[u]:offsets[u + 1]]`, oldest first.

    Users are in the order of their first kept event (then file order), so nothing depends on the secret behind the tokens.
    The first `train_end[u]` events of a user lie before the validation cut, the first `valid_end[u]` before the test cut.
    """

    tokens: np.ndarray  # (U,) S32, keyed tokens in hex
    offsets: np.ndarray  # (U + 1,) int64
    items: np.ndarray  # (E,) int32 codes from 1
    times: np.ndarray  # (E,) int64 seconds UTC
    weights: np.ndarray  # (E,) float32 weight in the loss
    train_end: np.ndarray  # (U,) int32
    valid_end: np.ndarray  # (U,) int32

    @property
    def users(self) -> int:
        """U."""
        return len(self.train_end)

    def until(self, user: int, end: int) -> np.ndarray:
        """The first `end` item codes of a user, (end,) int32."""
        start = self.offsets[user]
        return self.items[start : start + end]

    def training_counts(self, items: int) -> np.ndarray:
        """(items,) int64: training events of each item, popularity as every model and metric means it."""
        lengths = np.diff(self.offsets)
        position = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        seen = self.items[position < np.repeat(self.train_end, lengths)]
        return np.bincount(seen, minlength=items + 1)[1 : items + 1]

    def baskets_shuffled(self, rng: np.random.Generator) -> Self:
        """The same histories with the order of events that share a user and a time drawn anew (a basket has no order).

        No event crosses a cut: what was held out stays held out, also where the cut runs through a basket.
        """
        lengths = np.diff(self.offsets)
        users = np.repeat(np.arange(self.users), lengths)
        position = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        cuts = [position >= np.repeat(end, lengths) for end in (self.train_end, self.valid_end)]
        order = np.lexsort((rng.random(len(self.items)), self.times, cuts[0], cuts[1], users))
        return replace(self, items=self.items[order], weights=self.weights[order])


@dataclass(frozen=True)
class Cases:
    """C users to rank for: what they had done at a cut, and what they did in the window after it."""

    users: np.ndarray  # (C,) int64 rows of the Histories
    histories: list[np.ndarray]  # (l,) int32 each, everything before the cut, never empty
    targets: list[np.ndarray]  # (t,) int32 each, distinct relevant codes, never empty
    exclude_seen: bool  # whether items of the history may not be recommended

    def __len__(self) -> int:
        return len(self.users)

    def exclusions(self) -> list[np.ndarray]:
        """What each user must not be shown: (e,) int32 each."""
        nothing = np.empty(0, np.int32)
        return [np.unique(h) if self.exclude_seen else nothing for h in self.histories]

    def sample(self, most: int) -> Self:
        """At most `most` of the cases, evenly spaced, so that the choice is fixed."""
        if len(self) <= most:
            return self
        return self._of(np.linspace(0, len(self) - 1, most).astype(np.int64))

    def part(self, rows: slice) -> Self:
        """Some of the cases, in order."""
        return self._of(np.arange(len(self))[rows])

    def _of(self, chosen: np.ndarray) -> Self:
        return replace(
            self,
            users=self.users[chosen],
            histories=[self.histories[i] for i in chosen],
            targets=[self.targets[i] for i in chosen],
        )
