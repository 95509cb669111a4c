"""The file of a published model, loaded: histories in, best items, all scores or states out. Needs no torch."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifact import MEND, MODEL
from recsys.errors import ArtifactError
from recsys.recommender import History
from recsys.silent_onnxruntime import onnxruntime

INPUTS = ["history", "length", "exclude", "k"]
OUTPUTS = ["codes", "scores", "all_scores", "state"]


class ServingGraph:
    """A loaded model.onnx. Histories are codes from 1 to N, none empty, none longer than the model reads."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        self._loaded = model, threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        try:
            # Of a path it holds no bytes: one copy of the file less in memory, two while it loads.
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as reason:  # onnxruntime's exceptions have no base class of their own
            raise ArtifactError(f"onnxruntime cannot load {MODEL}", mend=MEND) from reason
        _give_memory_back()
        found = [node.name for node in (*self.session.get_inputs(), *self.session.get_outputs())]
        if found not in (INPUTS + OUTPUTS, INPUTS + OUTPUTS[:-1]):  # before 29 November 2026 there was no state
            raise ArtifactError(f"{MODEL} reads and gives {', '.join(found)}, not what the runtime expects", mend=MEND)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is loaded there, from its file."""
        return ServingGraph, self._loaded

    def all_scores(self, histories: Sequence[History]) -> np.ndarray:
        """(B, N) float32."""
        return np.asarray(self.run(["all_scores"], histories, [], 0)[0])

    def best(
        self, histories: Sequence[History], exclude: Sequence[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (B, K) int64 and scores (B, K); `exclude` holds known codes, one array a history."""
        codes, scores = self.run(["codes", "scores"], histories, exclude, k)
        return codes, scores

    def require_states(self) -> None:
        """ArtifactError where the file does not give its states."""
        if len(self.session.get_outputs()) < len(OUTPUTS):
            raise ArtifactError(
                f"{MODEL} does not give its states: it was made before new items could be added", mend=MEND
            )

    def states(self, histories: Sequence[History]) -> np.ndarray:
        """(B, D) float32: an item's score is the product of its row with it."""
        return np.asarray(self.run(["state"], histories, [], 0)[0])

    def run(
        self, outputs: list[str], histories: Sequence[History], exclude: Sequence[np.ndarray], k: int
    ) -> list[np.ndarray]:
        """Some of OUTPUTS, by one pass; `exclude` and `k` are those of `best`, k = 0 asks for all scores."""
        feeds = {
            "history": _padded(histories, len(histories)),
            "length": np.array([len(history) for history in histories], np.int64),
            "exclude": _padded(exclude, len(histories)),
            "k": np.array([k], np.int64),
        }
        return list(self.session.run(outputs, feeds))


def _give_memory_back() -> None:
    """What loading needed and freed, the allocator keeps: as much again as the model of a large catalog holds. By glibc alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _padded(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """(count, longest) int64 with 0 on the right of shorter rows; no column without rows."""
    table = np.zeros((count, max((len(row) for row in rows), default=0)), np.int64)
    for into, row in zip(table, rows, strict=False):
        into[: len(row)] = row
    return table
