"""What a step takes, by what earlier nights recorded: seconds from MLflow, bytes from the store's manifests."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.adapters.store import Store
from tasks.adapters.tracking import EXPERIMENT, Tracking
from tasks.explain import earlier

_MAKES: Mapping[str, tuple[str, ...]] = {"validate": ("items", "validate"), "compress": ("compress", "artifact")}
"""Steps of the store behind a step of the night, where they are not of its name."""


@dataclass(frozen=True)
class Estimate:
    """Of one step. None: no earlier night says."""

    seconds: float | None
    bytes: int | None


def estimate(store: Store, tracking: Tracking, step: str, *, made: bool) -> Estimate:
    """Of a step that is `made` tonight, or found."""
    return Estimate(_seconds(tracking, step, made), _bytes(store, step) if made else 0)


def _seconds(tracking: Tracking, step: str, made: bool) -> float | None:
    """What it took the last time it was made, or found."""
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    condition = f"metrics.`reused/{step}` = {0 if made else 1}"
    newest_first = ["attributes.start_time DESC"]
    for run in tracking.client.search_runs([experiment.experiment_id], condition, 1, 1, newest_first):
        return float(run.data.metrics[f"seconds/{step}"])
    return None


def _bytes(store: Store, step: str) -> int | None:
    """Of the newest object of each step behind it; of an evaluation all reports on the dataset of the newest."""
    total = None
    for name in _MAKES.get(step, (step,)):
        made = earlier(store, name)
        if made:
            together = [m for m in made if m.parents[-1] == made[0].parents[-1]] if name == "evaluate" else made[:1]
            total = (total or 0) + sum(file.bytes for manifest in together for file in manifest.files)
    return total
