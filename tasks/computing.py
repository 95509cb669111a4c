"""What the bits of a trained model depend on beside its inputs. It is part of the keys of training and labelling."""

from collections.abc import Mapping

import torch

from recsys.search import ROUND
from tasks.adapters.settings import Settings


def use(settings: Settings) -> Mapping[str, str]:
    """Gives torch the configured threads; the threads, torch build, device and instruction set for a recipe."""
    torch.set_num_threads(settings.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {"threads": str(settings.threads), "torch": str(torch.__version__), "device": device}


def workers(settings: Settings) -> int:
    """Trials of a search that run side by side: one a thread, for a small model gains little by a second; one on a GPU."""
    return 1 if torch.cuda.is_available() else min(ROUND, settings.threads)
