"""The one training loop of every sequence model: batches, schedule, best weights kept, resume equal to the bit.

Randomness of an epoch comes from (seed, epoch) alone, not from a generator that runs on: an epoch resumed, or
disturbed by what a callback drew, is the same epoch. The order of batches, the order inside baskets, dropout and
sampled negatives all follow from it. Equal to the bit holds for one device, torch build and thread count.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recsys import checkpoint as checkpoints
from recsys import softmax
from recsys.adamw import AdamW
from recsys.batch import Batch
from recsys.checkpoint import Checkpoint
from recsys.errors import TrainingError
from recsys.histories import Histories
from recsys.ranks import ALONE, Ranks
from recsys.sequence_model import Scorer, SequenceModel, ranking_validator
from recsys.windows import Windows

__all__ = [
    "Batch",
    "Epoch",
    "HardLabels",
    "Objective",
    "Schedule",
    "Scorer",
    "SequenceModel",
    "device",
    "fit",
    "never",
    "ranking_validator",
    "seeded",
]

WARM_UP_STEPS = 200
FINAL_RATE = 0.02  # share of the peak that the cosine falls to
CLIP_NORM = 1.0
EPOCH_STEPS, LEAST_TOKENS = 250, 256  # steps count more than passes: batches are cut until an epoch has so many


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. The learning rate warms up linearly, then falls as a cosine to 2 % of its peak."""

    epochs: int
    learning_rate: float
    seed: int
    batch_tokens: int = 4096  # padded positions a step, at most
    weight_decay: float = 0.01  # not on norms and biases
    redraw_baskets: bool = False  # draw the order of events with equal times anew each epoch
    share: float = 1.0  # of its batches that an epoch takes, drawn anew each time

    @classmethod
    def of(cls, epochs: float, learning_rate: float, seed: int) -> "Schedule":
        """Also of parts of an epoch: as many as it takes, each of them a part."""
        whole = max(1, math.ceil(epochs))
        return cls(whole, learning_rate, seed, share=epochs / whole)

    def rate(self, progress: float, warm_up: float) -> float:
        """The learning rate after the share `progress` of the run, of which the share `warm_up` warms up."""
        if progress < warm_up:
            return self.learning_rate * progress / warm_up
        cosine = (1 + math.cos(math.pi * min((progress - warm_up) / (1 - warm_up), 1))) / 2
        return self.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


