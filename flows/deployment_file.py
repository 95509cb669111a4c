"""The file of deployments as it is applied to a home: its shop and clock are filled in, what people changed is kept.

People change a deployment in Prefect's pages: its hour, a section of knobs, whether it is paused. What they changed is
what differs from the file that was applied last; all else follows the file, so that an upgrade takes effect.
"""

import contextlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.utilities.importtools import import_object
from pydantic import TypeAdapter, ValidationError

from tasks.adapters.shop import Shop
from tasks.night import Source

Entry = Mapping[str, Any]
"""A part of a YAML file: a deployment or a schedule of one."""


def fill(
    file: Entry, shop: Shop, there: Mapping[str, DeploymentResponse] | None = None, last: Entry | None = None
) -> dict[str, Any]:
    """The file for this shop and clock. `there` is what the server has, by name, and `last` the file applied last."""
    applied = {each["name"]: each for each in (last or {}).get("deployments", [])}
    deployments = []
    for each in file["deployments"]:
        ours = _for_shop(each, shop)
        known = (there or {}).get(each["name"])
        deployments.append(_keeping_changes(ours, known, applied.get(each["name"])) if known else ours)
    return {"pull": file["pull"], "deployments": deployments}


def _for_shop(entry: Entry, shop: Shop) -> dict[str, Any]:
    parameters = dict(entry.get("parameters", {}))
    if "source" in parameters:
        source = Source(events=shop.events, items=shop.items, columns=shop.columns)
        parameters["source"] = source.model_dump(mode="json")
    schedules = [{**schedule, "timezone": shop.timezone, "active": True} for schedule in entry.get("schedules", [])]
    return {**entry, "parameters": parameters, "schedules": schedules, "paused": False}


def _keeping_changes(ours: Entry, known: DeploymentResponse, applied: Entry | None) -> dict[str, Any]:
    kept = _still_fitting(ours["entrypoint"], known.parameters, but=ours["parameters"])
    before = {schedule["slug"]: schedule for schedule in (applied or {}).get("schedules", [])}
    schedules = list(_schedules(ours["schedules"], known.schedules, before))
    return {**ours, "parameters": {**kept, **ours["parameters"]}, "schedules": schedules, "paused": known.paused}


def _schedules(
    ours: Iterable[Entry], known: Collection[DeploymentSchedule], before: Mapping[str, Entry]
) -> Iterable[dict[str, Any]]:
    """Ours, unless a person changed or removed one since; and those that a person added."""
    by_slug = {schedule.slug: _as_written(schedule) for schedule in known if schedule.slug}
    for schedule in ours:
        slug = schedule["slug"]
        there, last = by_slug.get(slug), before.get(slug)
        if there is None and last is None:
            yield dict(schedule)  # it is new
        elif there is not None and (last is None or _when(there) == _when(last)):
            yield {**schedule, "active": there["active"]}
        elif there is not None:
            yield there
    slugs = {schedule["slug"] for schedule in ours}
    yield from (_as_written(each) for each in known if each.slug not in slugs and each.slug not in before)


def _when(schedule: Entry) -> tuple[str | None, str | None]:
    return schedule.get("cron"), schedule.get("timezone")


def _as_written(schedule: DeploymentSchedule) -> dict[str, Any]:
    """A schedule that the server has, as the file would say it."""
    said = {**schedule.schedule.model_dump(mode="json"), "slug": schedule.slug, "parameters": schedule.parameters}
    return {name: value for name, value in said.items() if value not in (None, {})} | {"active": bool(schedule.active)}


def _still_fitting(entrypoint: str, parameters: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
    """The parameters that this version's flow knows and accepts: knobs come and go with an upgrade."""
    kept = {name: value for name, value in parameters.items() if name not in but}
    if not kept:
        return {}
    asked = inspect.signature(import_object(entrypoint).fn).parameters
    fitting = {}
    for name in kept.keys() & asked.keys():
        with contextlib.suppress(ValidationError):
            TypeAdapter(asked[name].annotation).validate_python(kept[name])
            fitting[name] = kept[name]
    return fitting
