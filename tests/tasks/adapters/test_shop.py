"""The shop that a home remembers: who has the last word on it, and what is refused."""

import pytest

from recsys.errors import ConfigError, HomeError
from tasks.adapters.settings import Settings
from tasks.adapters.shop import Shop


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in ("EVENTS", "ITEMS", "COLUMNS", "TIMEZONE"):
        monkeypatch.delenv(f"RECSYS_{name}", raising=False)
    for name in ("a.csv", "b.csv", "items.csv"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return Settings.from_environment(tmp_path / "home").prepare()


def test_a_new_home_has_the_built_in_shop_and_utc(settings):
    assert Shop.of(settings) == Shop(events="", items="", columns={}, timezone="UTC")


def test_what_was_said_is_remembered(settings, tmp_path):
    given = {"events": "a.csv", "items": "items.csv", "columns": "item_id=SKU", "timezone": "Europe/Berlin"}
    Shop.of(settings, given).remember(settings)
    expected = Shop(str(tmp_path / "a.csv"), str(tmp_path / "items.csv"), {"item_id": "SKU"}, "Europe/Berlin")
    assert Shop.of(settings) == expected
    assert Shop.of(settings, {"events": "", "timezone": ""}) == expected, "an empty option says nothing"


def test_an_option_is_before_the_environment_and_that_before_memory(settings, tmp_path, monkeypatch):
    Shop.of(settings, {"timezone": "Asia/Tokyo"}).remember(settings)
    monkeypatch.setenv("RECSYS_TIMEZONE", "Europe/Rome")
    monkeypatch.setenv("RECSYS_EVENTS", "a.csv")
    assert Shop.of(settings).timezone == "Europe/Rome"
    said = Shop.of(settings, {"timezone": "Europe/Paris", "events": "b.csv"})
    assert (said.timezone, said.events) == ("Europe/Paris", str(tmp_path / "b.csv"))


def test_other_events_are_another_shop(settings, tmp_path):
    Shop.of(settings, {"events": "a.csv", "items": "items.csv", "timezone": "Asia/Tokyo"}).remember(settings)
    assert Shop.of(settings, {"events": "b.csv"}) == Shop(events=str(tmp_path / "b.csv"), timezone="Asia/Tokyo")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"events": "nowhere.csv"}, r"nowhere\.csv does not exist .--events"),
        ({"items": "nowhere.csv"}, r"nowhere\.csv does not exist .--items"),
        ({"columns": "SKU"}, "does not pair our column names"),
        ({"timezone": "Berlin"}, "there is no time zone 'Berlin'"),
        ({"timezone": "../../etc/passwd"}, "there is no time zone"),
    ],
)
def test_a_mistake_is_a_sentence(settings, given, message):
    with pytest.raises(ConfigError, match=message):
        Shop.of(settings, given)


def test_a_damaged_memory_is_said(settings):
    (settings.home / "shop.json").write_text('{"event": 1}')
    with pytest.raises(HomeError, match="name the shop again"):
        Shop.of(settings)
