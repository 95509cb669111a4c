"""A student trained by user-level DP-SGD: nobody moves a step by more than the clip, and noise hides who moved it.

Abadi et al. 2016 with a user in the place of an example (McMahan et al. 2018). Each step draws every user by coin; of
each drawn one the gradient of the mean loss over their newest positions is cut to the norm C, noise of deviation
noise x C is added to the sum, and Adam steps along sum / (q U). What is kept is the mean of the weights over the second half of
the steps: averaging is free, for it sees nothing but what was released.

The random numbers are torch's and floats: a proof on paper, not against somebody who reads the last bits (Mironov 2012).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from recsys.decoder import DecoderShape
from recsys.histories import Histories
from recsys.student import Student
from recsys.training import seeded

CHUNK_BYTES = 64_000_000
"""Of gradients of single users that are held at once."""

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Course:
    """How a private student is trained. The noise is in units of the clip; 0 is none, and no privacy."""

    steps: int
    sampling: float  # q, the chance of each user to be drawn for a step
    clip: float  # C
    noise: float
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class UserLines:
    """U users, a row each: what they read, what followed, and how much it counts; 0 where a row has ended."""

    items: Tensor  # (U, L) int64
    labels: Tensor  # (U, L) int64
    importance: Tensor  # (U, L) float32, sums to 1 in a row

    @classmethod
    def of(cls, histories: Histories, length: int) -> Self:
        """The newest `length` training positions of each user who has one."""
        users = np.flatnonzero(histories.train_end > 1)
        inputs = np.minimum(histories.train_end[users] - 1, length)[:, None]
        start = (histories.offsets[users] + histories.train_end[users])[:, None] - 1 - inputs
        at = start + np.arange(inputs.max(initial=1))
        inside = at < start + inputs
        at = np.where(inside, at, 0)
        weights = np.where(inside, histories.weights[at + 1], 0)
        arrays = (
            np.where(inside, histories.items[at], 0).astype(np.int64),
            np.where(inside, histories.items[at + 1], 1).astype(np.int64),
            (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        )
        return cls(*(torch.from_numpy(array) for array in arrays))

    def __len__(self) -> int:
        return len(self.items)

    def part(self, users: Tensor) -> Self:
        """Some of the users, no wider than the longest of them."""
        longest = int((self.importance[users] > 0).sum(1).max()) if len(users) else 1
        return type(self)(*(each[users, :longest] for each in (self.items, self.labels, self.importance)))


class PrivateStudent(nn.Module):
    """A student whose item rows are learnt, or are a linear map of the items' public texts."""

    texts: Tensor | None

    def __init__(self, shape: DecoderShape, seed: int, texts: np.ndarray | None = None) -> None:
        """`texts` (N, T), components of variance 1, zeros for an item without text; None: rows of ids."""
        super().__init__()
        self.student = Student.untrained(shape, 0.0, seed)
        padded = None
        if texts is not None:  # at a norm of about 1, or the decoder's share of a clipped gradient is nothing
            scaled = np.pad(texts, ((1, 0), (0, 0))) / texts.shape[1] ** 0.5
            padded = torch.from_numpy(scaled.astype(np.float32))
        self.register_buffer("texts", padded, persistent=False)
        if padded is not None:
            self.student.table.weight.requires_grad_(False)
            self.projection = nn.Parameter(torch.empty(padded.shape[1], shape.width))
            with seeded(torch.device("cpu"), seed):
                nn.init.normal_(self.projection, std=shape.width**-0.5)

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    @property
    def of_items(self) -> str:
        """The name of what the item rows are made of."""
        return "student.table.weight" if self.texts is None else "projection"

    def item_table(self) -> Tensor:
        """(N + 1, D)."""
        return self.student.item_table() if self.texts is None else self.texts @ self.projection

    def forward(self, rows: Tensor) -> Tensor:
        """(L, D) rows of the items that one user had -> (L, D) states."""
        states: Tensor = self.student.states(torch.arange(len(rows))[None], rows)[0]
        return states

    def folded(self) -> Student:
        """A plain student that scores alike."""
        weights = {**self.student.state_dict(), "table.weight": self.item_table().detach().clone()}
        weights["table.weight"][0] = 0  # noise fell on the padding's row too
        made = Student(self.student.shape, 0.0)
        made.load_state_dict(weights)
        return made.eval()


