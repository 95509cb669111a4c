"""The bill: what the nights since the last promotion cost, and what a promoted model has cost."""

from collections.abc import Mapping

from recsys.story import Story
from tasks.adapters.registry import STUDENT
from tasks.night import Step

NIGHT, SINCE_PROMOTION, PROMOTED_MODEL = "cost/night", "cost/since_promotion", "cost/promoted_model"
"""Metrics of a night's run. Sums of the steps' `cost/<step>`, and no summands of another sum."""


def cost_since_promotion(at: Step) -> float:
    """Of the steps of every night and refresh after the night that made the last champion, tonight's until now included.

    What failed or was held costs the next model that is promoted.
    """
    versions = {version.number: version.run_id for version in at.registry.versions(STUDENT)}
    promoted = [versions.get(record.to, "") for record in at.ledger.chain().records if record.op == "promote"]
    last = next((run_id for run_id in reversed(promoted) if run_id not in ("", at.night.run_id)), None)
    return sum(_cost_of(metrics) for metrics in at.tracking.nights_after(last))


def bill(story: Story) -> dict[str, float]:
    """The sums of a night as metrics; a promoted model's only on the night that promoted it."""
    sums = {NIGHT: story.cost, SINCE_PROMOTION: story.cost_since_promotion}
    if story.decision == "PROMOTE":
        sums[PROMOTED_MODEL] = story.cost_since_promotion
    return {name: value for name, value in sums.items() if value is not None}


def _cost_of(metrics: Mapping[str, float]) -> float:
    sums = (NIGHT, SINCE_PROMOTION, PROMOTED_MODEL)
    return sum(value for name, value in metrics.items() if name.startswith("cost/") and name not in sums)
