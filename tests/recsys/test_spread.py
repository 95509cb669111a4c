"""Maps over parts: their order, what is held at once, what becomes of an error; and what is handed over once."""

import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from recsys import spread
from recsys.spread import HERE, Shared, in_order


class Later(Executor):
    """Nothing is done before it is asked for; it knows how much was waiting at most."""

    def __init__(self) -> None:
        self.futures: list[Future] = []
        self.most = 0

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = _Lazy(fn, args)
        self.futures.append(future)
        self.most = max(self.most, sum(not each.done() for each in self.futures))
        return future


class _Lazy(Future):
    def __init__(self, fn, args) -> None:
        super().__init__()
        self.fn, self.args = fn, args

    def result(self, timeout=None):
        if not self.done():
            self.set_result(self.fn(*self.args))
        return super().result()


def parts(count: int):
    return ((f"key {number}", number) for number in range(count))


def test_parts_come_in_their_order_with_their_keys() -> None:
    expected = [(f"key {number}", -number) for number in range(200)]
    assert list(in_order(HERE, int.__neg__, parts(200))) == expected
    assert list(in_order(Later(), int.__neg__, parts(200))) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(in_order(pool, int.__neg__, parts(200))) == expected
    assert list(in_order(HERE, int.__neg__, parts(0))) == []


def test_here_a_part_is_taken_before_the_next_is_begun() -> None:
    begun = []
    for _, number in in_order(HERE, lambda number: begun.append(number) or number, parts(5)):
        assert begun == list(range(number + 1))


def test_no_more_than_so_many_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "AHEAD", 3)
    later = Later()
    assert len(list(in_order(later, int.__neg__, parts(20)))) == 20
    assert later.most == 3


def test_an_error_is_raised_and_the_rest_given_up() -> None:
    later = Later()
    with pytest.raises(ZeroDivisionError):
        list(in_order(later, (1).__truediv__, ((None, number) for number in (1, 0, 2, 4))))
    assert [each.cancelled() for each in later.futures] == [False, False, True, True]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_stays_here_is_written_nowhere(temporary: Path) -> None:
    value = {"rows": np.arange(5)}
    with Shared(value) as shared:
        assert shared.value is value
        assert list(temporary.iterdir()) == []


def test_what_crosses_is_one_file_for_all_parts_and_gone_at_the_end(temporary: Path) -> None:
    rows = np.arange(100_000)
    with Shared({"rows": rows}) as shared:
        letters = [pickle.dumps((shared, part)) for part in range(3)]
        (file,) = temporary.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert max(len(letter) for letter in letters) < 500 < rows.nbytes < file.stat().st_size
        again, part = pickle.loads(pickle.dumps(pickle.loads(letters[2])))  # a scheduler may look into it
        assert (part, again.value["rows"].tolist()) == (2, rows.tolist())
        assert pickle.loads(letters[0])[0].value is again.value, "a process reads it once"
    assert list(temporary.iterdir()) == []


def test_what_cannot_cross_says_so_each_time(temporary: Path) -> None:
    with Shared(memoryview(b"x")) as shared:
        for _ in range(2):
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(shared)
        assert list(temporary.iterdir()) == []


def test_a_model_computes_elsewhere_with_as_many_threads_as_here(temporary: Path) -> None:
    """Other threads add in another order, and labels are the same to the bit."""
    import torch

    before = torch.get_num_threads()
    program = """
import pickle, sys
shared = pickle.load(sys.stdin.buffer)
shared.value
import torch
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        torch.set_num_threads(2)
        with Shared(torch.nn.Linear(2, 2)) as shared:
            command = [sys.executable, "-c", program]
            told = subprocess.run(command, input=pickle.dumps(shared), env=environment, capture_output=True)
        assert told.stdout.strip() == b"2", told.stderr.decode()
    finally:
        torch.set_num_threads(before)