def clipped_sum(model: PrivateStudent, lines: UserLines, clip: float) -> Gradients:
    """The sum over users of each one's gradient, cut to the norm `clip`: one user more or less moves it by no more."""
    total = {name: torch.zeros_like(weight) for name, weight in model.learnt.items()}
    floats = model.item_table().numel() + sum(weight.numel() for weight in total.values())
    at_once = max(1, CHUNK_BYTES // (4 * floats))
    order = (lines.importance > 0).sum(1).argsort()
    for chosen in order.split(at_once) if len(order) else ():
        gradients = of_each_user(model, lines.part(chosen))
        squares = torch.stack([each.flatten(1).pow(2).sum(1) for each in gradients.values()]).sum(0)
        kept = (clip / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)
        for name, each in gradients.items():
            total[name] += (kept @ each.flatten(1)).view_as(total[name])
    return total


@torch.no_grad()
def of_each_user(model: PrivateStudent, lines: UserLines) -> Gradients:
    """(U, ...) by name: the gradient of each user's mean loss of what followed, over the whole catalog, in nats.

    The scores are written out, user by user; what is below them is a vector-Jacobian product that torch.func maps over users.
    """
    table = model.item_table().detach()
    weights = {name: weight.detach() for name, weight in model.learnt.items() if name != model.of_items}

    def below(rows: Tensor, to_states: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        _, pull = vjp(lambda some, read: functional_call(model, some, (read,)), weights, rows)
        found: tuple[dict[str, Tensor], Tensor] = pull(to_states)
        return found

    states = model.student.states(lines.items, table)
    to_states, to_table = _scored(states, table, lines)
    with sdpa_kernel(SDPBackend.MATH):  # the other one has no rule for vmap
        gradients, to_rows = vmap(below)(table[lines.items], to_states)
    row = lines.items + torch.arange(len(lines))[:, None] * len(table)
    to_table.flatten(0, 1).index_add_(0, row.flatten(), to_rows.flatten(0, 1))
    to_items = to_table if model.texts is None else model.texts.T @ to_table
    return {**gradients, model.of_items: to_items}


def _scored(states: Tensor, table: Tensor, lines: UserLines) -> tuple[Tensor, Tensor]:
    """Gradients of each user's mean cross-entropy by their states (U, L, D) and by the table they are scored with (U, N + 1, D)."""
    to_states, to_table = torch.zeros_like(states), table.new_zeros(len(lines), *table.shape)
    for user, length in enumerate((lines.importance > 0).sum(1).tolist()):
        read, importance = states[user, :length], lines.importance[user, :length, None]
        pull = torch.softmax(read @ table[1:].T, 1)
        pull[torch.arange(length), lines.labels[user, :length] - 1] -= 1
        pull *= importance
        to_states[user, :length] = pull @ table[1:]
        to_table[user, 1:] = pull.T @ read
    return to_states, to_table


def noised(total: Gradients, deviation: float, generator: torch.Generator) -> Gradients:
    """Gaussian noise of this deviation on every component."""
    return {
        name: each + deviation * torch.randn(each.shape, generator=generator) if deviation else each
        for name, each in total.items()
    }


def train(model: PrivateStudent, lines: UserLines, course: Course) -> None:
    """Trains `model` in place; it is left with the mean of its weights over the second half of the steps."""
    generator = torch.Generator().manual_seed(course.seed)
    learnt = model.learnt
    mean = {name: torch.zeros_like(weight) for name, weight in learnt.items()}
    optimizer = torch.optim.Adam(learnt.values(), course.learning_rate)
    kept = 0
    for step in range(course.steps):
        drawn = torch.nonzero(torch.rand(len(lines), generator=generator) < course.sampling)[:, 0]
        total = noised(clipped_sum(model, lines.part(drawn), course.clip), course.noise * course.clip, generator)
        for name, weight in learnt.items():
            weight.grad = total[name] / (course.sampling * len(lines))
        optimizer.step()
        if step >= course.steps // 2:
            kept += 1
            for name, weight in learnt.items():
                mean[name] += (weight.detach() - mean[name]) / kept
    with torch.no_grad():
        for name, weight in learnt.items():
            weight.copy_(mean[name])
