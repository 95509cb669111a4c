"""What is filled into deployments/prefect.yaml: the home's shop and clock, and what people changed in Prefect's pages."""

from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from flows.deploying import FILE
from flows.deployment_file import fill
from tasks.adapters.shop import Shop

WRITTEN = yaml.safe_load(FILE.read_text())
SHOP = Shop(events="/data/events", items="/data/items.parquet", columns={"item_id": "SKU"}, timezone="Europe/Berlin")
APPLIED = fill(WRITTEN, SHOP)
HOURLY = {"slug": "hourly", "cron": "15 * * * *", "timezone": "Europe/Berlin"}


def by_name(file):
    return {each["name"]: each for each in file["deployments"]}


def schedule(slug="hourly", cron="15 * * * *", timezone="Europe/Berlin", active=True):
    return DeploymentSchedule(schedule=CronSchedule(cron=cron, timezone=timezone), slug=slug, active=active)


def monitor_when_it_is(*schedules, parameters=None, paused=False, shop=SHOP, last=APPLIED):
    """The monitor's entry when the server has it so."""
    known = DeploymentResponse(
        name="monitor", flow_id=uuid4(), schedules=schedules, parameters=parameters or {}, paused=paused
    )
    return by_name(fill(WRITTEN, shop, {"monitor": known}, last))["monitor"]


def test_a_new_home_gets_the_file_with_its_shop_and_clock():
    new = by_name(APPLIED)
    assert list(new) == list(by_name(WRITTEN))
    for name in ("nightly", "refresh-teacher", "monitor"):
        source = new[name]["parameters"]["source"]
        assert source["events"] == "/data/events"
        assert source["items"] == "/data/items.parquet"
        assert source["columns"] == {"item_id": "SKU"}
        assert source.keys() == by_name(WRITTEN)[name]["parameters"]["source"].keys(), "whole"
    schedules = [schedule for each in new.values() for schedule in each["schedules"]]
    assert {schedule["timezone"] for schedule in schedules} == {"Europe/Berlin"}
    assert all(schedule["active"] for schedule in schedules)
    assert not any(each["paused"] for each in new.values())


def test_without_a_shop_only_what_is_always_said_is_added():
    for before, after in zip(WRITTEN["deployments"], fill(WRITTEN, Shop())["deployments"], strict=True):
        added = {"schedules": 0, "paused": False, "parameters": before.get("parameters", {})}
        assert {**after, "schedules": 0} == {**before, **added}


def test_filling_leaves_the_file_as_it_is():
    before = yaml.safe_dump(WRITTEN)
    monitor_when_it_is(schedule(active=False))
    assert yaml.safe_dump(WRITTEN) == before


def test_what_a_person_paused_stays_paused():
    assert monitor_when_it_is(schedule(active=False))["schedules"] == [{**HOURLY, "active": False}]
    assert monitor_when_it_is(schedule(), paused=True)["paused"] is True


@pytest.mark.parametrize("last", [APPLIED, None])
def test_what_nobody_changed_follows_the_file_and_the_clock(last):
    moved = monitor_when_it_is(schedule(), shop=Shop(timezone="Asia/Tokyo"), last=last)
    assert moved["schedules"] == [{**HOURLY, "timezone": "Asia/Tokyo", "active": True}]
    older = {"deployments": [{"name": "monitor", "schedules": [{**HOURLY, "cron": "0 * * * *"}]}]}
    assert monitor_when_it_is(schedule(cron="0 * * * *"), last=older)["schedules"] == [{**HOURLY, "active": True}]


def test_the_hour_that_a_person_chose_stays():
    (kept,) = monitor_when_it_is(schedule(cron="7 */2 * * *"), shop=Shop(timezone="Asia/Tokyo"))["schedules"]
    assert (kept["slug"], kept["cron"], kept["timezone"]) == ("hourly", "7 */2 * * *", "Europe/Berlin")


def test_a_schedule_that_a_person_added_stays_and_one_they_removed_is_gone():
    own = DeploymentSchedule(schedule=IntervalSchedule(interval=600), active=True)
    ours, theirs = monitor_when_it_is(schedule(), own)["schedules"]
    assert ours["slug"] == "hourly"
    assert theirs["interval"] == 600
    assert "slug" not in theirs
    assert monitor_when_it_is()["schedules"] == []


def test_a_new_version_brings_its_new_schedules_and_takes_its_old_ones():
    older = {"deployments": [{"name": "monitor", "schedules": [{**HOURLY, "slug": "formerly"}]}]}
    assert monitor_when_it_is(schedule(slug="formerly"), last=older)["schedules"] == [{**HOURLY, "active": True}]


def test_a_section_that_a_person_changed_stays_while_this_version_accepts_it():
    monitor = {"window_days": 14, "decay": 0.1}
    kept = monitor_when_it_is(parameters={"monitor": monitor, "source": {"events": "/old"}})["parameters"]
    assert kept["monitor"] == monitor
    assert kept["source"]["events"] == "/data/events", "the shop is the home's"
    for outdated in ({"monitor": {"no_such_knob": 1}}, {"monitor": {"decay": 7}}, {"no_such_section": {}}):
        assert monitor_when_it_is(parameters=outdated)["parameters"].keys() == {"source"}
