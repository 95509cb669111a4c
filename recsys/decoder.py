"""The small causal transformer that teacher and student share. Right-padded input, pre-norm blocks, tied item table."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

INITIAL = 0.02
"""Deviation of what item vectors and positions begin with (docs/decisions/0016-small-beginnings.md)."""


@dataclass(frozen=True)
class DecoderShape:
    """All that fixes a decoder's tensors. Pruning changes `ffn` and `heads`, block by block."""

    items: int  # N
    width: int  # D
    length: int  # L, the most items it reads
    heads: tuple[int, ...]  # heads kept of each block; every head is head_width wide
    ffn: tuple[int, ...]  # feed-forward units of each block
    head_width: int

    @classmethod
    def of(cls, items: int, width: int, blocks: int, length: int) -> Self:
        """The shape by its one dial: two heads from width 64 on, one below; feed-forward four times the width."""
        heads = 2 if width >= 64 else 1
        return cls(items, width, length, (heads,) * blocks, (4 * width,) * blocks, width // heads)

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(**{**value, "heads": tuple(value["heads"]), "ffn": tuple(value["ffn"])})


class Dropout(nn.Module):
    """Drops a share of the activations and scales up the rest. Six times as fast as nn.Dropout on a CPU.

    One 64-bit draw decides eight activations, by a byte each, so that the share is rounded to 1/256.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.dropped = min(round(share * 256), 255)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or not self.dropped:
            return x
        if x.is_cuda:
            return nn.functional.dropout(x, self.dropped / 256)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (kept * (256 / (256 - self.dropped)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward: x + A(norm(x)), then x + F(norm(x)), with F = W2 gelu(W1 x)."""

    def __init__(self, width: int, heads: int, head_width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, -1)))
        fed: Tensor = self.dropout(self.down(self.dropout(gelu(self.up(self.ffn_norm(x))))))
        return x + fed


class Decoder(nn.Module):
    """Reads item codes, 0 is padding on the right, and gives a state a position; score = state . item vector."""

    def __init__(self, shape: DecoderShape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.table = nn.Embedding(shape.items + 1, shape.width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(shape.length, shape.width))
        self.blocks = nn.ModuleList(
            Block(shape.width, heads, shape.head_width, ffn, dropout)
            for heads, ffn in zip(shape.heads, shape.ffn, strict=True)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.dropout = Dropout(dropout)
        # A rare item is hardly ever trained: what its row begins with is noise that stays in every list.
        nn.init.normal_(self.table.weight, std=INITIAL)
        nn.init.normal_(self.positions, std=INITIAL)
        with torch.no_grad():
            self.table.weight[0] = 0

    @property
    def length(self) -> int:
        """L, the most items it reads."""
        return self.shape.length

    def item_table(self) -> Tensor:
        """(N + 1, D): the vectors used on the input and on the output side alike; row 0 is the padding."""
        return self.table.weight

    def states(self, items: Tensor, table: Tensor) -> Tensor:
        """(B, L) int64 codes -> (B, L, D); position l has read items[:, : l + 1] and no more."""
        x = nn.functional.embedding(items, table) * self.shape.width**0.5 + self.positions[: items.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states
