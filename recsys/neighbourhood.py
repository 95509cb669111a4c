"""What the neighbours of the newest items say: a second opinion beside a sequence model's, causal and sparse."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array, vstack
from torch import Tensor

from recsys.errors import StoreError
from recsys.histories import Histories

LISTS, CARD = "neighbours.safetensors", "blend.json"
FLOOR = 0.01
"""The similarity that counts as one unit of evidence: an item nobody speaks for keeps what the model gave it."""

NEWEST_OF_A_USER = 500
"""Distinct training items of a user that are paired; it bounds the pairs to 500 an event."""

SIMILARITY_LEVELS = 255
"""The largest of a row's similarities in eight bits."""

_PAIRS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class RoundedLists:
    """K neighbours of each of N items, row 0 is padding; row r, place p stands for levels[r, p] * scales[r]."""

    items: np.ndarray  # (N + 1, K) uint16, int32 for larger catalogs; code of the neighbour, 0 for none
    levels: np.ndarray  # (N + 1, K) uint8
    scales: np.ndarray  # (N + 1,) float32, each of sixteen bits


@dataclass(frozen=True)
class Neighbourhood:
    """Each item's nearest items, and how many of the newest items of a history are asked for theirs.

    sim(i, j) = (c_ij - 1) / sqrt(n_i n_j): n_i users have item i, c_ij have both, of the training part. One user is
    no evidence (absolute discounting, Ney et al. 1994). It also makes a training position honest: the user who went
    on to j is one of the c_ij, so what is left is what the others say.
    """

    near: csr_array  # (N, N) float32; row i has the similarities of the items nearest to the item with code i + 1
    newest: int

    @classmethod
    def of_training(cls, histories: Histories, items: int, keep: int, newest: int) -> Self:
        """The `keep` nearest of each item by the events before the validation cut. Ties go to the lower code."""
        matrix = _owners(histories, items)
        by_item = matrix.T.tocsr()
        buyers = np.diff(by_item.indptr)
        pairs = np.cumsum(by_item @ np.diff(matrix.indptr))
        parts = []
        for rows in _blocks(pairs):
            shared = (by_item[rows] @ matrix).tocoo()
            row, column = shared.coords
            known = (shared.data > 1) & (row + rows.start != column)
            row, column, both = row[known], column[known], shared.data[known]
            similar = (both - 1) / np.sqrt(buyers[row + rows.start] * buyers[column])
            parts.append(_nearest(row, column, similar, (rows.stop - rows.start, items), keep))
        return cls(vstack(parts, format="csr"), newest)

    @property
    def items(self) -> int:
        """N, the items it knows."""
        return int(self.near.shape[0])

    @property
    def kept(self) -> int:
        """K, the longest list."""
        return int(np.diff(self.near.indptr).max(initial=0))

    def nearest(self, share: float) -> "Neighbourhood":
        """The nearest of each item's neighbours: `share` of the longest list, rounded up."""
        keep = int(np.ceil(share * self.kept))
        row = np.repeat(np.arange(self.items), np.diff(self.near.indptr))
        return Neighbourhood(_nearest(row, self.near.indices, self.near.data, self.near.shape, keep), self.newest)

    def rounded(self) -> "RoundedLists":
        """The lists in eight bits a similarity, as an artifact carries them."""
        item = np.repeat(np.arange(self.items), np.diff(self.near.indptr)) + 1
        place = np.arange(len(item)) - self.near.indptr[item - 1]
        shape = (self.items + 1, max(1, self.kept))
        largest = np.zeros(shape[0], np.float32)
        np.maximum.at(largest, item, self.near.data)
        scales = np.where(largest > 0, largest / SIMILARITY_LEVELS, 1).astype(np.float32)
        scales = (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)  # downwards: the largest is 255 of it for good
        items = np.zeros(shape, np.uint16 if self.items < 1 << 16 else np.int32)
        levels = np.zeros(shape, np.uint8)
        items[item, place] = self.near.indices + 1
        levels[item, place] = np.minimum(np.rint(self.near.data / scales[item]), SIMILARITY_LEVELS)
        return RoundedLists(items, levels, scales)

    def as_rounded(self) -> "Neighbourhood":
        """What the rounded lists say: rounding it again changes nothing."""
        lists = self.rounded()
        row, place = np.nonzero(lists.levels)
        similar = lists.levels[row, place] * lists.scales[row]
        column = lists.items[row, place].astype(np.int64) - 1
        return Neighbourhood(csr_array((similar, (row - 1, column)), shape=self.near.shape), self.newest)

    def heard(self, items: np.ndarray, rows: np.ndarray, ends: np.ndarray) -> csr_array:
        """(P, N) float32: the sum of sim(i, j) over the distinct items i among the newest of items[row, : end + 1].

        `items` (B, L) are codes padded with 0 on the right, `rows` and `ends` (P,) the positions asked for. Codes
        that are not known say nothing. Only what stands at or before a position is heard there.
        """
        again = _next_of_the_same(items)
        asked, codes = [], []
        for age in range(min(self.newest, items.shape[1])):
            at = ends - age
            inside = np.flatnonzero(at >= 0)
            row, at = rows[inside], at[inside]
            code = items[row, at]
            speaks = (code > 0) & (code <= self.items) & (again[row, at] > ends[inside])
            asked.append(inside[speaks])
            codes.append(code[speaks] - 1)
        position, column = np.concatenate(asked), np.concatenate(codes)
        ones = np.ones(len(position), np.float32)
        seen = csr_array((ones, (position, column)), shape=(len(rows), self.items))
        return seen @ self.near


