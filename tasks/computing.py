"""What the bits of a trained model depend on beside its inputs. It is part of the keys of training and labelling."""

from collections.abc import Mapping

import torch

from tasks.adapters.settings import Settings


def use(settings: Settings) -> Mapping[str, str]:
    """Gives torch the configured threads; the threads, torch build, device and instruction set for a recipe."""
    torch.set_num_threads(settings.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {"threads": str(settings.threads), "torch": str(torch.__version__), "device": device}
