"""The teacher's distribution at every training position: K items with log-probabilities, and the log-sum-exp.

A position is known by a hash of what it sees (`Windows.sight_hashes`), so a label made one night is found
again the next: a night writes one segment with the positions no earlier segment has. One segment is a folder
with `labels.parquet` and `segment.json`, written in this order. Temperature is 1. Labels may keep the teacher's state
beside the items: with the teacher's item table it is every logit, at any temperature.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recsys.config import LabelsConfig
from recsys.errors import StoreError
from recsys.hidden_loss import HiddenTargets
from recsys.histories import Histories
from recsys.label_rows import LabelWork, label_schema, labelled
from recsys.neighbourhood import Opinion
from recsys.paged import paged
from recsys.sequence_model import SequenceModel
from recsys.spread import HERE, Shared
from recsys.teacher_scores import TeacherHead
from recsys.training import Batch
from recsys.windows import Windows

LABELS, SEGMENT = "labels.parquet", "segment.json"

# The bytes of the same place side by side: high bytes are much alike, so a position takes an eighth less.
_ENCODING = {f"{column}.list.element": "BYTE_STREAM_SPLIT" for column in ("items", "logp", "state")}
_ROWS_A_GROUP = 1 << 15


@dataclass(frozen=True)
class Labelling:
    """What labels must share to be joined: whose they are, over which items, how many are kept, and what beside."""

    teacher: str  # digest of the teacher
    catalog: str  # sha256 of the first `items` item ids
    items: int  # V, the items the teacher knows: a prefix of the catalog
    top_k: int  # K, at most V
    states: bool = False  # whether the teacher's states are kept
    teacher_bits: Literal[8, 32] = 32  # of the weights it labelled with

    @classmethod
    def of(cls, teacher: str, items: int, item_ids: Sequence[str], config: LabelsConfig) -> Self:
        """The labelling by the teacher with digest `teacher`, which knows the first `items` of `item_ids`."""
        catalog, top_k = prefix_digest(item_ids[:items]), min(config.top_k, items)
        return cls(teacher, catalog, items, top_k, config.states, config.teacher_bits)

    def as_json(self) -> dict[str, Any]:
        """Plain values, what is as ever left out: labels of before there was a choice read the same."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if f.default is MISSING or values[f.name] != f.default}


def prefix_digest(item_ids: Sequence[str]) -> str:
    """sha256 of item ids in order, each behind its length in bytes, so that no two lists look alike."""
    seen = hashlib.sha256()
    for item_id in item_ids:
        text = item_id.encode()
        seen.update(len(text).to_bytes(8, "little") + text)
    return seen.hexdigest()


