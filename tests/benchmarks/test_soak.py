"""The soak's own judgement: planted failures, mixed versions, forged champions and leaks are told. The real server: tests/flows/cli/test_serve.py"""

import json

import pytest

from benchmarks.soak import FLAT, FORGED, Asked, Memory, Tally, grown, judge, slope_of

ANSWERS = {1: (("a", 0.5, "model"), ("b", 0.25, "model")), 2: (("b", 0.5, "model"), ("a", 0.25, "model"))}


def judged(status: int = 200, version: int = 1, items=ANSWERS[1]) -> Tally:
    rows = [{"item_id": item, "score": score, "source": source, "title": None} for item, score, source in items]
    tally = Tally()
    judge(status, json.dumps({"items": rows, "model": {"version": version}}).encode(), ANSWERS, tally)
    return tally


def test_the_answer_of_the_version_it_names_is_right():
    assert [judged(version=version, items=items).wrong for version, items in ANSWERS.items()] == [[], []]
    assert judged().versions == {1: 1}


@pytest.mark.parametrize(
    ("version", "items"),
    [(2, ANSWERS[1]), (1, ANSWERS[1][:1]), (1, (ANSWERS[1][0], ANSWERS[2][1])), (FORGED, ANSWERS[1]), (FORGED, ())],
)
def test_an_answer_of_another_version_is_wrong(version, items):
    assert len(judged(version=version, items=items).wrong) == 1


def test_a_status_is_a_failure():
    tally = judged(status=503)
    assert (len(tally.failed), tally.wrong, tally.versions) == (1, [], {})


def test_questions_that_tell_versions_apart_are_counted():
    assert Asked([b"", b""], [ANSWERS, {1: ANSWERS[1], 2: ANSWERS[1]}]).telling == 1


def test_a_leak_is_told_and_a_warm_up_is_none():
    flat = [Memory(1000 * n, 150 if n < 3 else 200) for n in range(12)]
    leaking = [Memory(1000 * n, 200 + 5 * n) for n in range(12)]
    assert grown(flat) == 0
    assert grown(leaking) > FLAT
    assert grown(flat[:5]) is None
    assert slope_of(flat) == pytest.approx(0, abs=1e-9)
    assert slope_of(leaking) == pytest.approx(500)
