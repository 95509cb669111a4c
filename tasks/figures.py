"""A model's report as one row of figures with bounds, for the night's report and the model card. No orchestrator."""

from collections.abc import Mapping

import numpy as np

from recsys.evaluate import ModelReport
from recsys.membership import Membership
from recsys.small_cells import FEWEST, withheld
from recsys.statistics import mean_interval
from recsys.story import Estimate, MembershipRow, ModelRow, Role
from tasks.adapters.store import Store

ROLES: Mapping[str, Role] = {"teacher": "teacher", "student": "student", "artifact": "artifact", "champion": "champion"}


def figures(store: Store, role: str, digest: str, report: ModelReport) -> ModelRow:
    """The row of the model in a `role`, whose report is the object `digest`."""
    taken = store.measured("evaluate", digest)
    values = dict(report.metrics)
    if report.cross_entropy is not None:
        values["cross_entropy"] = report.cross_entropy  # nats
    users = np.isfinite(report.unseen_hit_at_10)
    told = not withheld([int(users.sum()), int((~users).sum())])[0]
    unseen = report.unseen_hit_at_10[users & told]
    return ModelRow(
        name=role.replace("_", "-"),
        role=ROLES.get(role, "baseline"),
        metrics={name: _estimate(each) for name, each in values.items()},
        coverage=report.coverage_at_10,
        popularity=report.popularity_at_10,
        bytes=report.bytes or None,
        p50_ms=taken.get("p50_ms"),
        p99_ms=taken.get("p99_ms"),
        unseen=_estimate(unseen),
        unseen_users=len(unseen),
        membership=_membership(report.membership) if report.membership else None,
    )


def _membership(found: Membership) -> MembershipRow:
    auc, advantage, caught, control = (
        Estimate(each.value, each.low, each.high) if each else Estimate(None)
        for each in (found.auc, found.advantage, found.caught, found.control)
    )
    return MembershipRow(found.users, auc, advantage, caught, control)


def _estimate(values: np.ndarray) -> Estimate:
    """Absent where a value is not finite: the gate has refused the model, and the report says so. Or of too few users."""
    if len(values) < FEWEST or not np.isfinite(values).all():
        return Estimate(None)
    interval = mean_interval(values)
    return Estimate(interval.value, interval.low, interval.high)
