"""Intervals of paired comparisons, and families of tests."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.statistics import holm, mean_interval, p_of_loss, paired_difference, paired_ratio

RNG = np.random.default_rng(7)
NOISE = RNG.normal(0, 1, 2000)


def test_the_value_is_the_ratio_of_means_and_not_the_mean_of_ratios():
    assert paired_ratio(np.array([1.0, 3.0]), np.array([1.0, 1.0])).value == pytest.approx(1.0)
    assert paired_ratio(np.array([0.0, 3.0]), np.array([4.0, 2.0])).value == pytest.approx(-0.5)


def test_the_bounds_of_a_difference_are_those_of_normal_theory():
    interval = paired_difference(0.1 + NOISE, np.zeros(2000), resamples=4000)
    half = NormalDist().inv_cdf(0.95) * NOISE.std() / 2000**0.5
    assert interval.value == pytest.approx(0.1 + NOISE.mean())
    assert interval.low == pytest.approx(interval.value - half, abs=0.05 * half)
    assert interval.high == pytest.approx(interval.value + half, abs=0.05 * half)


def test_the_comparison_is_paired():
    easy = RNG.random(300)
    interval = paired_difference(easy + 0.01, easy)
    assert interval.low == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01)


def test_the_bounds_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    below = sum(paired_difference(rng.normal(0.3, 1, 60), np.zeros(60), resamples=400).low <= 0.3 for _ in range(300))
    assert 0.90 <= below / 300 <= 0.99


def test_more_confidence_means_wider_bounds():
    sure, bold = (paired_difference(NOISE, np.zeros(2000), confidence=c) for c in (0.99, 0.8))
    assert sure.low < bold.low < bold.high < sure.high


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others():
    first, again, other = (paired_difference(NOISE, np.zeros(2000), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.low != other.low


def test_a_sample_of_more_than_one_chunk_gives_bounds_too():
    large = np.tile(NOISE, 100)
    interval = paired_difference(large, np.zeros(len(large)), resamples=50)
    assert interval.low < interval.value < interval.high


def test_a_mean_of_zero_below_the_line_has_a_stated_answer():
    nothing, something = np.zeros(50), np.full(50, 0.5)
    assert paired_ratio(nothing, nothing).value == 0
    assert paired_ratio(something, nothing).value == 1
    assert paired_ratio(nothing, something).value == -1


def test_resamples_without_any_hit_are_answered_too():
    rare = np.zeros(40)
    rare[0] = 1
    interval = paired_ratio(np.roll(rare, 1), rare)
    assert interval.low == -1
    assert interval.high >= 1
    assert np.isfinite([interval.value, interval.low, interval.high]).all()


def test_one_user_proves_nothing():
    interval = paired_ratio(np.array([1.0]), np.array([0.25]))
    assert (interval.value, interval.low, interval.high) == (3, -1, 3)
    assert p_of_loss(np.array([0.0]), np.array([1.0]), 0.1) == 1


def test_nobody_proves_nothing():
    nobody = np.empty(0)
    assert paired_difference(nobody, nobody).low == -1
    assert p_of_loss(nobody, nobody, 0.1) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_compared(bad):
    for compare in (paired_ratio, paired_difference):
        with pytest.raises(ValueError, match="not finite"):
            compare(np.array([0.1, bad]), np.array([0.1, 0.2]))


def test_a_proven_loss_has_a_small_p_value_and_a_loss_at_the_margin_has_not():
    peer = RNG.random(400)
    assert p_of_loss(0.5 * peer, peer, 0.1) == pytest.approx(1 / 2001)
    assert p_of_loss(peer, peer, 0.1) == 1
    noisy = 0.9 * peer + 0.3 * RNG.normal(size=400)
    noisy += 0.9 * peer.mean() - noisy.mean()
    assert 0.3 < p_of_loss(noisy, peer, 0.1) < 0.7


def test_the_interval_of_one_mean_is_that_of_normal_theory():
    interval = mean_interval(NOISE)
    half = NormalDist().inv_cdf(0.95) * NOISE.std() / 2000**0.5
    assert (interval.value, interval.high - interval.value) == pytest.approx((NOISE.mean(), half), rel=1e-3)
    assert mean_interval(np.empty(0)).low == -1


def test_no_hit_among_few_is_not_certain_of_none():
    none, all_of_them = mean_interval(np.zeros(47)), mean_interval(np.ones(47))
    assert (none.low, none.high) == pytest.approx((0, 0.0544), abs=1e-4)
    assert (1 - all_of_them.high, 1 - all_of_them.low) == pytest.approx((0, 0.0544), abs=1e-4)
    assert mean_interval(np.full(47, 0.5)).high == 0.5


def test_holm_steps_down():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_takes_an_empty_family():
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert len(holm(np.empty(0))) == 0


metric = st.lists(st.floats(0, 1), min_size=2, max_size=30)


@settings(deadline=None, max_examples=50)
@given(values=metric, gain=st.floats(0, 1), data=st.data())
def test_a_model_better_for_every_user_never_gets_a_worse_bound(values, gain, data):
    ours = np.array(values)
    peer = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(ours), max_size=len(ours))))
    worse, better = (paired_ratio(a, peer, resamples=100) for a in (ours, ours + gain * (1 - ours)))
    assert better.value >= worse.value
    assert better.low >= worse.low
    assert better.high >= worse.high
