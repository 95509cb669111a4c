"""Workers: what they are handed, what comes back, and that none outlives its caller."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recsys import fleet as fleet_module
from recsys.fleet import Fleet, call_up, hand_over, reserve, taken_over


def add_up(shared, job, tell):
    """The sum of the job's part of what is shared."""
    tell(f"adding {job}")
    return float(shared[job].sum()), os.getpid()


def stumble(shared, job, tell):
    raise ValueError(f"{job} cannot be done")


def vanish(shared, job, tell):
    os.kill(os.getpid(), signal.SIGKILL)


def never_end(shared, job, tell):
    tell(os.getpid())
    while True:
        time.sleep(60)


def gone(pid: int) -> bool:
    """Whether a process has ended, a second given."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_every_job_is_done_by_one_of_the_workers_and_its_place_is_known():
    shared = {name: np.arange(size, dtype=np.int64) for name, size in (("a", 3), ("b", 5), ("c", 100_000))}
    heard = []
    with Fleet(add_up, shared, 2, 1) as fleet:
        done = dict(fleet.run(["a", "b", "c"], lambda place, what: heard.append((place, what))))
        handed = Path(fleet.handed.name)
        again = dict(fleet.run(["b"], lambda place, what: None))
    sums, workers = {place: total for place, (total, _) in done.items()}, {pid for _, pid in done.values()}
    assert sums == {0: 3, 1: 10, 2: 100_000 * 99_999 / 2}
    assert again[0][0] == 10
    assert sorted(heard) == [(0, "adding a"), (1, "adding b"), (2, "adding c")]
    assert os.getpid() not in workers
    assert len(workers) == 2
    assert all(gone(pid) for pid in workers)
    assert not handed.exists()


def test_what_a_job_raises_is_raised_and_a_worker_that_ends_is_missed():
    with Fleet(stumble, None, 1, 1) as fleet, pytest.raises(ValueError, match="7 cannot be done"):
        list(fleet.run([7], lambda place, what: None))
    with (
        Fleet(vanish, None, 1, 1) as fleet,
        pytest.raises(ChildProcessError, match="ended by itself with exit code -9"),
    ):
        list(fleet.run([7], lambda place, what: None))


def test_workers_that_were_called_up_do_the_work_and_the_others_end_with_the_reserve():
    with reserve():
        call_up(add_up, 3, 1)
        call_up(add_up, 3, 1)  # they are there already
        called = [worker.process.pid for worker in fleet_module._reserve]
        os.kill(called[0], signal.SIGKILL)  # one that did not live to see its work
        assert gone(called[0])
        with Fleet(add_up, {"a": np.ones(2)}, 1, 1) as fleet:
            ((_, (total, worker)),) = fleet.run(["a"], lambda place, what: None)
        with Fleet(stumble, None, 1, 2) as other:  # of other threads: not for it
            assert not {one.process.pid for one in other.crew.values()} & set(called)
    assert total == 2
    assert len(called) == 3
    assert worker == called[1]
    assert all(gone(pid) for pid in called)


def test_what_is_handed_over_comes_back_and_writing_to_it_changes_nothing(tmp_path):
    value = {"text": "tea", "big": np.arange(10_000.0), "small": np.zeros((0, 3)), "table": np.eye(7, dtype=np.float16)}
    hand_over(value, tmp_path / "value")
    first, second = taken_over(tmp_path / "value"), taken_over(tmp_path / "value")
    first["big"][0] = -1
    for name in ("big", "small", "table"):
        assert np.array_equal(second[name], value[name])
        assert second[name].dtype == value[name].dtype
    assert second["text"] == "tea"


def test_no_worker_outlives_a_killed_caller(tmp_path):
    caller = subprocess.Popen([sys.executable, __file__, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(caller.stdout.readline())
    assert not gone(worker) or pytest.fail("it should be working")
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    caller.stdout.close()
    assert gone(worker)


if __name__ == "__main__":
    from test_fleet import never_end as work

    with Fleet(work, None, 1, 1) as crew:
        list(crew.run([1], lambda place, what: print(what, flush=True)))
