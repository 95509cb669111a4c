"""What noise is worth: the epsilon of Gaussian noise on sums over users drawn by coin, in Renyi's terms. Numpy only.

The sampled Gaussian mechanism of Mironov, Talwar and Zhang 2019 (section 3.3) at integer orders a: with a chance q of
each user to be drawn, noise of s times the most that a user can move the sum, and one user more or less,

    RDP(a) = log( sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 s^2)) ) / (a - 1)      a step; steps add up,

and from there to (epsilon, delta) by proposition 12 of Canonne, Kamath and Steinke 2020:

    epsilon = min over a of  RDP(a) + log(1 - 1/a) - (log delta + log a) / (a - 1).

Orders that are no integers would give a little less, most of all at large epsilons: what is said here is an upper bound.
"""

import numpy as np
from scipy.special import gammaln, logsumexp

ORDERS = np.concatenate([np.arange(2, 65), np.arange(72, 513, 8)])


def renyi(sampling: float, noise: float) -> np.ndarray:
    """(A,) the divergence of one step at each of ORDERS; `noise` in units of the most that a user can move the sum."""
    return np.array([_renyi(sampling, noise, int(order)) for order in ORDERS])


def epsilon_of(sampling: float, noise: float, steps: int, delta: float) -> float:
    """The epsilon of so many steps, at this delta."""
    converted = steps * renyi(sampling, noise) + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(converted.min()))


def noise_for(epsilon: float, sampling: float, steps: int, delta: float) -> float:
    """The least noise, to a thousandth of it, that keeps so many steps within epsilon: by bisection, rounded up."""
    low, high = 0.05, 0.1
    while epsilon_of(sampling, high, steps, delta) > epsilon:
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if epsilon_of(sampling, middle, steps, delta) <= epsilon else (middle, high)
    return high


def _renyi(q: float, noise: float, order: int) -> float:
    if q == 1:
        return order / (2 * noise**2)
    k = np.arange(order + 1)
    choices = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choices + (order - k) * np.log1p(-q) + k * np.log(q) + (k**2 - k) / (2 * noise**2)
    return float(logsumexp(terms)) / (order - 1)
