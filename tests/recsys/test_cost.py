"""Seconds become money by two prices; waiting is free."""

import pytest

from recsys.config import CostConfig
from recsys.cost import Effort


def test_a_price_is_that_of_the_cores_and_the_gpu():
    config = CostConfig(cpu_hour=0.5, gpu_hour=3.0)
    assert Effort(wall=3600, cpu=7200, gpu=1800).price(config) == pytest.approx(2 * 0.5 + 0.5 * 3.0)
    assert Effort(wall=3600).price(config) == 0, "who waits pays nothing"


def test_efforts_are_counted_from_a_mark():
    assert Effort(10, 8, 4) - Effort(1, 2, 3) == Effort(9, 6, 1)
