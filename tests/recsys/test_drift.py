"""Drift that was planted is found, field by field; without it, and in small samples, nothing is."""

import numpy as np
import pyarrow as pa
import pytest

from recsys.drift import by_chance, drift_of, effective_size, psi
from recsys.event_log import EventLog
from recsys.split import DAY

TRAINED = 19_000 * DAY + 4 * DAY  # a Monday, 2022-01-17
KINDS, CATEGORIES = ["view", "purchase"], ["cups", "pens", "lamps"]


def log_of(users, items, times, kinds=None, as_of=TRAINED + 14 * DAY) -> EventLog:
    """Any (E,) arrays as a log: users and items are numbered in the order of their first event."""
    order = np.argsort(times, kind="stable")
    users, user = _numbered(np.asarray(users)[order])
    items, code = _numbered(np.asarray(items)[order])
    kinds = np.asarray(kinds)[order] if kinds is not None else np.full(len(order), None)
    return EventLog(
        tokens=np.array([f"{number:032x}" for number in users], "S32"),
        item_ids=pa.array([f"item-{number}" for number in items]),
        categories=pa.array([CATEGORIES[number % 3] for number in items]),
        users=user,
        codes=(code + 1).astype(np.int32),
        times=np.asarray(times)[order],
        kinds=pa.array(list(kinds), pa.string()),
        as_of=as_of,
        repeats="allow",
    )


def _numbered(values):
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(distinct), np.int64)
    rank[np.argsort(first)] = np.arange(len(distinct))
    return distinct[np.argsort(first)], rank[inverse]


