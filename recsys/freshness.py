"""Whether an earlier teacher may label tonight. Pure: numbers in, a reason out."""

from dataclasses import dataclass

import numpy as np

from recsys.config import RefreshConfig
from recsys.statistics import mean_interval


@dataclass(frozen=True)
class Freshness:
    """The answer, and the sentence that explains it."""

    fresh: bool
    reason: str


def freshness(age_days: float, reached: float, tonight: np.ndarray, config: RefreshConfig) -> Freshness:
    """Fresh = at most `max_age_days` old and not proven to have decayed by more than `max_decay`.

    `reached` is the teacher's mean validation NDCG@10 when it was trained, `tonight` (C,) its NDCG@10 of each of tonight's
    validation users. Decay must be proven, by the upper one-sided 95 % bound of tonight's mean (normal approximation):
    the two windows hold different users, and in a small shop chance alone moves their means by a tenth.
    """
    if age_days > config.max_age_days:
        return Freshness(False, f"the teacher is {age_days:.1f} days old, {config.max_age_days:g} are allowed")
    now = mean_interval(tonight)
    if now.high < reached * (1 - config.max_decay):
        return Freshness(
            False,
            f"the teacher has decayed: validation NDCG@10 {now.value:.4f}, at most {now.high:.4f}, was {reached:.4f}",
        )
    return Freshness(
        True, f"the teacher is {age_days:.1f} days old and validates at {now.value:.4f} (was {reached:.4f})"
    )
