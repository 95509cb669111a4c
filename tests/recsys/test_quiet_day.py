"""The newest day against the same day of earlier weeks: what is told, what is left alone, and that days are counted rightly."""

import numpy as np
import pytest

from recsys.dataset import build
from recsys.quiet_day import DAYS, quiet_day
from recsys.split import DAY
from tests.recsys.test_dataset import accepted, plan

WEEK = [200, 100, 100, 100, 100, 10, 0]  # backwards from a Saturday; closed on Sundays
SHOP = (WEEK * 10)[:DAYS]


@pytest.mark.parametrize("newest", [0, 20, 49])
def test_a_day_of_less_than_a_quarter_of_its_fellows_is_told_with_both_numbers(newest):
    said = quiet_day([newest, *SHOP[1:]])
    assert said is not None
    assert f"the newest day has {newest:,} events, that day of the week usually 200:" in said


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("as always", SHOP),
        ("a quarter is not less than a quarter", [50, *SHOP[1:]]),
        ("it is always closed then", [0, *SHOP[:-1]]),
        ("a day that never has many", [0, *([29] * (DAYS - 1))]),
        ("three weeks say nothing", [0, *SHOP[1:22]]),
        ("nothing before", [0]),
        ("one great day among eight is not what is usual", [20, *SHOP[1:7], 9_000, *([20, *SHOP[1:7]] * 7)]),
    ],
)
def test_nothing_is_told_of(name, days):
    assert quiet_day(days) is None


def test_four_weeks_are_enough():
    assert quiet_day([0, *SHOP[1:29]]) is not None


def of_days(end: int, counts: list[int]) -> list[tuple[str, str, int]]:
    """Events, as many on each day before `end` as `counts` say, the newest day first: its first and last second among them."""
    times = [end - DAY * (back + 1) + np.linspace(0, DAY - 1, count).astype(int) for back, count in enumerate(counts)]
    return [(f"u{n % 9}", f"i{n % 13}", int(time)) for n, time in enumerate(np.concatenate(times)[::-1])]


@pytest.mark.parametrize(("newest", "told"), [(7, True), (8, False)])
def test_the_night_counts_the_days_before_its_as_of_repeats_and_all_and_tells_of_a_quiet_one(tmp_path, newest, told):
    end = 20_000 * DAY + 1_234
    days = [newest, *([32] * 35)]
    file = accepted(
        tmp_path / "accepted.parquet", [*of_days(end, days), ("u1", "i1", end), ("u1", "i2", end + 5 * DAY)]
    )
    made = build([file], None, None, tmp_path / "out", plan(tmp_path, as_of=end))
    assert made.after_as_of == 2
    assert (
        any(f"the newest day has {newest} events, that day of the week usually 32:" in note for note in made.notes)
        == told
    )
