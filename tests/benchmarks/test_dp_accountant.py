"""What noise is said to be worth is what others say of it, and what a hand can compute."""

import math

import numpy as np
import pytest

from benchmarks import dp_accountant
from benchmarks.dp_accountant import ORDERS, epsilon_of, noise_for, renyi

MNIST = 256 / 60_000


def older(sampling: float, noise: float, steps: int, delta: float) -> float:
    """By the conversion of Mironov 2017 (proposition 3), which older tables were made with."""
    return float((steps * renyi(sampling, noise) + math.log(1 / delta) / (ORDERS - 1)).min())


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.12, 60, 2.92), (1.2, 10, 1.20), (0.6, 30, 9.74)])
def test_the_table_of_tensorflow_privacy_is_found_again(noise, epochs, published):
    """tutorials/README.md, delta 1e-5; its orders are broken numbers too, which is worth two hundredths to the last line."""
    found = older(MNIST, noise, int(epochs / MNIST), 1e-5)
    assert published - 0.005 <= found < 1.006 * published
    assert epsilon_of(MNIST, noise, int(epochs / MNIST), 1e-5) < found


def test_the_example_of_opacus_is_found_again(monkeypatch):
    """opacus.scripts.compute_dp_sgd_privacy: sampling .01, noise 1, 300 steps, at few orders; 5 is the best of them."""
    monkeypatch.setattr(dp_accountant, "ORDERS", np.array([2, 5, 10, 20, 100]))
    assert epsilon_of(0.01, 1.0, 300, 1e-5) == pytest.approx(2.39, abs=0.005)


def test_where_everybody_is_drawn_it_is_the_plain_gaussian():
    assert renyi(1.0, 2.0) == pytest.approx(ORDERS / 8)
    assert renyi(1 - 1e-9, 2.0) == pytest.approx(ORDERS / 8, rel=1e-5)


def test_order_two_can_be_written_down():
    """(1 - q)^2 + 2 q (1 - q) + q^2 exp(1 / s^2) = 1 + q^2 (exp(1 / s^2) - 1)."""
    assert renyi(0.1, 1.5)[0] == pytest.approx(math.log1p(0.01 * math.expm1(1 / 2.25)))


def test_more_noise_tells_less_and_more_steps_or_users_tell_more():
    by_noise = [epsilon_of(0.1, noise, 100, 1e-5) for noise in (0.5, 1, 2, 4, 8)]
    by_steps = [epsilon_of(0.1, 2.0, steps, 1e-5) for steps in (1, 10, 100, 1_000)]
    by_users = [epsilon_of(sampling, 2.0, 100, 1e-5) for sampling in (0.01, 0.1, 0.5, 1)]
    assert (np.diff(by_noise) < 0).all()
    assert (np.diff(by_steps) > 0).all()
    assert (np.diff(by_users) > 0).all()


@pytest.mark.parametrize("epsilon", [0.5, 1, 8, 64])
@pytest.mark.parametrize(("sampling", "steps"), [(0.1, 300), (1.0, 1)])
def test_the_noise_for_an_epsilon_keeps_it_and_wastes_nothing(epsilon, sampling, steps):
    noise = noise_for(epsilon, sampling, steps, 1e-5)
    assert epsilon_of(sampling, noise, steps, 1e-5) <= epsilon
    assert epsilon_of(sampling, noise / 1.002, steps, 1e-5) > epsilon
