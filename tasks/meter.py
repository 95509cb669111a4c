"""The meter: what this process and its children have taken so far, of the clock, of CPU cores and of the GPU."""

import resource
import sys
import time
from types import ModuleType

from recsys.cost import Effort


class Meter:
    """Runs from when it is made. Children count once they have ended and were waited for."""

    def __init__(self) -> None:
        self._began = _taken()
        torch = _torch_on_gpu()
        if torch is not None:
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> Effort:
        """Seconds since it was made. The GPU's are all of them if torch held memory on it meanwhile, else none."""
        taken = _taken() - self._began
        torch = _torch_on_gpu()
        used = torch is not None and torch.cuda.max_memory_allocated() > 0
        return Effort(taken.wall, taken.cpu, taken.wall if used else 0.0)


def _taken() -> Effort:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Effort(time.monotonic(), time.process_time() + children.ru_utime + children.ru_stime)


def _torch_on_gpu() -> ModuleType | None:
    """Torch if this process has used it on a GPU already; asking must neither import it nor wake the GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
