"""Reads a saved teacher of either kind."""

import json
from pathlib import Path

from recsys.errors import StoreError
from recsys.lm_teacher import LmTeacher
from recsys.teacher import Teacher

LoadedTeacher = Teacher | LmTeacher
"""Both are sequence models that know `items` items and read `length` of them."""


def load_teacher(folder: Path) -> LoadedTeacher:
    """The teacher in `folder`, on the GPU when there is one. Raises StoreError when there is none that we know."""
    try:
        kind = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError("a teacher cannot be read", where=f"{folder}: {error}") from None
    for teacher in (Teacher, LmTeacher):
        if kind == teacher.KIND:
            loaded: LoadedTeacher = teacher.load(folder)
            return loaded
    raise StoreError(f"a teacher of the kind {kind!r} is not known", where=str(folder / "teacher.json"))
