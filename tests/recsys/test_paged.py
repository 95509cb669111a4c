"""Arrays beside memory: as any other to whoever uses them, of no private memory, gone with their owner."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys.paged import paged


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (7,)])
def test_it_is_an_array_of_zeros_that_can_be_written_and_handed_over(shape, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = paged(shape, np.float16)
    assert (made.shape, made.dtype, made.any()) == (shape, np.float16, False)
    made[...] = 1
    buffers = []
    again = pickle.loads(pickle.dumps(np.asarray(made), 5, buffer_callback=buffers.append), buffers=buffers)
    np.testing.assert_array_equal(again, np.ones(shape, np.float16))
    assert list(tmp_path.iterdir()) == [], "the file has no name that could be left behind"


def test_it_takes_no_private_memory():
    """Where a process may have 64 MiB more of its own, 256 MiB are held so, and not otherwise."""
    program = """
import resource, sys
import numpy as np
from recsys.paged import paged
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (own + (64 << 20),) * 2)
made = {"paged": paged, "zeros": np.zeros}[sys.argv[1]]((256, 1 << 20), np.uint8)
made[:, ::4096] = 1
print(made[:, ::4096].sum(dtype=int))
"""
    place = {
        "cwd": Path(__file__).parents[2],
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    }
    held = subprocess.run(
        [sys.executable, "-c", program, "paged"], capture_output=True, text=True, check=False, **place
    )
    assert held.stdout == "65536\n", held.stderr
    other = subprocess.run(
        [sys.executable, "-c", program, "zeros"], capture_output=True, text=True, check=False, **place
    )
    assert "MemoryError" in other.stderr


def test_without_room_it_is_said_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        paged((4, 4), np.int32)
