"""What MLflow has on record about nights: which ended and when, and every text that was written beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tasks.adapters.registry import Registry
from tasks.adapters.tracking import EXPERIMENT, Tracking

_DECIDED = "tags.`recsys.decision` LIKE '%'"
_NIGHTS = "tags.`prefect.flow_run_id` LIKE '%'"


@dataclass(frozen=True)
class NightRun:
    """One run of a flow in MLflow. `ended` is now while it runs."""

    run_id: str
    name: str
    began: datetime
    ended: datetime
    decision: str  # empty when it did not come to one


@dataclass(frozen=True)
class Written:
    """A text that MLflow keeps, and where. It may hold what nobody must read, so it is never shown."""

    where: str
    text: str = field(repr=False)


def nights_ended(tracking: Tracking, most: int) -> list[NightRun]:
    """Nights that ended well, newest first."""
    return _nights(tracking, f"attributes.status = 'FINISHED' and {_DECIDED}", most)


def nights(tracking: Tracking, most: int) -> list[NightRun]:
    """Every run of a flow, however it ended, newest first."""
    return _nights(tracking, _NIGHTS, most)


def newest_start(tracking: Tracking) -> datetime | None:
    """When the newest run of any kind began."""
    runs = _search(tracking, "", 1)
    return _at(runs[0].info.start_time) if runs else None


def written(tracking: Tracking, registry: Registry, models: tuple[str, ...], most: int) -> Iterator[Written]:
    """Parameters and tags of the newest runs, and tags and descriptions of every version."""
    for run in _search(tracking, "", most):
        name = f"run {run.info.run_name} ({run.info.run_id})"
        for kind, values in (("parameter", run.data.params), ("tag", run.data.tags)):
            yield from _texts(f"{name}, {kind}", values)
    for model in models:
        for version in registry.all_versions(model):
            yield from _texts(f"{model} version {version.number}, tag", version.tags)
            yield Written(f"{model} version {version.number}, description", version.description)


def _texts(where: str, values: Mapping[str, str]) -> Iterator[Written]:
    return (Written(f"{where} {name}", f"{name}={value}") for name, value in values.items())


def _nights(tracking: Tracking, condition: str, most: int) -> list[NightRun]:
    return [
        NightRun(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            began=_at(run.info.start_time),
            ended=_at(run.info.end_time) if run.info.end_time else datetime.now(UTC),
            decision=run.data.tags.get("recsys.decision", ""),
        )
        for run in _search(tracking, condition, most)
        if "mlflow.parentRunId" not in run.data.tags
    ]


def _search(tracking: Tracking, condition: str, most: int) -> list[Any]:
    """Newest first; none where there is no experiment yet."""
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    order = ["attributes.start_time DESC"]
    return list(tracking.client.search_runs([experiment.experiment_id], condition, order_by=order, max_results=most))


def _at(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
