"""Which knob of a search mattered: told when it shows, and not from too little."""

import numpy as np
import pytest

from recsys.knob_importance import LEAST_TRIALS, knob_importances
from recsys.search import Trial


def trial(number: int, width: int, weight: float, k: int, ndcg: float, state: str = "complete") -> Trial:
    return Trial(number, width, weight, k, 0.2, state, ndcg, 1.0, ())


def trials(count: int) -> list[Trial]:
    """An undistilled trial, and `count` where the width decides, the weight hardly matters and K not at all."""
    rng = np.random.default_rng(0)
    drawn = [((16, 32)[i % 2], float(rng.uniform(0.7, 1)), int(rng.choice([10, 50]))) for i in range(count)]
    made = [trial(i, w, a, k, 0.05 + 0.01 * (w == 32) + 1e-4 * a) for i, (w, a, k) in enumerate(drawn, start=1)]
    return [trial(0, 16, 0.0, 0, 0.03), *made]


def test_the_knob_that_decides_has_the_largest_share():
    shares = knob_importances(trials(16))
    assert next(iter(shares)) == "width"
    assert set(shares) == {"width", "weight", "k"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["width"] > 0.8
    assert knob_importances(trials(16)) == shares


def test_of_too_few_trials_or_of_one_knob_nothing_is_said():
    assert knob_importances(trials(LEAST_TRIALS - 1)) == {}
    assert knob_importances(trials(LEAST_TRIALS))
    several = trials(LEAST_TRIALS)
    pruned = [*several[:-1], trial(9, 16, 0.8, 10, 0.01, "pruned")]
    assert knob_importances(pruned) == {}
    assert knob_importances([trial(i, 16, 0.7 + i / 100, 10, i / 100) for i in range(9)]) == {}
    assert knob_importances([trial(i, 16, 0.7 + i / 100, 10 + i % 2, 0.05) for i in range(9)]) == {}
