"""The score is earned by green tests alone: failed, skipped, absent and old ones earn nothing."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.ml_test_score import Run, earned, main, score, told
from benchmarks.reliability import Item
from recsys.errors import ConfigError

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
XML = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" timestamp="{ran}">
<testcase classname="tests.recsys.test_a" name="test_green"/>
<testcase classname="tests.recsys.test_a" name="test_cases[1-a.b]"/>
<testcase classname="tests.recsys.test_a" name="test_cases[2]"><failure message="x">y</failure></testcase>
<testcase classname="tests.recsys.test_a" name="test_cases[3]"><skipped message="x"/></testcase>
<testcase classname="tests.recsys.test_a" name="test_setup"><error message="x"/></testcase>
<testcase classname="tests.test_b" name="test_skipped[1]"><skipped message="x"/></testcase>
<testcase classname="tests.test_b" name="test_skipped[2]"/>
<testcase classname="tests.flows.cli.test_c" name="test_many[1]"/>
<testcase classname="tests.flows.cli.test_c" name="test_many[2]"/>
</testsuite></testsuites>"""
GREEN, MANY = "recsys/test_a.py::test_green", "flows/cli/test_c.py::test_many"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.xml").write_text(XML.format(ran=NOW.isoformat()))
    return Run.read(tmp_path / "run.xml", NOW + timedelta(days=7))


@pytest.mark.parametrize(
    ("tests", "points", "lacks"),
    [
        ([GREEN, MANY], 0.5, {}),
        ([GREEN, "recsys/test_a.py::test_cases"], 0, {"recsys/test_a.py::test_cases": "failed"}),
        (["recsys/test_a.py::test_setup"], 0, {"recsys/test_a.py::test_setup": "failed"}),
        ([GREEN, "test_b.py::test_skipped"], 0, {"test_b.py::test_skipped": "skipped"}),
        (["recsys/test_a.py::test_gone"], 0, {"recsys/test_a.py::test_gone": "absent"}),
        ([], 0, {}),
    ],
)
def test_an_item_is_earned_when_all_its_tests_ran_green(run, tests, points, lacks):
    one = earned(Item("D1", "x", 0.5, tests), run)
    assert (one.points, one.lacks) == (points, lacks)


def test_the_score_is_the_least_of_the_groups(run):
    items = {
        "data": [Item("D1", "a", 1, [GREEN]), Item("D2", "b", 1, [MANY])],
        "model": [Item("M1", "c", 0.5, [MANY], "traffic"), Item("M2", "d", 1, ["test_b.py::test_skipped"])],
    }
    scored = score(items, run)
    assert (scored.score, scored.groups) == (0.5, {"data": 2, "model": 0.5})
    lines = told(items, scored).splitlines()
    assert lines[0] == "data: 2 of 2"
    assert "          missing: traffic" in lines
    assert "          skipped: test_b.py::test_skipped" in lines
    assert lines[-1] == "score: 0.5"


def test_an_old_run_and_what_is_none_are_refused(tmp_path):
    (tmp_path / "run.xml").write_text(XML.format(ran=NOW.isoformat()))
    with pytest.raises(ConfigError, match="29 November 2026, more than a week ago"):
        Run.read(tmp_path / "run.xml", NOW + timedelta(days=7, seconds=1))
    for text in ("", "<testsuites/>", "<testsuite/>"):
        (tmp_path / "none.xml").write_text(text)
        with pytest.raises(ConfigError, match="no run of the suite"):
            Run.read(tmp_path / "none.xml", NOW)


def test_the_command_scores_its_28_items_by_what_ran(tmp_path, capsys):
    """Of this suite a single test ran: M4, D1 and all others lack something."""
    (tmp_path / "run.xml").write_text(XML.format(ran=datetime.now(UTC).isoformat()))
    main([str(tmp_path / "run.xml"), "--out", str(tmp_path / "score.json")])
    written = json.loads((tmp_path / "score.json").read_text())
    assert written["score"] == 0
    assert len(written["items"]) == 28
    assert written["items"]["D1"]["lacks"] == dict.fromkeys(written["items"]["D1"]["lacks"], "absent")
    assert "score: 0" in capsys.readouterr().out