class Objective(Protocol):
    """A loss over the owned positions of a batch. It may draw from torch's global generator, from no other."""

    def __call__(self, states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        """States (P, D) and table (N + 1, D) -> the mean loss, a scalar, in nats."""


@dataclass(frozen=True)
class Epoch:
    """What one pass came to."""

    number: int  # from 1
    loss: float  # mean over positions, in nats
    validation_ndcg: float
    seconds: float  # measured; belongs to no identity


class HardLabels:
    """Cross-entropy of the item that followed: over up to `full_up_to` items all, above that `negatives` of them."""

    def __init__(self, full_up_to: int = 5_000, negatives: int = 1_024) -> None:
        self.full_up_to, self.negatives = full_up_to, negatives

    def __call__(self, states: Tensor, table: Tensor, batch: Batch) -> Tensor:
        """The mean weighted by the labels' event weights, in nats."""
        if len(table) - 1 <= self.full_up_to:
            return softmax.full(states, table, batch.labels, batch.weights)
        return softmax.sampled(states, table, batch.labels, batch.weights, self.negatives)


def ignore(epoch: Epoch) -> None:
    """Do nothing with an epoch."""


def never() -> bool:
    """What is not cut short."""
    return False


def device() -> torch.device:
    """CUDA when it is there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    model: SequenceModel,
    histories: Histories,
    length: int,
    schedule: Schedule,
    objective: Objective,
    validate: Callable[[], float],
    *,
    on_epoch: Callable[[Epoch], None] = ignore,
    enough: Callable[[], bool] = never,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> list[Epoch]:
    """Train `model` in place on the training part of `histories`; it is left with the weights of its best epoch.

    `validate` gives the NDCG@10 that decides which epoch was best, on a tie the later. `on_epoch` hears of every
    epoch, after a resume also of those before it, and may raise to stop the run. The file `checkpoint` is written
    after each epoch and removed at the end; a run of the same model, data and schedule goes on from it to the same
    bits. `enough` is asked after each epoch whether to stop with the best so far: fewer epochs come back, and the
    checkpoint stays. Raises TrainingError when there is nothing to train on or the loss is not a number.

    Several `ranks` call it with the same arguments. What the first validates, and whether it has enough, counts for all;
    it alone writes the checkpoint, which stays: whoever has the same arguments gets the trained model from it.
    """
    run = _Run(model, histories, Windows.of_training(histories, length), schedule, objective, ranks)
    made_from = run.digest()
    found = checkpoints.load(checkpoint, made_from) if checkpoint else None
    if found:
        run.restore(found)
    if ranks.agreed(len(run.epochs)) != len(run.epochs):
        raise TrainingError(
            "the ranks do not read the same checkpoint", where=str(checkpoint), mend="All hosts must share its folder."
        )
    for epoch in run.epochs:
        on_epoch(epoch)
    while len(run.epochs) < schedule.epochs and not (run.epochs and ranks.agreed(enough())):
        run.advance(validate)
        if checkpoint and ranks.rank == 0:
            run.checkpoint(made_from).save(checkpoint)
        on_epoch(run.epochs[-1])
    run.keep_best()
    if checkpoint and len(run.epochs) == schedule.epochs and ranks.world == 1:
        checkpoint.unlink(missing_ok=True)
    return run.epochs


class _Run:
    """A training run between two epochs: weights, moments, the best so far."""

    def __init__(
        self,
        model: SequenceModel,
        histories: Histories,
        windows: Windows,
        schedule: Schedule,
        objective: Objective,
        ranks: Ranks,
    ) -> None:
        if not windows.positions:
            raise TrainingError(
                "there is no training position",
                mend="A user needs two events before the validation window: bring more days of events.",
            )
        self.model, self.histories, self.windows = model, histories, windows
        self.schedule, self.objective, self.ranks = schedule, objective, ranks
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.weights.values())).device
        self.optimizer = AdamW(self.weights, schedule.weight_decay)
        self.best: dict[str, Tensor] = {}
        self.epochs: list[Epoch] = []
        read = int((windows.stop - windows.start).sum())
        self.tokens = min(schedule.batch_tokens, max(LEAST_TOKENS, read // EPOCH_STEPS))
        self.steps = math.ceil(schedule.share * sum(1 for _ in windows.batches(self.tokens, None)))
        self.warm_up = min(0.1, WARM_UP_STEPS / (schedule.epochs * self.steps))

    def advance(self, validate: Callable[[], float]) -> None:
        """Train one epoch more, and keep its weights if they are the best so far."""
        number, began = len(self.epochs) + 1, time.perf_counter()
        with seeded(self.device, self.schedule.seed, number) as rng:
            self.ranks.part_ways(self.device, self.schedule.seed, number)
            loss = self._train(number, rng)
            self.model.eval()
            reached = self.ranks.agreed(validate())
        if reached >= max((e.validation_ndcg for e in self.epochs), default=-math.inf):
            self.best = {name: p.detach().clone() for name, p in self.weights.items()}
        self.epochs.append(Epoch(number, loss, reached, time.perf_counter() - began))

    def _train(self, number: int, rng: np.random.Generator) -> float:
        """One pass over the positions; the mean loss."""
        self.model.train()
        histories = self.histories.baskets_shuffled(rng) if self.schedule.redraw_baskets else self.histories
        done, total = 0, 0.0
        batches = self.windows.batches(self.tokens, rng)
        for step, chosen in enumerate(islice(batches, self.steps) if self.schedule.share < 1 else batches, start=1):
            batch = Batch.of(histories, self.windows, chosen, self.device)
            passed = (done + len(batch.labels)) / (self.windows.positions * self.schedule.share)
            progress = (number - 1 + passed) / self.schedule.epochs
            loss = self._step(batch, self.schedule.rate(progress, self.warm_up))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step} of epoch {number}; the last good epoch is {number - 1}",
                    mend="Lower the learning rate.",
                )
            done += len(batch.labels)
            total += loss * len(batch.labels)
        return total / done

    def _step(self, whole: Batch, rate: float) -> float:
        """One update; the loss before it."""
        batch, share = self.ranks.part(whole)
        # bfloat16 where a GPU computes it; float32 on a CPU, where few have the instructions to gain from it.
        halved = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=halved):
            table = self.model.item_table()
            states = self.model.states(batch.items, table)[batch.owned]
            with self.ranks.alike(self.device):
                loss = share * self.objective(states, table, batch)
        torch.autograd.backward(loss)
        total = self.ranks.summed(loss, self.weights)
        nn.utils.clip_grad_norm_(self.weights.values(), CLIP_NORM)
        self.optimizer.step(rate)
        return total

    def keep_best(self) -> None:
        """Give the model the weights of its best epoch."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self.best[name])
        self.model.eval()

    def digest(self) -> str:
        """What the run is made of: schedule, data, initial weights. A checkpoint of another run is not used."""
        seen = hashlib.sha256(json.dumps(asdict(self.schedule), sort_keys=True).encode())
        for edge in (self.windows.start, self.windows.own, self.windows.stop):
            seen.update(edge.tobytes())
        for column in (self.histories.items, self.histories.times, self.histories.weights):
            seen.update(np.ascontiguousarray(column).data)
        for name, weight in self.weights.items():
            seen.update(f"{name}{tuple(weight.shape)}".encode())
            seen.update(weight.detach().float().cpu().numpy().tobytes())
        return seen.hexdigest()

    def checkpoint(self, made_from: str) -> Checkpoint:
        """All that the next epoch depends on."""
        tensors: dict[str, Tensor] = {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, weight in self.weights.items():
            tensors[f"weight.{name}"] = weight
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[name].items()}
        return Checkpoint(tensors, {"made_from": made_from, "epochs": [asdict(e) for e in self.epochs]})

    def restore(self, found: Checkpoint) -> None:
        """Go back to where `found` was taken."""
        self.epochs = [Epoch(**values) for values in found.notes["epochs"]]
        self.best = {name: found.tensors[f"best.{name}"].to(self.device) for name in self.weights}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(found.tensors[f"weight.{name}"])
                self.optimizer.state[name] = {
                    key: found.tensors[f"{key}.{name}"].to(self.device) for key in self.optimizer.state[name]
                }


@contextmanager
def seeded(on: torch.device, *entropy: int) -> Iterator[np.random.Generator]:
    """A generator that follows from `entropy`; inside, torch's global one does too; outside it is left as it was."""
    sequence = np.random.SeedSequence(entropy)
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        yield np.random.default_rng(sequence)
