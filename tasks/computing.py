"""What the bits of a trained model depend on beside its inputs. It is part of the keys of training and labelling."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch

from recsys import fleet, trial
from recsys.search import ROUND
from recsys.spread import HERE
from recsys.torchrun import Torchrun
from tasks.adapters.settings import Settings
from tasks.night import Step


def use(settings: Settings) -> Mapping[str, str]:
    """Gives torch the configured threads; the threads, torch build, device and instruction set for a recipe."""
    torch.set_num_threads(settings.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {"threads": str(settings.threads), "torch": str(torch.__version__), "device": device}


def executor(at: Step) -> Executor:
    """Who works on parts that a model computes: a GPU's work stays with the GPU, a worker may have none or another."""
    return HERE if torch.cuda.is_available() else at.workers.executor


def use_by_ranks(settings: Settings) -> Mapping[str, str]:
    """As `use`, for what ranks train: several add up their gradients in another order than one process does."""
    several = {"ranks": str(settings.ranks), "rank_threads": str(_rank_threads(settings))} if settings.ranks > 1 else {}
    return {**use(settings), **several}


def by_ranks(settings: Settings, fit: Callable[..., Any]) -> Callable[..., Any]:
    """`fit`, or what is called alike and has it done by as many processes as the settings say."""
    if settings.ranks == 1:
        return fit
    place = settings.temp / "ranks"  # known beforehand: other hosts join by it
    launched = Torchrun(place, settings.ranks, _rank_threads(settings), settings.hosts, settings.rendezvous)
    return partial(launched.fit, fit)


def _rank_threads(settings: Settings) -> int:
    """The ranks of a host share its threads evenly."""
    return max(1, settings.threads * settings.hosts // settings.ranks)


def workers(settings: Settings) -> int:
    """Trials of a search that run side by side: one a thread, for a small model gains little by a second; one on a GPU."""
    return 1 if torch.cuda.is_available() else min(ROUND, settings.threads)


def expect_trials(settings: Settings) -> None:
    """Students will be trained tonight: their workers import what they need while the steps before go on."""
    side_by_side = workers(settings)
    if side_by_side > 1:
        fleet.call_up(trial.run, side_by_side, max(1, settings.threads // side_by_side))
