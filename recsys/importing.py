"""Imports at the speed that they can have."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Inside, Python does not look for garbage, and never again among what was made here.

    Imports make a million objects that stay: looking through them each time costs a quarter of what importing does.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
