"""deployments/prefect.yaml: every flow is there, its parameters are whole, its hours exist once a day, it tells no secret."""

import asyncio
import inspect
import re
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.server.schemas.schedules import CronSchedule
from pydantic import BaseModel, TypeAdapter

from tasks.adapters.supervisor import POOL
from tasks.night import Source

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
TEXT = FILE.read_text()
DEPLOYMENTS = {each["name"]: each for each in yaml.safe_load(TEXT)["deployments"]}
SCHEDULES = [(name, schedule["cron"]) for name, each in DEPLOYMENTS.items() for schedule in each.get("schedules", [])]
DAILY = [(name, cron) for name, cron in SCHEDULES if cron.split()[1] != "*"]
SECRET = re.compile(r"(?i)password|passwd|secret|token|api.?key|://[^/\s]+:[^/\s]+@")


@cache
def flow_of(name):
    return load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"])


def test_the_seven_are_there():
    names = ["nightly", "refresh-teacher", "score", "promote", "rollback", "monitor", "housekeeping"]
    assert list(DEPLOYMENTS) == names


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_its_entrypoint_is_a_flow_of_its_name(name):
    assert flow_of(name).name == name


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_person_reads_what_it_does(name):
    assert len(DEPLOYMENTS[name]["description"]) > 60
    assert "recsys" in DEPLOYMENTS[name]["tags"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_it_runs_once_at_a_time_and_refuses_what_is_wrong(name):
    each = DEPLOYMENTS[name]
    asked_by_people = name in ("promote", "rollback")  # an answer to a waiting candidate must not be thrown away
    strategy = "ENQUEUE" if asked_by_people else "CANCEL_NEW"
    assert each["concurrency_limit"] == {"limit": 1, "collision_strategy": strategy}
    assert each["enforce_parameter_schema"] is True
    assert each["work_pool"]["name"] == POOL


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_its_parameters_are_whole_sections_of_its_flow(name):
    signature = inspect.signature(flow_of(name).fn).parameters
    given = DEPLOYMENTS[name].get("parameters", {})
    assert given.keys() <= signature.keys()
    for section, value in given.items():
        read = TypeAdapter(signature[section].annotation).validate_python(value)
        assert isinstance(read, BaseModel)
        assert read.model_dump(mode="json") == value, "what is not named would fall back to its default, unseen"
    if "source" in signature:
        assert given["source"] == Source().model_dump(mode="json")


def test_whatever_needs_no_person_has_a_schedule():
    forms = {"promote", "rollback"}
    assert {name for name, _ in SCHEDULES} == DEPLOYMENTS.keys() - forms
    for name in DEPLOYMENTS.keys() - forms:
        required = [p for p in inspect.signature(flow_of(name).fn).parameters.values() if p.default is p.empty]
        assert required == [], "nobody is there to fill in a form"


def test_the_clock_is_set_in_one_place():
    assert len(re.findall(r"(?m)&timezone \S+$", TEXT)) == 1
    assert all(schedule["timezone"] == "UTC" for each in DEPLOYMENTS.values() for schedule in each.get("schedules", []))


def test_there_is_no_secret():
    assert not SECRET.search(re.sub(r"(?m)#.*$", "", TEXT))


@pytest.mark.parametrize(("name", "cron"), DAILY)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Europe/Helsinki", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("change", [datetime(2027, 3, 14), datetime(2027, 3, 28), datetime(2027, 10, 31)])
def test_prefect_keeps_the_local_hour_when_clocks_are_changed(name, cron, zone, change):
    """The very class that Prefect's scheduler asks. Each local time once, none left out."""
    start = (change - timedelta(days=16)).replace(tzinfo=UTC)
    runs = asyncio.run(
        CronSchedule(cron=cron, timezone=zone).get_dates(n=40, start=start, end=start + timedelta(days=32))
    )
    local = [run.astimezone(ZoneInfo(zone)) for run in runs]
    minute, hour = (int(field) for field in cron.split()[:2])
    assert {(at.hour, at.minute) for at in local} == {(hour, minute)}
    days = {at.date() for at in local}
    assert len(days) == len(local)
    step = 1 if cron.endswith("* * *") else 7
    assert {(later - earlier).days for earlier, later in zip(sorted(days), sorted(days)[1:], strict=False)} == {step}


def test_no_time_zone_of_the_world_skips_or_repeats_these_hours():
    hours = {int(cron.split()[1]) for _, cron in DAILY}
    assert hours <= set(range(4, 21)), "see the reason in the file"
    touched = {zone: hours & hours_touched(ZoneInfo(zone)) for zone in available_timezones()}
    assert {zone: hit for zone, hit in touched.items() if hit} == {}
    assert 2 in hours_touched(ZoneInfo("Europe/Berlin")), "the look finds what there is"


def hours_touched(zone: ZoneInfo) -> set[int]:
    """Local hours that a change of clocks skips or repeats, within three years from now."""
    touched = set()
    at, before = datetime(2026, 1, 1, tzinfo=UTC), None
    for _ in range(3 * 366 * 24 // 6):
        offset = at.astimezone(zone).utcoffset()
        if before is not None and offset != before:
            touched |= _between(at - timedelta(hours=6), zone)
        at, before = at + timedelta(hours=6), offset
    return touched


def _between(at: datetime, zone: ZoneInfo) -> set[int]:
    """Of the one change in the six hours from `at`."""
    before = at.astimezone(zone).utcoffset()
    while at.astimezone(zone).utcoffset() == before:
        at += timedelta(minutes=15)
    ends = sorted(at.replace(tzinfo=None) + offset for offset in (before, at.astimezone(zone).utcoffset()))
    return {(ends[0] + timedelta(minutes=m)).hour for m in range(0, int((ends[1] - ends[0]).total_seconds() // 60), 15)}
