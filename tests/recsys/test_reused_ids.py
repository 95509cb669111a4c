"""Ids that name other things than the night before: told with an example, and titles that were only corrected are not."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.catalog import appended
from recsys.reused_ids import reused_ids
from tests.recsys.test_dataset import catalog_file


def renamed(count: int) -> list[tuple[str, str, str]]:
    return [(f"i{n}", f"red bag {n}", f"blue lamp number{n}") for n in range(count)]


@pytest.mark.parametrize(
    ("count", "known", "told"), [(10, 1_000, True), (9, 9, False), (19, 2_000, False), (20, 2_000, True)]
)
def test_it_is_told_of_one_in_a_hundred_and_at_least_ten(count, known, told):
    said = reused_ids(renamed(count), known)
    assert (said is not None) == told
    if said:
        assert f"{count} of {known:,} items of earlier nights" in said
        assert "as i0: red bag 0, now blue lamp number0;" in said


@pytest.mark.parametrize(
    ("before", "now"),
    [("RED BAG", "red bag, large"), ("bag (red)", "a new bag"), ("赤い鞄", "赤い大きな鞄"), ("???", "???")],
)
def test_a_title_that_was_corrected_keeps_a_word(before, now):
    assert reused_ids([(f"i{n}", before, now) for n in range(50)], 50) is None


def test_titles_without_a_word_are_their_own():
    assert reused_ids([(f"i{n}", "???", "!!!") for n in range(50)], 50) is not None


def test_what_a_title_holds_does_not_reach_the_terminal():
    said = reused_ids([("i", "a\x1b[31m" + "b" * 9_000, "c\u202e") for _ in range(10)], 10)
    assert said is not None
    assert said.isprintable()
    assert len(said) < 500


def test_a_night_whose_file_gives_old_ids_to_new_things_says_so_and_one_with_new_items_does_not(tmp_path):
    events = pa.array([f"i{n}" for n in range(20)])
    bags = [(f"i{n}", f"red bag {n}", None, None) for n in range(30)]
    first, said = appended(events, catalog_file(tmp_path / "a", *bags), None)
    assert said == ()
    pq.write_table(first, tmp_path / "catalog.parquet")
    lamps = [(f"j{n}", "blue lamp", None, None) for n in range(30)]
    assert appended(events, catalog_file(tmp_path / "b", *bags, *lamps), tmp_path / "catalog.parquet")[1] == ()
    given_anew = [(f"i{n}", f"blue lamp x{n}" if n < 15 else None, None, None) for n in range(30)]
    _, said = appended(events, catalog_file(tmp_path / "c", *given_anew), tmp_path / "catalog.parquet")
    assert len(said) == 1
    assert "15 of 15 items of earlier nights" in said[0]