def shop(rng, start, days, users=400, events=8, items=60, hours=(8, 20), weekdays=range(7), view=0.7, zipf=1.2):
    """Events of `users`, each with about `events` a fortnight, from day `start` after the training cut."""
    n = int(users * events * days / 14)
    day = rng.choice([d for d in range(start, start + days) if (TRAINED // DAY + d + 3) % 7 in weekdays], n)
    times = TRAINED + day * DAY + rng.integers(hours[0] * 3600, hours[1] * 3600, n)
    weights = 1 / np.arange(1, items + 1) ** zipf
    return (
        rng.integers(users, size=n),
        rng.choice(items, n, p=weights / weights.sum()),
        times,
        np.where(rng.random(n) < view, *KINDS),
    )


def looked_at(seed=0, **changed):
    rng = np.random.default_rng(seed)
    parts = zip(shop(rng, -84, 84), shop(rng, 0, 14, **changed), strict=True)
    return drift_of(log_of(*(np.concatenate(pair) for pair in parts)), TRAINED, 14, 0.25)


def test_shares_of_a_few_users_are_not_told_nor_is_the_next_smallest():
    rng = np.random.default_rng(0)
    parts = [shop(rng, -84, 84), shop(rng, 0, 14)]
    night = np.full(3, TRAINED + DAY + 3600)  # three users at one in the morning, and newcomers
    parts.append((np.array([900, 901, 902]), np.zeros(3, int), night, np.full(3, KINDS[0])))
    drift = drift_of(log_of(*(np.concatenate(each) for each in zip(*parts, strict=True))), TRAINED, 14, 0.25)
    hour = next(field for field in drift.fields if field.field == "hour")
    told = dict(zip(hour.bins, hour.new, strict=True))
    assert told["00-03"] is None
    assert told["03-06"] == 0.0, "nobody's share tells of nobody"
    assert sum(share is None for share in hour.new) == 2, "one more, or the others would tell it"
    assert None not in hour.reference
    assert (drift.new_users, drift.new_user_events) == (None, None)
    assert hour.psi > 0, "what is computed is computed of all"


@pytest.mark.parametrize("seed", range(8))
def test_the_same_shop_does_not_drift(seed):
    drift = looked_at(seed)
    assert {field.field for field in drift.fields} == {
        "hour", "weekday", "event", "item popularity", "user activity", "category",
    }  # fmt: skip
    assert drift.drifted == ()
    assert max(field.psi for field in drift.fields) < 0.1
    assert (drift.new_users, drift.new_items) == (0, 0)
    assert drift.events_a_day == pytest.approx(drift.reference_events_a_day, rel=0.1)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("hour", {"hours": (0, 12)}),
        ("weekday", {"weekdays": (5, 6)}),
        ("event", {"view": 0.2}),
        ("item popularity", {"zipf": 0.0}),
        ("user activity", {"users": 100, "events": 32}),
    ],
)
def test_planted_drift_is_found_in_its_field(field, changed):
    drift = looked_at(**changed)
    assert field in drift.drifted
    others = set(drift.drifted) - {field}
    assert others <= {"category"}, "a flat demand shifts the categories, too"


def test_new_kinds_categories_users_and_items_are_counted():
    rng = np.random.default_rng(0)
    before, after = shop(rng, -84, 84), shop(rng, 0, 14)
    after = (np.where(after[0] < 100, after[0] + 10_000, after[0]), after[1], after[2], np.full(len(after[3]), "like"))
    after = (after[0], np.where(after[1] == 0, 999, after[1]), *after[2:])
    drift = drift_of(log_of(*(np.concatenate(p) for p in zip(before, after, strict=True))), TRAINED, 14, 0.25)
    (event,) = (field for field in drift.fields if field.field == "event")
    assert event.drifted
    assert dict(zip(event.bins, event.new, strict=True)) == {"view": 0, "purchase": 0, "other": 1}
    assert drift.new_users == pytest.approx(0.25, abs=0.03)
    assert drift.new_items == pytest.approx(1 / 60, abs=0.01)
    assert drift.new_item_events == pytest.approx(np.mean(after[1] == 999))


def test_a_large_index_in_a_small_sample_is_chance():
    """Ten users of one evening: their hours are far from the shop's, and say nothing."""
    few = looked_at(users=10, events=8, hours=(14, 20))
    (hour,) = (field for field in few.fields if field.field == "hour")
    assert hour.psi > 0.25
    assert hour.psi < hour.by_chance
    assert not hour.drifted


def test_events_of_one_user_are_one_voice():
    assert effective_size(np.repeat(np.arange(50), 7)) == pytest.approx(50)
    assert effective_size(np.array([0] * 98 + [1, 2])) == pytest.approx(100**2 / (98**2 + 2))
    assert effective_size(np.empty(0, np.int64)) == 0


def test_the_index_by_hand():
    assert psi(np.array([50, 50]), np.array([50, 50])) == 0
    p, q = np.array([99.5 / 150, 50.5 / 150]), np.array([50.5 / 150, 99.5 / 150])
    assert psi(np.array([99, 50]), np.array([50, 99])) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert np.isfinite(psi(np.array([100, 0]), np.array([0, 100])))


def test_chance_is_chi_square():
    """7.815 is the 95 % quantile of chi-square with three degrees of freedom; here it is that of 1 - 0.05 / 6."""
    from scipy.stats import chi2

    for bins in (3, 5, 8, 21):
        exact = chi2.ppf(1 - 0.05 / 6, bins - 1) * (1 / 300 + 1 / 200)
        assert by_chance(bins, (300, 200)) == pytest.approx(exact, rel=0.01)
    assert by_chance(3, (0, 10)) == np.inf


def test_samples_without_a_shift_seldom_pass_for_drift():
    rng = np.random.default_rng(0)
    shares, bound = np.array([0.4, 0.3, 0.2, 0.1]), by_chance(4, (150, 150))
    beyond = [psi(rng.multinomial(150, shares), rng.multinomial(150, shares)) > bound for _ in range(2000)]
    assert 0.002 < np.mean(beyond) < 0.02, "one look at one field in 120"


def test_half_a_week_says_nothing_of_weekdays():
    rng = np.random.default_rng(0)
    parts = zip(shop(rng, -84, 84), shop(rng, 0, 4), strict=True)
    log = log_of(*(np.concatenate(pair) for pair in parts), as_of=TRAINED + 4 * DAY)
    drift = drift_of(log, TRAINED, 14, 0.25)
    assert "weekday" not in {field.field for field in drift.fields}
    assert drift.since == TRAINED


def test_only_what_the_champion_learnt_is_the_reference():
    rng = np.random.default_rng(0)
    log = log_of(*(np.concatenate(p) for p in zip(shop(rng, -84, 84), shop(rng, 0, 14, view=0.2), strict=True)))
    assert drift_of(log, TRAINED, 14, 0.25).drifted == ("event",)
    assert drift_of(log, int(log.times[0]), 14, 0.25) is None
    assert drift_of(log, log.as_of, 14, 0.25) is None


def test_a_field_that_the_shop_does_not_have_is_left_out():
    rng = np.random.default_rng(0)
    parts = [np.concatenate(p) for p in zip(shop(rng, -84, 84), shop(rng, 0, 14), strict=True)]
    assert "event" not in {field.field for field in drift_of(log_of(*parts[:3]), TRAINED, 14, 0.25).fields}
