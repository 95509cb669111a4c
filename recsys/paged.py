"""Arrays that may be larger than memory: the system takes their pages out when others need the room."""

import os
from collections.abc import Sequence
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def paged(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """An array of zeros that stands in a temporary file without a name, which goes with the array.

    Raises OSError where the disk of the temporary files has no room for all of it: found out now, not by a signal when a
    page is written.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    with TemporaryFile(prefix="paged-") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+", shape=tuple(shape)).view(np.ndarray)
