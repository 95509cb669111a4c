"""Benchmarks of growth: which sizes are left to run, and what slope their costs have."""

import json

import pytest

from benchmarks.growth import missing, sizes
from benchmarks.growth_told import as_markdown, draw, slope


def row(sweep: str, events: int, users: int, items: int, seconds: float) -> dict:
    steps = {name: {"seconds": seconds, "cpu_seconds": seconds, "peak_mb": 500.0} for name in ("build", "teach")}
    return {"sweep": sweep, "events": events, "users": users, "items": items, "cpus": 2, "steps": steps}


def test_what_is_there_is_not_run_again_and_the_smallest_comes_first(tmp_path):
    first, *others = sorted(sizes(), key=lambda size: (size.events, size.items, size.users))
    rows = tmp_path / "growth.jsonl"
    assert missing(rows, 10**9) == [first, *others]
    rows.write_text(json.dumps(row(first.sweep, first.events, first.users, first.items, 1.0)) + "\n")
    assert missing(rows, 10**9) == others
    assert {size.events for size in missing(rows, 1_000_000)} == {300_000, 1_000_000}


def test_the_slope_of_a_power_is_its_exponent():
    sizes = [1e5, 1e6, 1e7]
    assert slope(sizes, [size**1.3 for size in sizes]) == pytest.approx(1.3)
    assert slope(sizes, [7.0] * 3) == pytest.approx(0.0)
    assert slope([1e5], [1.0]) != slope([1e5], [1.0])


def test_a_table_has_every_step_its_slopes_and_a_picture(tmp_path):
    rows = [row("events", 10**n, 10**n // 20, 50_000, 10.0 ** (n - 5)) for n in (5, 6, 7)]
    told = as_markdown(rows)
    assert "| slope | nan | 1.00 | 1.00 |" in told
    assert "| 1,000,000 | - | 10.0 s, 500 MB |" in told
    draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
