"""The small model that is distilled and served: kept as data, grown with the catalog."""

import json
import os
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.decoder import Decoder, DecoderShape
from recsys.errors import StoreError
from recsys.training import seeded

WEIGHTS, CARD = "student.safetensors", "student.json"
_DROPOUT = 0.2
"""Of students from before each kept its own."""


class Student(Decoder):
    """A decoder that can be written and read back, with the dropout that whoever trains it further goes on with."""

    @classmethod
    def untrained(cls, shape: DecoderShape, dropout: float, seed: int) -> Self:
        """Initial weights drawn from `seed` alone; torch's own generator is left as it was."""
        with seeded(torch.device("cpu"), seed):
            return cls(shape, dropout)

    def save(self, folder: Path) -> None:
        """Write `student.safetensors`, then `student.json`; a folder without the latter holds no student."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        described = {"kind": "student", "shape": self.shape.as_json(), "dropout": self.dropout.share}
        card = json.dumps(described, sort_keys=True, indent=1)
        save_file(tensors, folder / f"{WEIGHTS}.tmp")
        os.replace(folder / f"{WEIGHTS}.tmp", folder / WEIGHTS)
        (folder / f"{CARD}.tmp").write_text(card)
        os.replace(folder / f"{CARD}.tmp", folder / CARD)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The student in `folder`, ready to score. Raises StoreError when it is not there or not whole."""
        try:
            described = json.loads((folder / CARD).read_text())
            student = cls(DecoderShape.from_json(described["shape"]), described.get("dropout", _DROPOUT))
            student.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise StoreError("a student cannot be read", where=f"{folder}: {error}") from None
        student.eval()
        return student


def grow(student: Student, items: int, rows: Tensor | None = None) -> Student:
    """A copy of the student that knows `items` items. What it knew is untouched, to the bit.

    New items get the `rows` (new, D). Without, a row is zero: it scores 0 and adds nothing to a history until trained.
    """
    shape = DecoderShape.from_json({**student.shape.as_json(), "items": items})
    assert items >= student.shape.items, "codes are append-only, a catalog never shrinks"
    grown = type(student)(shape, student.dropout.share)
    weights = dict(student.state_dict())
    table = weights["table.weight"]
    new = table.new_zeros(items - student.shape.items, shape.width) if rows is None else rows.to(table)
    weights["table.weight"] = torch.cat([table, new])
    grown.load_state_dict(weights)
    grown.eval()
    return grown
