"""Where a training run stands, in one file: tensors as safetensors, the rest as JSON inside it. Never pickle."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_log = logging.getLogger(__name__)
_NOTES = "notes"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on. `notes` are plain JSON values; floats survive to the bit, as JSON writes them whole."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write under a temporary name, then rename: whoever reads finds this checkpoint or the one before it.

        One file, so that tensors and notes cannot belong to different epochs. It is not flushed to the disk: after a
        power cut the digest tells a torn file, and `load` then says there is none.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        noted = json.dumps({"notes": self.notes, "sha256": _digest(tensors, self.notes)}, sort_keys=True)
        tensors[_NOTES] = torch.from_numpy(np.frombuffer(noted.encode(), np.uint8).copy())
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        save_file(tensors, draft)
        os.replace(draft, path)


def load(path: Path, made_from: str) -> Checkpoint | None:
    """The checkpoint at `path` if it is whole and its note `made_from` is this run's; else None: the run starts anew."""
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        noted = json.loads(tensors.pop(_NOTES).numpy().tobytes())
        notes, whole = noted["notes"], noted["sha256"] == _digest(tensors, noted["notes"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        _log.warning("the checkpoint %s is damaged and is not used; training starts anew", path)
        return None
    if notes["made_from"] != made_from:
        _log.warning("the checkpoint %s is of another run and is not used; training starts anew", path)
        return None
    return Checkpoint(tensors, notes)


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> str:
    """sha256 over names, sizes, values and notes."""
    seen = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        seen.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        seen.update(np.ascontiguousarray(tensor.numpy()).data)
    return seen.hexdigest()
