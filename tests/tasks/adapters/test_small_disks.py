"""File systems that are read-only, or have no inode left: real ones, in memory, where they may be mounted."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from recsys.errors import HomeError
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tests.tasks.adapters.test_store import RECIPE, build

INODES = 40


def mount(options: str, folder: Path) -> bool:
    """Whether a tmpfs could be mounted there, or mounted anew."""
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, with few inodes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(f"size=128m,nr_inodes={INODES}", folder):
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_without_an_inode_left_it_is_told_as_a_full_disk_and_gone_on_with_when_there_is_one(disk):
    store, taken = Store(disk / "store"), fill(disk)
    refusals = []
    while (refusal := refused(store)) is not None:
        refusals.append(refusal)
        taken.pop().unlink()
    assert len(refusals) > 3, "each file that went let it come a little further"
    assert all("No space left on device" in text and "bytes are free" in text for text in refusals)
    assert sorted(path.name for path in (store.root / "tmp").iterdir()) == []


def fill(disk: Path) -> list[Path]:
    """Empty files, until there is no inode left."""
    taken = []
    with suppress(OSError):
        for number in range(INODES):
            (disk / f"in-the-way-{number}").touch()
            taken.append(disk / f"in-the-way-{number}")
    return taken


def refused(store: Store) -> str | None:
    """What is said where there is no room for an object; None once it is made."""
    try:
        store.make(RECIPE, build)
    except HomeError as error:
        return str(error)
    return None


def test_a_home_on_a_read_only_disk_is_told_at_once(disk):
    Settings.from_environment(disk).prepare()
    assert mount("remount,ro", disk)
    with pytest.raises(HomeError, match="Read-only file system") as said:
        Settings.from_environment(disk).prepare()
    assert str(disk) in str(said.value)
