"""The small teacher: a causal decoder over item vectors, each an id's own vector plus what a language model read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.config import TeacherConfig
from recsys.decoder import Decoder, DecoderShape
from recsys.errors import StoreError
from recsys.histories import Cases, Histories
from recsys.ranks import ALONE, Ranks
from recsys.training import Epoch, HardLabels, Schedule, device, fit, ignore, never, ranking_validator, seeded

BATCH_TOKENS = 2048  # a teacher gains more from many steps than from large ones


class TextTable(nn.Module):
    """Adds W x to an item's own vector, x its whitened text vector. An item without text has x = 0."""

    vectors: Tensor

    def __init__(self, vectors: np.ndarray, width: int) -> None:
        """`vectors` (N, d), components of variance 1. W x starts with the variance of an id's vector, 1 / width."""
        super().__init__()
        padded = np.concatenate([np.zeros_like(vectors[:1]), vectors]).astype(np.float32)
        self.register_buffer("vectors", torch.from_numpy(padded), persistent=False)
        self.projection = nn.Linear(vectors.shape[1], width, bias=False)
        nn.init.normal_(self.projection.weight, std=(width * vectors.shape[1]) ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """(N + 1, D) -> (N + 1, D)."""
        projected: Tensor = self.projection(self.vectors)
        return ids + projected


class Teacher(nn.Module):
    """A decoder whose item vectors are id + W x text, the same sum on the input and the output side."""

    KIND: ClassVar = "decoder"

    def __init__(self, shape: DecoderShape, vectors: np.ndarray | None, dropout: float) -> None:
        """`vectors` (N, d) are the whitened texts; None where no item has one."""
        super().__init__()
        self.decoder = Decoder(shape, dropout)
        self.text = nn.Identity() if vectors is None else TextTable(vectors, shape.width)

    @property
    def shape(self) -> DecoderShape:
        """The decoder's."""
        return self.decoder.shape

    @property
    def table(self) -> nn.Embedding:
        """The items' own vectors."""
        return self.decoder.table

    @property
    def items(self) -> int:
        """N, how many items it knows: a prefix of later catalogs."""
        return self.shape.items

    @property
    def length(self) -> int:
        """L, the most items it reads."""
        return self.shape.length

    def item_table(self) -> Tensor:
        """(N + 1, D): id + W x text; row 0 is the padding."""
        table: Tensor = self.text(self.decoder.item_table())
        return table

    def states(self, items: Tensor, table: Tensor) -> Tensor:
        """(B, L) int64 codes -> (B, L, D)."""
        return self.decoder.states(items, table)

    def folded(self) -> Decoder:
        """A plain decoder that scores alike: its table holds the sums. Text costs nothing when scoring."""
        decoder = Decoder(self.shape, dropout=0)
        decoder.load_state_dict({**self.decoder.state_dict(), "table.weight": self.item_table().detach()})
        return decoder.eval()

    def save(self, folder: Path) -> None:
        """Write teacher.safetensors, the folded decoder, and teacher.json, its shape, into an existing folder."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.folded().state_dict().items()}
        save_file(tensors, folder / "teacher.safetensors")
        described = {"kind": self.KIND, "shape": self.shape.as_json()}
        (folder / "teacher.json").write_text(
            json.dumps(described, sort_keys=True, indent=1, allow_nan=False), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote: the same scores to the bit, the text already in the table. Raises StoreError."""
        try:
            described = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
            teacher = cls(DecoderShape.from_json(described["shape"]), None, dropout=0)
            teacher.decoder.load_state_dict(load_file(folder / "teacher.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise StoreError("a teacher cannot be read", where=f"{folder}: {error}") from None
        return teacher.to(device()).eval()


def fit_teacher(
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
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Teacher, list[Epoch]]:
    """Train a teacher of `items` items that reads `length` of them; the best epoch on the validation `cases` is kept.

    `on_epoch`, `enough`, `checkpoint` and `ranks` are those of `fit`.
    `vectors` (N, d) are the whitened texts, None without any. With `redraw_baskets` the order inside a basket is drawn
    anew each epoch.
    """
    on = device()
    with seeded(on, config.seed):
        shape = DecoderShape.of(items, config.width, config.blocks, length)
        teacher = Teacher(shape, vectors, config.dropout).to(on)
    schedule = Schedule(config.epochs, config.learning_rate, config.seed, BATCH_TOKENS, redraw_baskets=redraw_baskets)
    validate = ranking_validator(teacher, cases)
    epochs = fit(
        teacher, histories, length, schedule, HardLabels(), validate,
        on_epoch=on_epoch, enough=enough, checkpoint=checkpoint, ranks=ranks,
    )  # fmt: skip
    return teacher, epochs
