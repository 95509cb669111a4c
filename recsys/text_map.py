"""From an item's text to its row of an item table: how items that nobody has bought yet are ranked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.errors import StoreError

FILE = "text_map.safetensors"
STRENGTHS = 10.0 ** np.arange(-6, 3)
"""Ridge penalties that are tried, as shares of the texts' largest variance."""

TRUSTED_EVENTS = 5
"""A row counts by n / (n + 5), n the item's training events: rows of few events are mostly noise."""

_ROWS = 65_536
"""Rows in double precision at a time."""


@dataclass(frozen=True)
class TextMap:
    """row = text . matrix + bias, at the norm of the rows that were trained.

    Fitted to the rows of items with training events by ridge regression, its penalty by generalized cross-validation
    (Golub, Heath, Wahba 1979). It needs nothing of how the table came to be: teachers and students have one alike.
    """

    matrix: np.ndarray  # (T, D) float32, T the text encoder's width
    bias: np.ndarray  # (D,) float32
    norm: np.ndarray  # () float32, the median norm of a trained row; cold rows as they come are shorter
    reader: Mapping[str, str]  # what read the texts, see `TextEncoder.described`: of another the vectors mean nothing

    @classmethod
    def of(cls, table: np.ndarray, texts: np.ndarray, counts: np.ndarray, reader: Mapping[str, str]) -> Self | None:
        """Of a table (N, D), text vectors (N, T), zeros without a text, and training events (N,). None with too few texts."""
        told = np.flatnonzero((counts > 0) & texts.any(axis=1))
        if len(told) < 2:
            return None
        trust = counts / (counts + TRUSTED_EVENTS)
        blocks = [told[first : first + _ROWS] for first in range(0, len(told), _ROWS)]
        x_mean, y_mean = (
            np.sum([trust[some] @ values[some] for some in blocks], axis=0) / trust[told].sum()
            for values in (texts, table)
        )
        moments = _Moments.of(len(told), texts.shape[1], table.shape[1])
        for some in blocks:
            moments.add(texts[some] - x_mean, table[some] - y_mean, trust[some])
        matrix = moments.ridge()
        return cls(
            matrix.astype(np.float32),
            (y_mean - x_mean @ matrix).astype(np.float32),
            np.array(np.median(np.linalg.norm(table[counts > 0], axis=1)), np.float32),
            reader,
        )

    def rows(self, texts: np.ndarray) -> np.ndarray:
        """(n, T) text vectors -> (n, D) float32 rows; zeros, which score 0, for items without a text."""
        rows = texts @ self.matrix + self.bias
        rows *= self.norm / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        rows[~texts.any(axis=1)] = 0
        return np.asarray(rows, np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        """By the names under which an artifact has them among its weights."""
        return {"text.bias": self.bias, "text.matrix": self.matrix, "text.norm": self.norm}

    def save(self, folder: Path) -> None:
        """Write text_map.safetensors into an existing folder."""
        # One entry: safetensors writes several in no fixed order, and the same map is to be the same bytes.
        save_file(self.tensors(), folder / FILE, metadata={"reader": json.dumps(dict(self.reader), sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What `save` wrote; None where there is no file. Raises StoreError."""
        if not (folder / FILE).exists():
            return None
        try:
            with safe_open(folder / FILE, "numpy") as file:
                reader = json.loads(file.metadata()["reader"])
                return cls.of_tensors({name: file.get_tensor(name) for name in file.keys()}, reader)  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StoreError("a text map cannot be read", where=f"{folder / FILE}: {error}") from None

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray], reader: Mapping[str, str]) -> Self:
        """The inverse of `tensors`, also among others. KeyError where one is missing."""
        return cls(tensors["text.matrix"], tensors["text.bias"], tensors["text.norm"], reader)


@dataclass
class _Moments:
    """What a weighted ridge regression needs of n rows of x (n, T) and y (n, D), summed up in blocks; float64."""

    rows: int  # n
    xx: np.ndarray  # (T, T)
    xy: np.ndarray  # (T, D)
    yy: float = 0.0

    @classmethod
    def of(cls, rows: int, texts: int, width: int) -> Self:
        """Of nothing yet."""
        return cls(rows, np.zeros((texts, texts)), np.zeros((texts, width)))

    def add(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        """Some rows more."""
        weighted = weights[:, None] * x
        self.xx += weighted.T @ x
        self.xy += weighted.T @ y
        self.yy += float((weights @ y**2).sum())

    def ridge(self) -> np.ndarray:
        """(T, D): the B with the smallest |y - x B|^2 + s |B|^2 at the s with the least cross-validation error."""
        values, axes = np.linalg.eigh(self.xx)
        values = np.maximum(values, 0)
        shared = axes.T @ self.xy
        errors = []
        for strength in STRENGTHS * values[-1]:
            shrunk = shared / (values + strength)[:, None]
            left = self.yy - 2 * (shrunk * shared).sum() + (values[:, None] * shrunk**2).sum()
            errors.append(left / (self.rows - (values / (values + strength)).sum()) ** 2)
        best = STRENGTHS[int(np.argmin(errors))] * values[-1]
        return np.asarray(axes @ (shared / (values + best)[:, None]))
