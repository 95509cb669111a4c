"""Alarms in order, each with what to do; the page is one escaped piece; the JSON is plain."""

import json
from dataclasses import replace

import numpy as np
import pytest

from recsys.config import MonitorConfig
from recsys.drift import Drift, FieldDrift
from recsys.health import Age, FollowUp, Health
from recsys.health_page import render
from recsys.prequential import Aftermath, Decay
from recsys.split import DAY
from recsys.statistics import Interval

NOW = 1_700_000_000
CONFIG = MonitorConfig(max_age_days=3)
HITS = {
    name: np.tile(hits, 4)
    for name, hits in {"champion": [1.0, 0, 1], "most_popular": [0.0, 0, 1], "neighbours": [1.0, 0, 0]}.items()
}
HOUR = FieldDrift("hour", 0.4, 0.05, True, ("00-12", "12-24"), (0.5, 0.5), (0.2, 0.8))
DRIFT = Drift(
    NOW - 7 * DAY, NOW, 900, (HOUR, replace(HOUR, field="event", drifted=False)), 0.25, 0.1, 0.0, 0.0, 128, 120
)
FINE = Health(
    shop="events.parquet",
    now=NOW,
    champion=4,
    follow_up=FollowUp.of(Aftermath(4, NOW - 7 * DAY, NOW, 90, 1, HITS, HITS)),
    decay=Decay(False, "no loss of more than 20% is proven", Interval(0.0, -0.1, 0.1)),
    decay_advice="Roll back.",
    drift=replace(DRIFT, fields=(replace(HOUR, drifted=False),)),
    ages=(
        Age.of("newest event", NOW - DAY, NOW, CONFIG),
        Age.of("last batch scoring", None, NOW, CONFIG, needed=False),
    ),
    missed=(),
    notes=(),
)
ILL = replace(
    FINE,
    decay=Decay(True, "a loss of more than 20% is proven", Interval(-0.5, -0.6, -0.4)),
    drift=DRIFT,
    ages=(Age.of("newest event", NOW - 4 * DAY, NOW, CONFIG),),
    missed=(NOW - 2 * DAY, NOW - DAY),
    notes=("the alias was moved",),
)


def test_all_is_well():
    assert FINE.alarms == ()
    assert FINE.sentence == "Nothing is wrong"
    assert replace(FINE, champion=None).sentence == "There is no champion yet"


def test_alarms_say_what_and_what_to_do():
    assert [alarm.kind for alarm in ILL.alarms] == ["decayed", "missed", "stale", "drifted"]
    assert all(alarm.advice for alarm in ILL.alarms)
    assert ILL.sentence == (
        "A loss of more than 20% is proven. 2 nights should have ended well and did not. "
        "The newest event is 4.0 days old. Hour (PSI 0.40) drifted from the champion's training data"
    )


@pytest.mark.parametrize(
    ("at", "stale"), [(NOW, False), (NOW - 3 * DAY, False), (NOW - 3 * DAY - 1, True), (None, True)]
)
def test_what_is_too_old_is_stale(at, stale):
    assert Age.of("newest event", at, NOW, CONFIG).stale is stale


def test_what_need_not_be_there_is_not_missed_and_the_future_is_young():
    assert not Age.of("last batch scoring", None, NOW, CONFIG, needed=False).stale
    assert Age.of("newest event", NOW + DAY, NOW, CONFIG).days == 0


def test_json_and_metrics_are_plain_numbers():
    value = json.loads(ILL.to_json())
    assert [alarm["kind"] for alarm in value["alarms"]] == ["decayed", "missed", "stale", "drifted"]
    assert value["follow_up"]["hit_rate"]["champion"]["value"] == pytest.approx(2 / 3)
    assert value["follow_up"]["users"] == 12
    metrics = ILL.metrics()
    assert metrics["served/champion/hr_at_10"] == pytest.approx(2 / 3)
    assert metrics["psi/hour"] == 0.4
    assert metrics["decay/high"] == -0.4
    assert metrics["age_days/newest_event"] == 4
    assert (metrics["monitor/alarms"], metrics["monitor/nights_missed"]) == (4, 2)
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_the_page_tells_everything_and_escapes_it():
    hostile = "<script>alert(1)</script>"
    page = render(
        replace(ILL, shop=hostile, notes=(hostile,), drift=replace(DRIFT, fields=(replace(HOUR, bins=(hostile, "b")),)))
    )
    assert hostile not in page
    assert "&lt;script&gt;" in page
    assert page.count("decayed") >= 1
    for words in ("66.7", "neighbours", "25.0", "stale", "drifted", ["20.0\xa0", " → 80.0\xa0", ""][0]):
        assert words in page
    assert render(ILL) == render(ILL)


def test_rates_of_a_few_users_are_nowhere():
    hits = {name: values[:9] for name, values in HITS.items()}
    seen = replace(FINE, follow_up=FollowUp.of(Aftermath(4, NOW - 7 * DAY, NOW, 90, 1, hits, hits)))
    assert not [name for name in seen.metrics() if name.startswith("served/")]
    page, told = render(seen), json.loads(seen.to_json())["follow_up"]
    assert (told["users"], told["unserved"], told["hit_rate"], told["against"]) == (None, None, {}, {})
    assert "66.7" not in page
    assert "fewer than 10 users of them came back" in page
    assert "Fewer than 10 users with events had been served nothing" in page


def test_a_page_without_parts():
    page = render(replace(FINE, follow_up=None, drift=None, champion=None, ages=()))
    assert "There is no champion yet" in page
    assert "Drift" not in page
