"""A teacher is stale by age, or by a decay that chance does not explain."""

import numpy as np

from recsys.config import RefreshConfig
from recsys.freshness import freshness

CONFIG = RefreshConfig(max_age_days=7, max_decay=0.05)


def test_an_old_teacher_is_stale_however_good():
    verdict = freshness(7.5, 0.05, np.full(500, 0.9), CONFIG)
    assert not verdict.fresh
    assert "7.5 days old, 7 are allowed" in verdict.reason


def test_a_proven_decay_is_stale():
    assert not freshness(1, 0.10, np.full(400, 0.09), CONFIG).fresh


def test_a_fall_within_chance_is_fresh():
    # four users in a hundred score 1: mean .04, standard error .0098, so .05 x .95 is within reach
    tonight = np.zeros(400)
    tonight[:16] = 1
    assert freshness(1, 0.05, tonight, CONFIG).fresh


def test_a_fall_beyond_chance_is_stale():
    tonight = np.zeros(40_000)
    tonight[:1_600] = 1
    assert not freshness(1, 0.05, tonight, CONFIG).fresh
