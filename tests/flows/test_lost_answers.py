"""Nights over servers whose answers are lost, or which are killed meanwhile: each effect once, and who gives up says where.

All of them, at every request and step: `python -m benchmarks.lost_answers`.
"""

import subprocess
from collections.abc import Iterator

import pytest

from tests.faults.dropping import EVERY, Loss, kind_of
from tests.faults.outside import Outside

FLOW_RUN = "POST /api/flow_runs/"


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Iterator[Outside]:
    with Outside.open(tmp_path_factory.mktemp("outside")) as outside:
        yield outside


@pytest.fixture
def fresh(outside) -> Iterator[Outside]:
    outside.reset()
    yield outside
    for proxy in outside.proxies.values():
        proxy.lose(None)


def test_the_diary_has_each_kind_of_request_that_makes_something(outside):
    made = {kind.split()[-1].rpartition("/mlflow/")[2] for kind in outside.diaries["mlflow"]}
    assert {"runs/create", "registered-models/create", "model-versions/create", "logged-models"} <= made
    assert {"POST /api/flow_runs/", "POST /api/artifacts/"} <= set(outside.diaries["prefect"])


def test_what_is_of_one_request_alone_is_no_part_of_its_kind():
    run = "0123456789abcdef" * 2
    assert kind_of("POST", "/api/flow_runs/01234567-89ab-cdef-0123-456789abcdef/set_state?x=1") == (
        "POST /api/flow_runs/{id}/set_state"
    )
    assert kind_of("PATCH", f"/api/2.0/mlflow/logged-models/m-{run}") == "PATCH /api/2.0/mlflow/logged-models/{id}"


def test_where_every_answer_of_mlflow_and_that_of_the_new_run_of_prefect_are_lost_each_effect_is_there_once(fresh):
    fresh.proxies["mlflow"].lose(Loss(EVERY, 0))
    fresh.proxies["prefect"].lose(Loss(FLOW_RUN, 1))
    done = fresh.night()
    assert done.returncode == 0, done.stderr
    assert fresh.proxies["mlflow"].lost > 100
    assert fresh.proxies["prefect"].lost == 1
    assert fresh.broken(commands=1) == []
    assert fresh.left().keys() == {"runs deleted", "versions marked", "models deleted"}


def test_where_answers_to_what_makes_versions_records_and_the_run_of_prefect_are_lost_twice_one_counts(fresh):
    fresh.proxies["mlflow"].lose(Loss("model-versions/create", 0, times=2))
    fresh.proxies["prefect"].lose(Loss(FLOW_RUN, 1, times=2))
    done = fresh.night()
    assert done.returncode == 0, done.stderr
    assert fresh.proxies["mlflow"].lost == 2 * 3, "teacher, student, record"
    assert fresh.proxies["prefect"].lost == 2
    assert fresh.broken(commands=1) == []
    assert fresh.left() == {"versions marked": 2 * 3}


def commands_until_it_is_done(outside: Outside, done: subprocess.CompletedProcess[str]) -> int:
    """One where the servers were back in time; else it ended in a sentence with an address, and is run again."""
    if done.returncode == 0:
        return 1
    assert done.returncode == 2, done.stdout + done.stderr
    sentence = "".join(done.stderr.partition("recsys: ")[2].split())
    assert any(proxy.url.removeprefix("http://") in sentence for proxy in outside.proxies.values()), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert outside.night().returncode == 0
    return 2


def test_servers_that_are_killed_under_a_night_and_come_back_harm_nothing(fresh):
    done, killed = fresh.killed_night(("mlflow", "prefect"), "teach", back=True)
    assert killed
    assert fresh.broken(commands_until_it_is_done(fresh, done)) == []