@dataclass(frozen=True)
class Positions:
    """The P training positions of a dataset, for a model that reads `length` items, and what each sees."""

    histories: Histories
    windows: Windows
    sight: np.ndarray  # (P,) uint64, window after window
    at: np.ndarray  # (P,) int64, flat input positions in the Histories

    @classmethod
    def of(cls, histories: Histories, length: int) -> Self:
        """All positions that are followed by a hard label in the training part."""
        windows = Windows.of_training(histories, length)
        return cls(histories, windows, windows.sight_hashes(histories.items), windows.owned_positions())

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values (P,) of the positions by flat position (E,), 0 where there is none."""
        flat = np.zeros(len(self.histories.items), values.dtype)
        flat[self.at] = values
        return flat


@dataclass(frozen=True)
class Segment:
    """What one segment holds."""

    labelling: Labelling
    written: int  # rows: positions labelled
    forward: int  # positions the teacher read to label them

    def save(self, folder: Path) -> None:
        """Write `segment.json`; a folder without it is no segment."""
        value = {"labelling": self.labelling.as_json(), "written": self.written, "forward": self.forward}
        draft = folder / f"{SEGMENT}.tmp"
        draft.write_text(json.dumps(value, sort_keys=True, indent=1, allow_nan=False))
        os.replace(draft, folder / SEGMENT)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `segment.json`. Raises StoreError when it is not there or not whole."""
        try:
            value = json.loads((folder / SEGMENT).read_text())
            return cls(Labelling(**value["labelling"]), value["written"], value["forward"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError("a segment of soft labels cannot be read", where=f"{folder / SEGMENT}: {error}") from None


def ignore(done: int, total: int) -> None:
    """Do nothing with the progress."""


def missing(sight: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(P,) bool: what is to be labelled, the first of each `sight` (P,) not among `known`; both uint64."""
    first = np.zeros(len(sight), bool)
    first[np.unique(sight, return_index=True)[1]] = True
    return first & ~np.isin(sight, known)


def write_segment(
    teacher: SequenceModel,
    labelling: Labelling,
    positions: Positions,
    known: Sequence[Path],
    out: Path,
    on_progress: Callable[[int, int], None] = ignore,
    *,
    opinion: Opinion | None = None,
    executor: Executor = HERE,
) -> Segment:
    """Label the positions that no segment of `known` has, into the folder `out`, a row group at a time.

    The teacher reads whole windows, but only missing positions are scored and written. An item the teacher does not
    know yet is read as row 0 of its table, no item, and keeps its place in the history. With an `opinion` it is the
    blend that is written, and beside it the model's own state where states are kept; it hears what a position
    sees and no more, so a label is still found by its sight. The reading is the executor's work. `on_progress` hears how many positions are written, of
    how many. Raises StoreError when a segment of `known` is of another labelling, TrainingError when the teacher's
    scores are not numbers.
    """
    earlier = [sight for folder in known for sight in _known_sight(folder, labelling)]
    wanted = missing(positions.sight, np.concatenate(earlier) if earlier else np.empty(0, np.uint64))
    chosen = _windows_of(positions.windows, wanted)
    total, written = int(wanted.sum()), 0
    work = LabelWork(
        teacher, opinion, positions.histories, chosen, positions.spread(positions.sight), positions.spread(wanted),
        labelling.top_k, labelling.states,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    draft = out / f"{LABELS}.tmp"
    with (
        pq.ParquetWriter(
            draft,
            label_schema(labelling.top_k, work.width),
            compression="zstd",
            write_page_checksum=True,
            use_dictionary=False,
            column_encoding=_ENCODING,
        ) as writer,
        Shared(work) as shared,
    ):
        for group in _groups(labelled(shared, executor)):
            writer.write_table(group, row_group_size=_ROWS_A_GROUP)
            written += len(group)
            on_progress(written, total)
    os.replace(draft, out / LABELS)
    segment = Segment(labelling, written, int((chosen.stop - chosen.start).sum()))
    segment.save(out)
    return segment


@dataclass(frozen=True)
class KeptStates:
    """The teacher's states, row for row with the labels, and the head that makes scores of them."""

    states: np.ndarray  # (R, D) float16
    head: TeacherHead


@dataclass(frozen=True)
class SoftLabels:
    """The labels of a dataset's training positions, as far as memory goes: R rows, one for each thing that is seen."""

    labelling: Labelling
    items: np.ndarray  # (R, K) int32 codes, best first
    logp: np.ndarray  # (R, K) float16
    lse: np.ndarray  # (R,) float32
    rows: np.ndarray  # (E,) int32: the row of a flat input position, -1 where none is owned
    states: KeptStates | None = None

    @classmethod
    def open(
        cls, segments: Sequence[Path], positions: Positions, labelling: Labelling, head: TeacherHead | None = None
    ) -> Self:
        """Join the segments to the positions by what is seen; rows nobody needs are passed over.

        With the `head` of the teacher that labelled the states come along, where they were kept. Raises StoreError when
        a segment is of another labelling or damaged, or when a position has no label.
        """
        sights, row = np.unique(positions.sight, return_inverse=True)
        rows = np.full(len(positions.histories.items), -1, np.int32)
        rows[positions.at] = row
        items = paged((len(sights), labelling.top_k), np.int32)
        logp = paged((len(sights), labelling.top_k), np.float16)
        lse = np.full(len(sights), np.nan, np.float32)
        with_states = head is not None and labelling.states
        state = paged((len(sights), head.table.shape[1] if head is not None and with_states else 0), np.float16)
        columns = ["sight", "items", "logp", "lse", *(["state"] if with_states else [])]
        for folder in segments:
            for part in _parts(folder, labelling, columns):
                sight = part["sight"].to_numpy()
                at = np.minimum(np.searchsorted(sights, sight), len(sights) - 1)
                hit = sights[at] == sight
                items[at[hit]] = _matrix(part["items"])[hit]
                logp[at[hit]] = _matrix(part["logp"])[hit]
                lse[at[hit]] = part["lse"].to_numpy()[hit]
                if with_states:
                    state[at[hit]] = _matrix(part["state"])[hit]
        _require_all(np.isnan(lse)[row], positions)
        kept = KeptStates(state, head) if head is not None and with_states else None
        return cls(labelling, items, logp, lse, rows, kept)

    def at(self, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Codes (P, k) int32 and log-probabilities (P, k) float16 of the k best, for flat positions (P,)."""
        row = self._row(positions)
        items, logp = (torch.from_numpy(column[:, :k][row]) for column in (self.items, self.logp))
        return items.to(positions.device), logp.to(positions.device)

    def hidden_at(self, batch: Batch, k: int, temperature: float) -> HiddenTargets:
        """The teacher's states at the positions of a batch, and its logits of the k best. Only where states are kept.

        What the neighbours say is heard again from the items that the batch reads: what was read to label.
        """
        assert self.states is not None, "these labels keep no states"
        head, row = self.states.head, self._row(batch.positions)
        window, end = torch.nonzero(batch.owned).unbind(1)
        listed = self.logp[:, :k][row].astype(np.float32) + self.lse[row, None]
        states, listed_logits = (
            torch.from_numpy(column).to(batch.positions.device)
            for column in (self.states.states[row].astype(np.float32), listed)
        )
        return HiddenTargets(states, head, head.heard(batch.items, window, end), listed_logits, temperature)

    def _row(self, positions: Tensor) -> np.ndarray:
        row: np.ndarray = self.rows[positions.cpu().numpy()]
        assert row.min(initial=0) >= 0, "a position that is not a training position has no soft label"
        return row


def _groups(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in row groups."""
    held: list[pa.Table] = []
    rows = 0
    for part in parts:
        held.append(part)
        rows += len(part)
        if rows >= _ROWS_A_GROUP:
            yield pa.concat_tables(held).combine_chunks()
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _windows_of(windows: Windows, wanted: np.ndarray) -> Windows:
    """The windows that own a wanted position, for `wanted` (P,) bool."""
    owner = np.repeat(np.arange(len(windows)), windows.stop - windows.own)
    chosen = np.unique(owner[wanted])
    return Windows(windows.start[chosen], windows.own[chosen], windows.stop[chosen])


def _known_sight(folder: Path, labelling: Labelling) -> Iterator[np.ndarray]:
    for part in _parts(folder, labelling, ["sight"]):
        yield part["sight"].to_numpy()


def _parts(folder: Path, labelling: Labelling, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a segment, checked, a bounded number of rows at a time."""
    found = Segment.load(folder).labelling
    for field in fields(Labelling):
        theirs, ours = getattr(found, field.name), getattr(labelling, field.name)
        if theirs != ours:
            raise StoreError(
                f"soft labels of another labelling: {field.name} is {theirs}, {ours} was expected",
                where=str(folder),
                mend="Label with the present teacher again.",
            )
    try:
        with pq.ParquetFile(folder / LABELS, page_checksum_verification=True) as file:
            yield from file.iter_batches(batch_size=_ROWS_A_GROUP, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise StoreError("a segment of soft labels is damaged", where=f"{folder / LABELS}: {error}") from None


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """(rows, K) of a column of lists."""
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _require_all(absent: np.ndarray, positions: Positions) -> None:
    """Raise StoreError naming the first of the positions (P,) that has no label."""
    if not absent.any():
        return
    at = positions.at[np.flatnonzero(absent)[0]]
    user = np.searchsorted(positions.histories.offsets, at, side="right") - 1
    raise StoreError(
        f"{absent.sum()} of {len(absent)} training positions have no soft label",
        where=f"the first is event {at - positions.histories.offsets[user] + 1} of user {user + 1}",
        mend="Write a segment for this dataset first.",
    )
