"""The teacher that labels: as it was trained, or with its weights in eight bits, and how far the two agree."""

import math
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recsys.ensemble import Ensemble
from recsys.lm_teacher import LmTeacher
from recsys.quantize import dequantized, rounded
from recsys.soft_labels import Positions
from recsys.teacher import Teacher
from recsys.teacher_scores import BATCH_TOKENS, Reading, TeacherHead, best_items, readings
from recsys.teachers import BlendedTeacher
from recsys.windows import Windows

COMPARED = 2_000
"""Positions that are compared at most."""

_TOP = 10


def labeller(teacher: BlendedTeacher, bits: Literal[8, 32]) -> BlendedTeacher:
    """The teacher with its linears and item table in `bits` bits, its neighbours as they are; 32 is the teacher itself.

    A small teacher gets the values that whole numbers a row stand for and computes with them in float: a label still
    depends on what its position sees and on nothing else. The backbone of a language model computes in whole numbers on
    a CPU, where that saves most of its time; how its activations are rounded depends on all that is read with them.
    """
    return teacher if bits == 32 else BlendedTeacher(_rounded(teacher.model), teacher.opinion)


def _rounded(model: Teacher | LmTeacher | Ensemble) -> Teacher | LmTeacher | Ensemble:
    if isinstance(model, Ensemble):
        return Ensemble([_small(member) for member in model.teachers]).eval()
    return _small(model) if isinstance(model, Teacher) else _language_model(model)


def _small(teacher: Teacher) -> Teacher:
    made = Teacher(teacher.shape, None, dropout=0)
    made.decoder = rounded(teacher.folded(), 8)
    _round(made.decoder.table)
    return made.to(teacher.table.weight.device).eval()


def _language_model(teacher: LmTeacher) -> LmTeacher:
    made = deepcopy(teacher)
    made.table.weight.data, made.text = teacher.item_table().detach().clone(), nn.Identity()
    for module in (made.table, made.read, made.head):
        _round(module)
    for layer in made.backbone.modules():
        if hasattr(layer, "base_layer"):  # an adapter becomes part of what it adapts
            layer.merge()
    on_cpu = made.table.weight.device.type == "cpu"
    if on_cpu:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao is to move to a package of its own
            kinds = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
            made.backbone = torch.ao.quantization.quantize_dynamic(made.backbone, kinds)  # type: ignore[no-untyped-call]
    else:
        for layer in made.backbone.modules():
            if isinstance(layer, nn.Linear):
                _round(layer)
    return made.eval()


def _round(module: nn.Linear | nn.Embedding) -> None:
    module.weight.data = dequantized(module.weight, 8)


@dataclass(frozen=True)
class Agreement:
    """How near the rounded teacher is to the teacher on P positions, and what each takes."""

    positions: int  # P
    same_first: float  # share of positions whose best item is the same
    shared_top: float  # mean share of the ten best that both have
    kl: float  # mean KL divergence of the rounded teacher from the teacher, in nats
    float_seconds: float  # to label 1,000 positions, as does the next
    rounded_seconds: float

    def __str__(self) -> str:
        return (
            f"the teacher in 8 bits: the same best item at {self.same_first:.1%} of {self.positions:,} positions, "
            f"{self.shared_top:.1%} of the ten best, KL {self.kl:.1e} nats; "
            f"{self.rounded_seconds:.3f} s a thousand positions, {self.float_seconds:.3f} s in float"
        )


def agreement(
    teacher: BlendedTeacher, made: BlendedTeacher, positions: Positions, k: int, most: int = COMPARED
) -> Agreement:
    """Both at the same positions, at most `most`, of windows evenly spaced; each label has k items.

    The seconds are of reading, scoring and ranking, not of writing. Raises no error of its own.
    """
    windows = _evenly(positions.windows, most)
    wanted = np.zeros(len(positions.histories.items), bool)
    wanted[windows.owned_positions()[:most]] = True
    of_float, of_rounded = (_Timed(each, positions, windows, wanted, k) for each in (teacher, made))
    same, shared, kl = [], [], []
    for one, other in zip(of_float, of_rounded, strict=True):
        same.append(one.codes[:, 0] == other.codes[:, 0])
        listed = one.codes[:, :_TOP, None] == other.codes[:, None, :_TOP]
        shared.append(listed.any(2).double().mean(1))
        log_p, log_q = (torch.log_softmax(each.logits.double(), 1) for each in (one, other))
        kl.append((log_p.exp() * (log_p - log_q)).sum(1))
    found = [float(torch.cat(each).double().mean()) for each in (same, shared, kl)]
    seconds = [1_000 * each.seconds / wanted.sum() for each in (of_float, of_rounded)]
    return Agreement(int(wanted.sum()), *found, *seconds)


def _evenly(windows: Windows, most: int) -> Windows:
    """Windows that own about `most` positions, evenly spaced."""
    some = min(len(windows), math.ceil(most * len(windows) / max(windows.positions, 1)))
    chosen = np.linspace(0, len(windows) - 1, some).astype(np.int64)
    return Windows(windows.start[chosen], windows.own[chosen], windows.stop[chosen])


@dataclass(frozen=True)
class _Ranked:
    codes: Tensor  # (P, K)
    logits: Tensor  # (P, V)


class _Timed:
    """A teacher at work, and for how long."""

    def __init__(
        self, teacher: BlendedTeacher, positions: Positions, windows: Windows, wanted: np.ndarray, k: int
    ) -> None:
        self.k, self.seconds = k, 0.0
        self.teacher, self.windows = teacher, windows
        self.histories, self.wanted = positions.histories, wanted

    def __iter__(self) -> Iterator[_Ranked]:
        self._ranked(next(self._readings()))  # what the first pass alone takes is no part of a thousand positions
        parts = self._readings()
        while True:
            began = time.perf_counter()
            part = next(parts, None)
            ranked = self._ranked(part) if part else None
            self.seconds += time.perf_counter() - began
            if ranked is None:
                return
            yield ranked

    def _readings(self) -> Iterator[Reading]:
        head = TeacherHead.of(self.teacher.model, self.teacher.opinion)
        batches = self.windows.batches(BATCH_TOKENS, None)
        return readings(self.teacher.model, head, self.histories, self.windows, self.wanted, batches)

    def _ranked(self, reading: Reading) -> _Ranked:
        torch.logsumexp(reading.logits, 1)
        codes, _ = best_items(reading.logits, self.k)
        if codes.is_cuda:
            torch.cuda.synchronize()
        return _Ranked(codes, reading.logits)
