"""The newest day's ratings against those before: another scale and a day all alike are told, where a minimum is asked."""

import pytest

from recsys.config import EventsConfig
from recsys.dataset import build
from recsys.rating_scale import Ratings, rating_scale
from recsys.split import DAY
from tests.recsys.test_dataset import accepted, plan

STARS = Ratings(1_000, 1, 5)


@pytest.mark.parametrize(
    ("newest", "earlier", "told"),
    [
        (Ratings(100, 10, 100), STARS, "rated up to 100, the days before up to 5: "),
        (Ratings(100, 0.2, 1), STARS, "rated up to 1, the days before up to 5: "),
        (Ratings(100, 5, 5), STARS, "all 100 ratings of the newest day are 5: "),
        (Ratings(100, 1, 5), STARS, None),
        (Ratings(100, 1, 4), STARS, None),
        (Ratings(29, 5, 5), STARS, None),
        (Ratings(100, 5, 5), Ratings(299, 1, 5), None),
        (Ratings(100, 1, 1), Ratings(1_000, 1, 1), None),
        (Ratings(100, -1, 0), Ratings(1_000, -1, 0), None),
    ],
)
def test_what_is_told(newest, earlier, told):
    said = rating_scale(newest, earlier, 4)
    assert (said is None) == (told is None)
    if told:
        assert told in said
        assert "events.min_rating = 4" in said


@pytest.mark.parametrize(("minimum", "told"), [(4.0, True), (None, False)])
def test_a_night_looks_at_its_newest_day_where_a_minimum_is_asked(tmp_path, minimum, told):
    end = 20_000 * DAY
    rows = [(f"u{n % 9}", f"i{n % 13}", end - 1 - n * 2_000) for n in range(600)]
    ratings = [80.0 if time >= end - DAY else float(1 + n % 5) for n, (_, _, time) in enumerate(rows)]
    rated = [(*row, "rate", rating) for row, rating in zip(rows, ratings, strict=True)]
    file = accepted(tmp_path / "accepted.parquet", rated[::-1])
    asked = plan(tmp_path, events=EventsConfig(min_rating=minimum), as_of=end)
    made = build([file], None, None, tmp_path / "out", asked)
    assert any("the newest day is rated up to 80, the days before up to 5" in note for note in made.notes) == told
