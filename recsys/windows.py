"""How long histories are cut for training and labelling, so that no position starts blind. Numpy only.

A model reads L items at most. Of a user's training inputs the first window owns L positions; each later one owns L/2
and sees the L/2 before them. Every position is owned once; what it sees is fixed by the history alone, so its soft
label can be kept and found again by a hash of what it sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recsys.histories import Histories

_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Windows:
    """M windows over the flat layout of a Histories. Window m reads inputs [start, stop) and owns [own, stop).

    Input position p is followed by its hard label at p + 1; both lie in the user's training part.
    """

    start: np.ndarray  # (M,) int64
    own: np.ndarray  # (M,) int64
    stop: np.ndarray  # (M,) int64

    def __len__(self) -> int:
        return len(self.start)

    @property
    def positions(self) -> int:
        """How many positions are owned in all."""
        return int((self.stop - self.own).sum())

    @classmethod
    def of_training(cls, histories: Histories, length: int) -> "Windows":
        """The windows of every training position, for a model that reads `length` items."""
        half = length // 2
        inputs = np.maximum(histories.train_end.astype(np.int64) - 1, 0)
        later = np.maximum(-(-(inputs - length) // half), 0)
        count = np.where(inputs > 0, 1 + later, 0)
        user = np.repeat(np.arange(histories.users), count)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        base = histories.offsets[user]
        own = np.where(nth == 0, 0, length + (nth - 1) * half)
        start = np.where(nth == 0, 0, own - half)
        stop = np.minimum(np.where(nth == 0, length, own + half), inputs[user])
        return cls(base + start, base + own, base + stop)

    def sight_hashes(self, items: np.ndarray) -> np.ndarray:
        """(positions,) uint64: a hash of what each owned position sees, in the order of `owned_positions`.

        `items` (E,) are the codes of the flat layout. Equal sight gives an equal hash in every dataset and night.
        """
        hashes = np.empty(self.positions, np.uint64)
        begin = np.cumsum(self.stop - self.own) - (self.stop - self.own)
        running = np.full(len(self), 0xCBF29CE484222325, np.uint64)
        for step in range(int((self.stop - self.start).max(initial=0))):
            at = self.start + step
            alive = np.flatnonzero(at < self.stop)
            running[alive] = _mix((running[alive] ^ items[at[alive]].astype(np.uint64)) * _PRIME)
            owned = alive[at[alive] >= self.own[alive]]
            hashes[begin[owned] + at[owned] - self.own[owned]] = running[owned]
        return hashes

    def owned_positions(self) -> np.ndarray:
        """(positions,) int64: the flat input positions that are owned, window after window."""
        size = self.stop - self.own
        return np.repeat(self.own - (np.cumsum(size) - size), size) + np.arange(size.sum())

    def batches(self, tokens: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Window numbers, batch by batch: similar lengths together, at most `tokens` padded positions a batch.

        With `rng` the order is drawn anew (noise on the lengths, then shuffled batches); without it is fixed.
        """
        length = (self.stop - self.start).astype(np.float64)
        if rng is not None:
            length += rng.uniform(0, 0.2, len(length)) * length
        order = np.argsort(length, kind="stable")
        real = (self.stop - self.start)[order]
        cuts, first = [], 0
        longest = 0
        for i, size in enumerate(real):
            longest = max(longest, int(size))
            if i > first and longest * (i - first + 1) > tokens:
                cuts.append(i)
                first, longest = i, int(size)
        parts = np.split(order, cuts) if len(order) else []
        for part in rng.permutation(len(parts)) if rng is not None else range(len(parts)):
            yield parts[part]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
