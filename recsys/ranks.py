"""Several processes that train one model, each on its part of every batch: what they must have in common, and what not.

A step is the same whether one process takes it or several: the batch is the one of a single process, a rank's gradient
counts by its share of the batch's weights, and their sum is clipped and applied by every rank alike. So all have the
same weights at all times, and a run's order, rates and number of steps do not depend on how many there are. Only the
order in which floats are added does, and dropout, which each rank draws for itself.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from recsys.batch import Batch

MEETING, WORKING = timedelta(seconds=60), timedelta(minutes=30)
"""How long ranks wait for each other: to begin with, and in an exchange, before which one may have ranked all users."""


class Ranks:
    """The only process. Everything is its own."""

    rank, world = 0, 1

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """What of a batch is this rank's, and the share of the batch's mean that its own has."""
        return batch, 1.0

    def summed(self, loss: Tensor, weights: Mapping[str, nn.Parameter]) -> float:
        """The loss of all ranks together; the weights' gradients become those of all."""
        return float(loss.detach())

    def agreed(self, value: float) -> float:
        """The first rank's."""
        return value

    def part_ways(self, on: torch.device, *entropy: int) -> None:
        """From here torch's global generator draws something else on each rank, except inside `alike`."""

    @contextmanager
    def alike(self, on: torch.device) -> Iterator[None]:
        """Inside, torch's global generator draws the same on all ranks."""
        yield

    def spread(self, model: nn.Module, layers: nn.ModuleList) -> None:
        """Keep of what is frozen in a model and its layers a part on each rank only."""


ALONE = Ranks()


class Together(Ranks):
    """One of several processes that torch's launcher started, from `joined` until the process ends."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._common = torch.random.get_rng_state()

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Self]:
        """This process among those that the launcher's environment names: over NCCL on GPUs, one each, else over gloo."""
        from torch import distributed

        if torch.cuda.is_available():
            torch.cuda.set_device(distributed.get_node_local_rank())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store, rank, world = next(iter(distributed.rendezvous("env://", timeout=MEETING)))  # type: ignore[attr-defined]
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # else hosts may count their restarts differently
            # What ranks of before the restart left there are addresses of the dead: who read one would wait for ever.
            store = distributed.PrefixStore(f"started-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=MEETING)
        distributed.distributed_c10d._set_pg_timeout(WORKING)
        yield cls(distributed.get_rank(), distributed.get_world_size())
        distributed.destroy_process_group()

    def part(self, batch: Batch) -> tuple[Batch, float]:
        return batch.part(self.rank, self.world)

    def summed(self, loss: Tensor, weights: Mapping[str, nn.Parameter]) -> float:
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        joined = torch.cat([loss.detach().reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        torch.distributed.all_reduce(joined)
        sums = torch.split(joined[1:], [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        return float(joined[0])

    def agreed(self, value: float) -> float:
        said = torch.tensor([value], dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
        torch.distributed.broadcast(said, 0)
        return float(said)

    def part_ways(self, on: torch.device, *entropy: int) -> None:
        self._common = _state(on)
        torch.manual_seed(int(np.random.SeedSequence((*entropy, 1 + self.rank)).generate_state(1)[0]))

    @contextmanager
    def alike(self, on: torch.device) -> Iterator[None]:
        own = _state(on)
        _go_on_from(self._common, on)
        yield
        self._common = _state(on)
        _go_on_from(own, on)

    def spread(self, model: nn.Module, layers: nn.ModuleList) -> None:
        # What is trained stays whole on every rank: adapters are small, and `summed` is their only exchange.
        from torch.distributed.fsdp import fully_shard

        trained = {weight for weight in model.parameters() if weight.requires_grad}
        for layer in layers:
            fully_shard(layer, ignored_params=trained)
        fully_shard(model, ignored_params=trained)


def _state(on: torch.device) -> Tensor:
    """Where torch's global generator of a device is."""
    return torch.cuda.get_rng_state() if on.type == "cuda" else torch.random.get_rng_state()


def _go_on_from(state: Tensor, on: torch.device) -> None:
    torch.cuda.set_rng_state(state) if on.type == "cuda" else torch.random.set_rng_state(state)
