"""The item table in eight bits: whole numbers from -127 to 127 and one scale a row. Numpy only."""

from dataclasses import dataclass

import numpy as np

LEVELS = 127
"""The largest whole number. -128 is left out so that a vector and its negative are rounded alike."""


@dataclass(frozen=True)
class Int8Table:
    """Row-wise symmetric int8: row r stands for `rows[r] * scales[r]`."""

    rows: np.ndarray  # (N + 1, D) int8
    scales: np.ndarray  # (N + 1,) float32

    @classmethod
    def of(cls, table: np.ndarray) -> "Int8Table":
        """The nearest int8 table of `table` (N + 1, D) float32. A row of zeros, the padding, stays zero."""
        largest = np.abs(table).max(axis=1)
        scales = np.where(largest > 0, largest / LEVELS, 1).astype(np.float32)
        return cls(np.rint(table / scales[:, None]).astype(np.int8), scales)

    def dequantized(self) -> np.ndarray:
        """(N + 1, D) float32, no element further than half its row's scale from the original."""
        return np.asarray(self.rows.astype(np.float32) * self.scales[:, None])