@dataclass(frozen=True)
class Opinion:
    """Neighbours, and the share they have in the mean of logits."""

    neighbourhood: Neighbourhood
    weight: float  # w, in (0, 1)

    def heard(self, items: Tensor, rows: Tensor, ends: Tensor) -> csr_array:
        """`Neighbourhood.heard` of tensors."""
        return self.neighbourhood.heard(items.cpu().numpy(), rows.cpu().numpy(), ends.cpu().numpy())

    def blended(self, logits: Tensor, heard: csr_array) -> Tensor:
        """(1 - w) z + w log(1 + s / FLOOR), in the place of the logits z (P, N), for `heard` s (P, N)."""
        said = heard.tocoo()
        row, column = (torch.from_numpy(axis.astype(np.int64)).to(logits.device) for axis in said.coords)
        evidence = torch.from_numpy(np.log1p(said.data / np.float32(FLOOR))).to(logits)
        logits *= 1 - self.weight
        logits[row, column] += self.weight * evidence
        return logits

    def save(self, folder: Path) -> None:
        """Write neighbours.safetensors and blend.json into an existing folder."""
        near = self.neighbourhood.near
        lists = {
            "offsets": near.indptr.astype(np.int64),
            "items": near.indices.astype(np.int32),
            "similarities": near.data.astype(np.float32),
        }
        save_file(lists, folder / LISTS)
        card = {"weight": self.weight, "newest": self.neighbourhood.newest}
        (folder / CARD).write_text(json.dumps(card, sort_keys=True, indent=1, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What `save` wrote into a teacher's folder, None where it wrote nothing. Raises StoreError."""
        if not (folder / CARD).exists():
            return None
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            lists = load_file(folder / LISTS)
            items = len(lists["offsets"]) - 1
            near = csr_array((lists["similarities"], lists["items"], lists["offsets"]), shape=(items, items))
            return cls(Neighbourhood(near, int(card["newest"])), float(card["weight"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StoreError("a teacher's neighbours cannot be read", where=f"{folder}: {error}") from None


def padded(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Histories, none empty, as (B, L) int64 codes padded with 0 on the right, and each one's last place (B,)."""
    ends = np.array([len(history) for history in histories]) - 1
    items = np.zeros((len(histories), int(ends.max()) + 1), np.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = history
    return items, ends


def _owners(histories: Histories, items: int) -> csr_array:
    """(U, N) float32: 1 where a user has an item among the newest of the training part."""
    lengths = np.diff(histories.offsets)
    users = np.repeat(np.arange(histories.users), lengths)
    position = np.arange(len(users)) - histories.offsets[users]
    end = histories.train_end[users]
    paired = (position < end) & (position >= end - NEWEST_OF_A_USER)
    owners, columns = np.divmod(np.unique(users[paired] * items + histories.items[paired] - 1), items)
    return csr_array((np.ones(len(owners), np.float32), (owners, columns)), shape=(histories.users, items))


def _blocks(pairs: np.ndarray) -> Iterator[slice]:
    """Rows in blocks of about _PAIRS_AT_ONCE pairs, for their running sum `pairs` (N,)."""
    first = 0
    while first < len(pairs):
        done = pairs[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(pairs, done + _PAIRS_AT_ONCE, side="right")))
        yield slice(first, last)
        first = last


def _nearest(row: np.ndarray, column: np.ndarray, similar: np.ndarray, shape: tuple[int, int], keep: int) -> csr_array:
    """(R, N): the `keep` largest of each row, ties by the lower column. `row` ascends."""
    some = similar >= _kth_largest(row, similar, shape[0], keep)[row]  # sorting them all would take ten times as long
    row, column, similar = row[some], column[some], similar[some]
    order = np.lexsort((column, -similar, row))
    row, column, similar = row[order], column[order], similar[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    near = place < keep
    return csr_array((similar[near].astype(np.float32), (row[near], column[near])), shape=shape)


def _kth_largest(row: np.ndarray, similar: np.ndarray, rows: int, keep: int) -> np.ndarray:
    """(R,): of each row that is longer than `keep` the `keep`-th largest, of others minus infinity. `row` ascends."""
    bounds, ends = np.full(rows, -np.inf), np.searchsorted(row, np.arange(rows + 1))
    for one in np.flatnonzero(np.diff(ends) > keep):
        bounds[one] = np.partition(similar[ends[one] : ends[one + 1]], -keep)[-keep]
    return bounds


def _next_of_the_same(items: np.ndarray) -> np.ndarray:
    """(B, L): where the same code stands next in its row, L where it does not."""
    rows, length = items.shape
    place = np.tile(np.arange(length), rows)
    owner = np.repeat(np.arange(rows), length)
    flat = items.ravel()
    order = np.lexsort((place, flat, owner))
    same = (flat[order][1:] == flat[order][:-1]) & (owner[order][1:] == owner[order][:-1])
    again = np.full(rows * length, length)
    again[order[:-1][same]] = place[order[1:][same]]
    return again.reshape(rows, length)
