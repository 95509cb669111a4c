"""How sure one may be of a difference between two models that ranked for the same users. Numpy only.

The users are the sample: they are drawn anew with replacement, both models' values with them (the paired
bootstrap, Efron and Tibshirani 1993, chapters 6 and 13). The draws depend on the number of users and the seed
alone, so the comparisons of a night share them, and a model better for every user never gets a worse bound.

Rules for what has no answer, so that nothing is ever NaN: a relative change from a mean of 0 is 0 when the
other mean is 0 as well (nothing was lost), else +1. Fewer than two users say nothing about others: the bounds
are -1 and +1, or the value itself where that is further out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_NOTHING = 1e-12  # a mean below it is 0: no quotient by it means anything
ONE_SIDED = 1.645
"""Standard errors to the one-sided 95 % bound of a normal distribution."""
_CHUNK = 4_000_000  # draws held at once


@dataclass(frozen=True)
class Interval:
    """A value and its two one-sided bounds, each of which holds with the confidence that was asked."""

    value: float
    low: float
    high: float


Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(R,) means of one model and (R,) of the other -> (R,) values."""


def paired_ratio(
    a: np.ndarray, b: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """mean(a) / mean(b) - 1 over the same C users, for `a` (C,) and `b` (C,) that are never negative."""
    return _paired(_relative_change, a, b, (confidence, resamples, seed))


def paired_difference(
    a: np.ndarray, b: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """mean(a) - mean(b) over the same C users."""
    return _paired(np.subtract, a, b, (confidence, resamples, seed))


def p_of_loss(a: np.ndarray, b: np.ndarray, loss: float, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """One-sided p-value against "mean(a) >= (1 - loss) mean(b)": small when `a` (C,) is surely worse.

    The share of resamples in which the statement holds, the sample itself counted as one, so it is never 0
    (Davison and Hinkley 1997, 4.2.5). Fewer than two users prove nothing: 1.
    """
    shortfall = _checked(a) - (1 - loss) * _checked(b)
    if len(shortfall) < 2:
        return 1.0
    held = sum(int((means[:, 0] >= 0).sum()) for means in resampled_means(shortfall[:, None], resamples, seed))
    return (1 + held) / (1 + resamples)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values (T,) adjusted for being a family, by Holm's step-down (1979): reject where <= alpha."""
    tests = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(tests, 0, -1))
    adjusted = np.empty(tests)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def _paired(statistic: Statistic, a: np.ndarray, b: np.ndarray, draw: tuple[float, int, int]) -> Interval:
    confidence, resamples, seed = draw
    values = np.stack([_checked(a), _checked(b)], axis=1)
    if not len(values):
        return Interval(0.0, -1.0, 1.0)
    mean = values.mean(axis=0)
    value = float(statistic(mean[:1], mean[1:])[0])
    if len(values) == 1:
        return Interval(value, min(-1.0, value), max(1.0, value))
    parts = [statistic(means[:, 0], means[:, 1]) for means in resampled_means(values, resamples, seed)]
    low, high = np.quantile(np.concatenate(parts), [1 - confidence, confidence])
    return Interval(value, float(low), float(high))


def resampled_means(values: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Means of `values` (C, M) over `resamples` draws of C users with replacement, as chunks (R, M)."""
    users = len(values)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // users)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, users, (rows, users), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * users)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        yield times @ values / users


def _relative_change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    something = b > _NOTHING
    from_nothing = np.where(a > 0, 1.0, 0.0)
    return np.where(something, a / np.where(something, b, 1) - 1, from_nothing)


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a value that is not finite cannot be compared")
    return values


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of (C,) and its one-sided 95 % bounds, by the normal approximation; for a picture, not for a verdict.

    Where all are 0, or all are 1, that would be certain of it: there the bound is Wilson's (1927) of a share.
    """
    values = _checked(values)
    if not len(values):
        return Interval(0.0, -1.0, 1.0)
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    if error == 0 and mean in (0, 1):
        beyond = ONE_SIDED**2 / (len(values) + ONE_SIDED**2)
        return Interval(mean, mean * (1 - beyond), mean + (1 - mean) * beyond)
    return Interval(mean, mean - ONE_SIDED * error, mean + ONE_SIDED * error)
