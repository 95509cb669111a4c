"""What computing took and what that costs. Numbers in, numbers out."""

from dataclasses import dataclass
from typing import Self

from recsys.config import CostConfig

_HOUR = 3_600  # seconds


@dataclass(frozen=True)
class Effort:
    """What something took, in seconds: of the clock, of CPU cores, of GPUs."""

    wall: float = 0.0
    cpu: float = 0.0
    gpu: float = 0.0

    def __sub__(self, earlier: Self) -> Self:
        return type(self)(self.wall - earlier.wall, self.cpu - earlier.cpu, self.gpu - earlier.gpu)

    def price(self, config: CostConfig) -> float:
        """In `config.currency`. Waiting costs nothing: only cores and GPUs do."""
        return (self.cpu * config.cpu_hour + self.gpu * config.gpu_hour) / _HOUR
