"""Views: an object of the store as a folder, each file a second name of its blob."""

import os
from collections.abc import Callable
from pathlib import Path

from tasks.adapters.disk import remove, told
from tasks.adapters.locks import locked
from tasks.adapters.manifest import Manifest


def show(root: Path, manifest: Manifest, blob: Callable[[str], Path]) -> Path:
    """The folder with exactly the files of an object, whose blobs are there and sound."""
    view = root / "views" / manifest.digest
    if not _shows(view, manifest, blob):
        draft = root / "tmp" / "views"
        with locked(root, draft.name), told(view):
            if not _shows(view, manifest, blob):  # unless another process was faster
                remove(draft)
                for file in manifest.files:
                    (draft / file.name).parent.mkdir(parents=True, exist_ok=True)
                    os.link(blob(file.sha256), draft / file.name)
                remove(view)
                os.rename(draft, view)
    return view


def _shows(view: Path, manifest: Manifest, blob: Callable[[str], Path]) -> bool:
    """Whether a view has exactly the object's files, each the very inode of its blob."""
    if not view.is_dir():
        return False
    there = {p.relative_to(view).as_posix() for p in view.rglob("*") if not p.is_dir()}
    return there == {f.name for f in manifest.files} and all(
        os.path.samefile(view / f.name, blob(f.sha256)) for f in manifest.files
    )
