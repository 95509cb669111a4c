"""The neighbours' part of the serving graph: what recsys.neighbourhood.Opinion adds to a decoder's scores, in ONNX."""

import numpy as np
from onnx import TensorProto

from recsys.graph_builder import GraphBuilder
from recsys.neighbourhood import FLOOR, Opinion, RoundedLists

VECTOR = 16
"""Floats in the widest vector register of a CPU."""


def with_neighbours(graph: GraphBuilder, opinion: Opinion, scores: str, unit: str | None) -> str:
    """(B, rows) (1 - w) z -> (B, rows) (1 - w) z + w log(1 + s / FLOOR), s the similarity the newest items lend.

    Where scores are in units (B, 1) of each user, what is added is, too.

    Only the columns of neighbours are touched, at most `newest` x K of them, and in the scores themselves, which
    onnxruntime writes in place where nobody reads them later: a large catalog costs neither a copy of its scores nor a
    logarithm. A missing neighbour is column 0, the padding, with similarity 0.
    """
    op, ints = graph.op, graph.ints
    lists = opinion.neighbourhood.rounded()
    asked = _asked(graph, opinion.neighbourhood.newest)
    items, levels, of_row = _unfolded(graph, lists)
    columns = op("Gather", items, asked)  # (B, L, K)
    levels = op("Cast", op("Gather", levels, asked), to=TensorProto.FLOAT)
    scales = op("Gather", of_row, asked)
    similar = op("Mul", levels, op("Unsqueeze", scales, ints(-1)))
    columns = op("Cast", op("Reshape", columns, ints(0, -1)), to=TensorProto.INT64)
    own = op("GatherElements", scores, columns, axis=1)
    # The zeros are made of `own` so that it is read before.
    emptied = op("ScatterElements", scores, columns, op("Mul", own, graph.number(0.0)), axis=1)
    heard = op("ScatterElements", emptied, columns, op("Reshape", similar, ints(0, -1)), axis=1, reduction="add")
    # One column may stand several times among them: each time with the same sum, so that the last one written is right.
    said = op("GatherElements", heard, columns, axis=1)
    evidence = _log(graph, op("Add", op("Div", said, graph.number(FLOOR)), graph.number(1.0)), lists.items.shape[1])
    weight = graph.number(np.float32(opinion.weight))
    added = op("Mul", evidence, op("Div", weight, unit) if unit else weight)
    return op("ScatterElements", heard, columns, op("Add", own, added), axis=1)


def _unfolded(graph: GraphBuilder, lists: RoundedLists) -> tuple[str, str, str]:
    """Items (rows, K), levels (rows, K) and scales (rows,), of which the file holds only those that are there: most items
    of a sparse shop have fewer than K neighbours, and many have none. onnxruntime computes what follows from constants
    alone once, when it loads the file.
    """
    op, there = graph.op, lists.items > 0
    counts = op("Cast", _counts(graph, there.sum(1).astype(np.uint8)), to=TensorProto.INT32)
    places = graph.weight("neighbours.places", np.arange(there.shape[1], dtype=np.int32))
    begins = op("Unsqueeze", op("CumSum", counts, graph.number(0, np.int64), exclusive=1), graph.ints(1))
    taken = op("Less", places, op("Unsqueeze", counts, graph.ints(1)))
    at = op("Where", taken, op("Add", begins, places), graph.number(there.sum(), np.int32))  # behind all: none

    def unfolded(name: str, listed: np.ndarray) -> str:
        folded = np.append(listed[there], np.zeros(1, listed.dtype))
        return op("Gather", graph.weight(f"neighbours.{name}", folded), at)

    some = there.any(1)
    speaks = op("Cast", op("Cast", counts, to=TensorProto.BOOL), to=TensorProto.INT32)
    rank = op("Mul", speaks, op("CumSum", speaks, graph.number(0, np.int64)))  # from 1, 0 where there is none
    scales = graph.scales("neighbours.scales", np.append(np.ones(1, np.float32), lists.scales[some]))
    return unfolded("items", lists.items), unfolded("levels", lists.levels), op("Gather", scales, rank)


def _counts(graph: GraphBuilder, counts: np.ndarray) -> str:
    """(rows,) uint8; two to a byte where no item has more than 15."""
    if counts.max() > 15:
        return graph.weight("neighbours.counts", counts)
    return graph.op("Reshape", graph.fours("neighbours.counts", counts[None]), graph.ints(-1))


def _log(graph: GraphBuilder, x: str, places: int) -> str:
    """The logarithm of (B, L x `places`), the same to the bit whoever else is in the batch.

    A vector instruction rounds otherwise than what is left over at the end of a buffer is rounded, and where that end
    falls depends on the batch. So each position is filled up to whole vectors, and nothing is left over.
    """
    op, ints = graph.op, graph.ints
    by_position = op("Reshape", x, ints(0, -1, places))
    filled = op("Pad", by_position, ints(0, 0, 0, 0, 0, -places % VECTOR), graph.number(1.0))
    return op("Reshape", op("Slice", op("Log", filled), ints(0), ints(places), ints(2)), ints(0, -1))


def _asked(graph: GraphBuilder, newest: int) -> str:
    """(B, L): the codes among the `newest` real ones of each history, each once, at its last place; 0 elsewhere."""
    op, ints, number = graph.op, graph.ints, graph.number
    length = op("Unsqueeze", "length", ints(1))
    width = op("Squeeze", op("Shape", "history", start=1, end=2))
    steps = op("Range", number(0, np.int64), width, number(1, np.int64))
    oldest = op("Sub", length, number(newest, np.int64))
    real = op("And", op("Less", steps, length), op("GreaterOrEqual", steps, oldest))
    same = op("Equal", op("Unsqueeze", "history", ints(2)), op("Unsqueeze", "history", ints(1)))  # (B, L, L)
    last = op("ArgMax", op("Cast", same, to=TensorProto.INT32), axis=2, keepdims=0, select_last_index=1)
    once = op("Equal", last, steps)
    return op("Where", op("And", real, once), "history", number(0, np.int64))
