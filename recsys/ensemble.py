"""Several small teachers as one: the mean of their logits, labelled once and blended with neighbours once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.config import TeacherConfig
from recsys.decoder import DecoderShape
from recsys.errors import StoreError
from recsys.histories import Cases, Histories
from recsys.teacher import Teacher, fit_teacher
from recsys.training import Epoch, device, ignore, never


class Ensemble(nn.Module):
    """M teachers side by side: states and tables joined, so that one product is the sum of theirs.

    score = 1/M sum_m state_m . row_m: joined states (B, L, M D) times joined rows (N + 1, M D), each divided by M.
    """

    KIND: ClassVar = "ensemble"

    def __init__(self, members: Sequence[Teacher]) -> None:
        """All read the same length and know the same items; they may differ in all else."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.teachers = tuple(members)
        self.widths = [member.shape.width for member in members]

    @property
    def items(self) -> int:
        """N, how many items it knows: a prefix of later catalogs."""
        return self.teachers[0].items

    @property
    def length(self) -> int:
        """L, the most items it reads."""
        return self.teachers[0].length

    def item_table(self) -> Tensor:
        """(N + 1, M D); row 0 is the padding."""
        return torch.cat([member.item_table() for member in self.teachers], dim=1) / len(self.teachers)

    def states(self, items: Tensor, table: Tensor) -> Tensor:
        """(B, L) int64 codes -> (B, L, M D)."""
        tables = torch.split(table * len(self.teachers), self.widths, dim=1)
        states = [member.states(items, own) for member, own in zip(self.teachers, tables, strict=True)]
        return torch.cat(states, dim=2)

    def save(self, folder: Path) -> None:
        """Write teacher.safetensors, the members' folded decoders by number, and teacher.json, their shapes."""
        tensors = {
            f"{number}.{name}": tensor.cpu().contiguous()
            for number, member in enumerate(self.teachers)
            for name, tensor in member.folded().state_dict().items()
        }
        save_file(tensors, folder / "teacher.safetensors")
        described = {"kind": self.KIND, "shapes": [member.shape.as_json() for member in self.teachers]}
        (folder / "teacher.json").write_text(json.dumps(described, sort_keys=True, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote: the same scores to the bit. Raises StoreError."""
        try:
            described = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "teacher.safetensors")
            members = []
            for number, shape in enumerate(described["shapes"]):
                member = Teacher(DecoderShape.from_json(shape), None, dropout=0)
                own = f"{number}."
                member.decoder.load_state_dict({n[len(own) :]: t for n, t in tensors.items() if n.startswith(own)})
                members.append(member)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise StoreError("a teacher cannot be read", where=f"{folder}: {error}") from None
        return cls(members).to(device()).eval()


def member_config(config: TeacherConfig, number: int) -> TeacherConfig:
    """Members differ by their seed and, every second one, by a block more: those that err otherwise add most."""
    return config.model_copy(update={"seed": config.seed + number, "blocks": config.blocks + number % 2})


def fit_ensemble(
    histories: Histories,
    cases: Cases,
    items: int,
    vectors: np.ndarray | None,
    config: TeacherConfig,
    *,
    length: int,
    redraw_baskets: bool = True,
    on_epoch: Callable[[Epoch], None] = ignore,
    enough: Callable[[], bool] = never,
    checkpoint: Path,
    fit: Callable[..., tuple[Teacher, list[Epoch]]] = fit_teacher,
) -> tuple[Teacher | Ensemble, list[Epoch]]:
    """Train `config.members` teachers one after another by `fit`, as `fit_teacher`; epochs are numbered through.

    One that is trained is kept beside `checkpoint`, so that a run which was killed does not train it again. `enough`
    is asked before each but the first, too: what there is by then is the ensemble.
    """
    members: list[Teacher] = []
    curve: list[Epoch] = []
    for number in range(config.members):
        if members and enough():
            break
        before = len(curve)

        def hear(epoch: Epoch, before: int = before) -> None:
            curve.append(replace(epoch, number=before + epoch.number))
            on_epoch(curve[-1])

        done = checkpoint.with_name(f"{checkpoint.name}-{number}-done")
        if (done / "curve.json").exists():
            members.append(Teacher.load(done))
            for epoch in json.loads((done / "curve.json").read_text()):
                hear(Epoch(**epoch))
            continue
        member, epochs = fit(
            histories, cases, items, vectors, member_config(config, number), length=length,
            redraw_baskets=redraw_baskets, on_epoch=hear, enough=enough,
            checkpoint=checkpoint.with_name(f"{checkpoint.name}-{number}"),
        )  # fmt: skip
        if len(epochs) == config.epochs:
            done.mkdir(parents=True, exist_ok=True)
            member.save(done)
            (done / "curve.json").write_text(json.dumps([vars(epoch) for epoch in epochs]))
            member = Teacher.load(done)  # as after a kill, to the bit
        members.append(member)
    return (Ensemble(members) if len(members) > 1 else members[0]), curve
