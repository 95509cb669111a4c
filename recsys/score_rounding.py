"""Rounds an item table to four bits so that its scores stay near, and not its rows alone.

A score is a state times a row, so what a row e is off by costs e' M e, with M the second moment of the states. Columns are
rounded in turn, those with the largest states first, and what one is off by is made good by those still to come, as far as M
lets them (GPTQ: Frantar, Ashkboos, Hoefler, Alistarh 2023, arXiv:2210.17323). The same table is read as input, where all
directions count alike: hence a share of the identity in M. Rows keep one scale and whole numbers: no byte more, nothing else
for the runtime to do.
"""

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from recsys.graph import Bits
from recsys.histories import Histories
from recsys.neighbourhood import padded
from recsys.quantize import CLIPS, LEVELS, scales_for
from recsys.student import Student

INPUT_SHARE = 1.0
"""Of the identity in M, in units of its mean eigenvalue: as input the table counts as much as in the scores."""

USERS = 8_000
"""Whose states are looked at, at most, evenly spaced: D x D numbers are learnt from them."""

_HISTORIES_A_BATCH = 512
_ROWS_A_BLOCK = 8_192  # it bounds the memory


def score_rounded(student: Student, histories: Histories, bits: Bits) -> Student:
    """The student with an item table that a file in `bits` bits holds as it is; its other weights are shared.

    Only four bits are rounded so: eight cost no score that can be measured. A table that is rounded already stays as it is.
    """
    if bits != 4:
        return student
    table = student.table.weight.detach().cpu().double().numpy()
    rounded = np.empty(table.shape, np.float32)
    moment = second_moment(student, histories)
    for first in range(0, len(table), _ROWS_A_BLOCK):
        rows = slice(first, first + _ROWS_A_BLOCK)
        rounded[rows] = nearest_in_scores(table[rows], moment)
    weight = nn.Parameter(torch.from_numpy(rounded).to(student.table.weight), requires_grad=False)
    shared = {id(each): each for each in student.parameters()}
    return deepcopy(student, {**shared, id(student.table.weight): weight})


def second_moment(student: Student, histories: Histories) -> np.ndarray:
    """(D, D) float64: the mean of s s' over the states s after each training event of some users, newest ones of each."""
    users = np.linspace(0, histories.users - 1, min(USERS, histories.users)).astype(np.int64)
    known = [histories.until(user, histories.train_end[user])[-student.shape.length :] for user in np.unique(users)]
    known = [history for history in known if len(history)]
    width = student.shape.width
    moment, seen = np.zeros((width, width)), 0
    table = student.item_table().detach()
    student.eval()
    with torch.inference_mode():
        for first in range(0, len(known), _HISTORIES_A_BATCH):
            codes, _ = padded(known[first : first + _HISTORIES_A_BATCH])
            items = torch.from_numpy(codes).to(table.device)
            states = student.states(items, table)[items > 0].double().cpu().numpy()
            moment += states.T @ states
            seen += len(states)
    return moment / max(seen, 1)


def nearest_in_scores(table: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """(N, D) float64 rows and (D, D) -> float32 rows of whole numbers up to 7 and one scale each, the largest of each a 7.

    Of the scales that `quantize.CLIPS` allow a row has the one with the smallest error in its scores. Zeros stay zero.
    """
    width = table.shape[1]
    weighted = moment + INPUT_SHARE * (np.trace(moment) / width or 1.0) * np.eye(width)
    order = np.argsort(-np.diag(weighted), kind="stable")
    weighted, rows = weighted[np.ix_(order, order)], table[:, order]
    makes_good = np.linalg.cholesky(np.linalg.inv(weighted)).T  # row j: how the columns after j follow what j is off by
    best, least = np.zeros(rows.shape), np.full(len(rows), np.inf)
    for clip in CLIPS:
        found = _in_turn(rows, clip, makes_good)
        off = found - rows
        error = np.einsum("nd,de,ne->n", off, weighted, off)
        best[error < least] = found[error < least]
        least = np.minimum(error, least)
    back = np.empty(rows.shape, np.float32)
    back[:, order] = best
    return back


def _in_turn(rows: np.ndarray, clip: float, makes_good: np.ndarray) -> np.ndarray:
    """Rows rounded column by column to whole numbers of a scale that stands for a share of their largest value."""
    levels, size = LEVELS[4], np.abs(rows)
    largest, where = size.max(axis=1), size.argmax(axis=1)
    scale = scales_for(torch.from_numpy(clip * largest), levels).double().numpy()
    left, found = rows.copy(), np.empty(rows.shape)
    for column in range(rows.shape[1]):
        whole = np.clip(np.rint(left[:, column] / scale), -levels, levels)
        # The largest is a whole 7 of the scale, by which the file's own rounding finds that scale again.
        whole = np.where(where == column, np.sign(rows[:, column]) * levels, whole)
        found[:, column] = np.where(largest > 0, whole * scale, 0.0)
        off = (left[:, column] - found[:, column]) / makes_good[column, column]
        left[:, column + 1 :] -= off[:, None] * makes_good[column, column + 1 :]
    return found
