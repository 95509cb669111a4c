"""The rows of soft labels: their columns, and what a teacher says at the positions of windows, part by part."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.errors import TrainingError
from recsys.histories import Histories
from recsys.neighbourhood import Opinion
from recsys.sequence_model import SequenceModel
from recsys.spread import Shared, in_order
from recsys.teacher_scores import BATCH_TOKENS, Reading, TeacherHead, best_items, readings
from recsys.windows import Windows


def label_schema(top_k: int, width: int = 0) -> pa.Schema:
    """The columns of `labels.parquet`, one row a position: what it sees, and the K best items, best first.

    With a `width` D the state, too: times the teacher's item table it is the model's logits.
    """
    state = [pa.field("state", pa.list_(pa.float16(), width), nullable=False)] if width else []
    return pa.schema(
        [
            pa.field("sight", pa.uint64(), nullable=False),  # Windows.sight_hashes
            pa.field("items", pa.list_(pa.int32(), top_k), nullable=False),  # codes, equal logits by code
            pa.field("logp", pa.list_(pa.float16(), top_k), nullable=False),  # over the teacher's catalog, nats
            pa.field("lse", pa.float32(), nullable=False),  # log-sum-exp of all logits: logit = logp + lse
            *state,
        ]
    )


@dataclass(frozen=True)
class LabelWork:
    """What labelling is made from; a part of it is a batch of windows."""

    teacher: SequenceModel
    opinion: Opinion | None
    histories: Histories
    windows: Windows
    sight: np.ndarray  # (E,) uint64, flat
    wanted: np.ndarray  # (E,) bool, flat
    top_k: int
    states: bool

    @cached_property
    def head(self) -> TeacherHead:
        """The same for all parts."""
        return TeacherHead.of(self.teacher, self.opinion)

    @property
    def width(self) -> int:
        """Of a state that is kept; 0 where none is."""
        return self.head.table.shape[1] if self.states else 0

    def part(self, windows: np.ndarray) -> list[pa.Table]:
        """The rows of some windows (M,), which are read together."""
        read = readings(self.teacher, self.head, self.histories, self.windows, self.wanted, [windows])
        return [_rows(reading, self.sight[reading.at], self.top_k, self.width) for reading in read]


def labelled(work: Shared[LabelWork], executor: Executor) -> Iterator[pa.Table]:
    """All rows, in one order whoever made them; the tables are as small as they were made."""
    batches = ((None, numbers) for numbers in work.value.windows.batches(BATCH_TOKENS, None))
    for _, tables in in_order(executor, partial(_part, work), batches):
        yield from tables


def _part(work: Shared[LabelWork], windows: np.ndarray) -> list[pa.Table]:
    return work.value.part(windows)


def _rows(reading: Reading, sight: np.ndarray, k: int, width: int) -> pa.Table:
    """The rows of P positions, each with its state where that has a width."""
    lse = torch.logsumexp(reading.logits, 1)
    if not torch.isfinite(lse).all():
        raise TrainingError("the teacher's scores are not numbers", mend="Train it at a lower rate.")
    codes, best = best_items(reading.logits, k)
    columns = [pa.array(sight), _lists(codes.int()), _lists((best - lse[:, None]).half()), pa.array(lse.cpu().numpy())]
    if width:
        state = reading.states.half()
        if not torch.isfinite(state).all():
            raise TrainingError("the teacher's states do not fit half precision", mend="Set labels.states to false.")
        columns.append(_lists(state))
    schema = label_schema(k, width)
    return pa.Table.from_arrays([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _lists(matrix: Tensor) -> pa.FixedSizeListArray:
    """A column of the rows of (P, K)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.cpu().numpy().ravel()), matrix.shape[1])
