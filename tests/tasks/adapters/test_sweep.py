"""Mark and sweep: what is kept, in use or young stays; what is interrupted does no harm; writers and sweeper together."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from recsys.errors import StoreError
from tasks.adapters.store import Recipe, Store
from tasks.adapters.sweep import Broom, Kept, sweep, sweep_temp

FORK = multiprocessing.get_context("fork")
EVERYTHING_IS_OLD = time.time() + 10**6


def make(store: Store, number: int, *parents: str) -> str:
    def build(out: Path) -> None:
        (out / "a.bin").write_text(f"contents of {number}" * 50)
        (out / "shared.bin").write_text("the same in all")

    return store.make(Recipe("step", 1, {"number": number}, parents), build).digest


def swept(root: Path, *whole: str, remembered: tuple[str, ...] = (), dry_run: bool = False, heads=lambda name: True):
    broom = Broom(dry_run)
    kept = Kept(frozenset(whole), frozenset(remembered), heads)
    sweep(Store(root), lambda: kept, EVERYTHING_IS_OLD, broom)
    return {freed.kind: freed for freed in broom.freed()}


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").glob("*/*")}


def test_what_is_not_kept_goes_and_what_is_kept_opens(tmp_path):
    kept, gone = make(Store(tmp_path), 1), make(Store(tmp_path), 2)
    before = blobs(tmp_path)
    planned = swept(tmp_path, kept, dry_run=True)
    assert blobs(tmp_path) == before
    assert Store(tmp_path).find(Recipe("step", 1, {"number": 2}, ())) is not None
    freed = swept(tmp_path, kept)
    assert freed == planned
    assert freed["step"].things == 1, "the shared blob stays"
    assert freed["step"].bytes == len("contents of 2") * 50
    assert len(list(Store(tmp_path).open("step", kept).iterdir())) == 2
    with pytest.raises(StoreError):
        Store(tmp_path).open("step", gone)
    assert make(Store(tmp_path), 2) == gone, "and is made again, the same"
    assert Store(tmp_path).open("step", gone).is_dir()


def test_a_remembered_object_keeps_its_manifest_and_loses_its_contents(tmp_path):
    parent = make(Store(tmp_path), 1)
    child = make(Store(tmp_path), 2, parent)
    swept(tmp_path, child, remembered=(parent,))
    store = Store(tmp_path)
    assert store.manifest("step", parent).digest == parent
    with pytest.raises(StoreError, match="missing"):
        store.open("step", parent)
    assert store.find(Recipe("step", 1, {"number": 1}, ())) is None
    assert make(store, 1) == parent
    assert store.open("step", parent).is_dir()


def test_what_a_living_process_made_or_opened_stays_until_it_ends(tmp_path):
    opened, found = make(Store(tmp_path), 1), make(Store(tmp_path), 2)
    begun, end = FORK.Event(), FORK.Event()

    def night() -> None:
        store = Store(tmp_path)
        store.open("step", opened)
        make(store, 2)
        make(store, 3)
        begun.set()
        end.wait(30)

    process = FORK.Process(target=night)
    process.start()
    begun.wait(30)
    assert "step" not in swept(tmp_path), "it is in use"
    assert Store(tmp_path).open("step", found).is_dir()
    end.set()
    process.join()
    assert swept(tmp_path)["step"].things == 4
    assert blobs(tmp_path) == set()
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path):
    def night() -> None:
        store = Store(tmp_path)
        make(store, 1)
        os._exit(9)

    process = FORK.Process(target=night)
    process.start()
    process.join()
    assert len(list((tmp_path / "leases").iterdir())) == 1
    assert swept(tmp_path)["step"].things == 2


def test_young_objects_stay(tmp_path):
    make(Store(tmp_path), 1)
    broom = Broom(dry_run=False)
    sweep(Store(tmp_path), lambda: Kept(frozenset()), time.time() - 3600, broom)
    assert broom.freed() == ()


def test_leftovers_go_and_a_living_build_does_not(tmp_path):
    store = Store(tmp_path)
    for place in ("tmp", "scratch", "bad"):
        (tmp_path / place / "left").mkdir()
        (tmp_path / place / "left" / "half").write_text("x" * 10)

    def build(out: Path) -> None:
        (store.scratch(recipe) / "checkpoint").write_text("x")
        assert swept(tmp_path)["left by killed builds"].bytes == 10, "what was in tmp the build itself has removed"
        assert (tmp_path / "scratch" / recipe.key / "checkpoint").exists()
        (out / "a").write_text("a")

    recipe = Recipe("teach", 1, {}, ())
    digest = store.make(recipe, build).digest
    assert not (tmp_path / "bad" / "left").exists()
    assert store.open("teach", digest).is_dir()
    swept(tmp_path, digest)
    assert list((tmp_path / "locks").iterdir()) == []


def test_decisions_about_what_is_gone_go_with_it(tmp_path):
    store = Store(tmp_path)
    kept, gone = make(store, 1), make(store, 2)
    for name in (f"teacher-for-{kept}", f"teacher-for-{gone}", "last-night", "catalog-before-x"):
        store.set_head(name, {"digest": "d"})
    del store
    swept(tmp_path, kept, heads=lambda name: name == "last-night")
    assert {path.stem for path in (tmp_path / "heads").iterdir()} == {f"teacher-for-{kept}", "last-night"}


def test_a_sweep_that_is_interrupted_anywhere_is_done_again(tmp_path, monkeypatch):
    for at in itertools.count(1):
        root = tmp_path / str(at)
        kept = make(Store(root), 1)
        gone = [make(Store(root), number) for number in (2, 3)]
        seen = itertools.count(1)
        unlink = os.unlink

        def interrupted(*args, unlink=unlink, seen=seen, at=at, **kwargs):
            if next(seen) == at:
                raise KeyboardInterrupt
            return unlink(*args, **kwargs)

        monkeypatch.setattr(os, "unlink", interrupted)
        try:
            swept(root, kept)
            ended = True
        except KeyboardInterrupt:
            ended = False
        monkeypatch.undo()
        store = Store(root)
        assert store.open("step", kept).is_dir()
        for number, digest in zip((2, 3), gone, strict=True):
            assert make(store, number) == digest
            assert store.open("step", digest).is_dir()
        if ended:
            break
    assert at > 5


def test_writers_and_a_sweeper_in_a_loop(tmp_path):
    """Whatever a process has made or opened it can read until it ends, however often garbage is collected meanwhile."""
    end = time.monotonic() + 4

    def night(first: int, failed) -> None:
        try:
            turn = first
            while time.monotonic() < end:
                store = Store(tmp_path)
                mine = [make(store, number) for number in (turn % 7, 100 + turn % 5)]
                child = make(store, 1000 + turn % 11, *mine)
                for digest in (*mine, child):
                    folder = store.open("step", digest)
                    assert (folder / "a.bin").read_text().startswith("contents of")
                    assert (folder / "shared.bin").read_text() == "the same in all"
                turn += 1
        except BaseException:
            failed.set()
            raise

    failed = FORK.Event()
    nights = [FORK.Process(target=night, args=(first, failed)) for first in (0, 3)]
    for process in nights:
        process.start()
    sweeps = freed = 0
    while time.monotonic() < end:
        freed += swept(tmp_path).get("step", None) is not None
        sweeps += 1
    for process in nights:
        process.join()
    assert not failed.is_set()
    assert [process.exitcode for process in nights] == [0, 0]
    assert sweeps > 10
    assert freed > 5, "there was garbage, and it was collected"


def test_who_waits_for_a_lock_that_is_swept_takes_the_new_one(tmp_path):
    store = Store(tmp_path)
    inside = FORK.Value("i", 0)

    def enter(_: int) -> None:
        for _ in range(200):
            with Store(tmp_path).locked("key"):
                inside.value += 1
                assert inside.value == 1
                inside.value -= 1
                if os.getpid() % 2:
                    (tmp_path / "locks" / "key").unlink(missing_ok=True)

    processes = [FORK.Process(target=enter, args=(n,)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert store.root.is_dir()


def test_what_killed_commands_left_in_tmp_goes_when_it_is_old_and_nobody_uses_it(tmp_path):
    folder = tmp_path / "tmp"
    for name in ("load-check-killed", "union-at-work", "worker-s"):
        (folder / name / "below").mkdir(parents=True)
        (folder / name / "below" / "half").write_text("x" * 10)
    young, old = time.time() - 3600, EVERYTHING_IS_OLD
    broom = Broom(dry_run=False)
    sweep_temp(folder, "*", young, broom)
    assert broom.freed() == ()
    with (
        (folder / "union-at-work" / "below" / "half").open(),
        subprocess.Popen(["sleep", "60"], cwd=folder / "worker-s" / "below") as works,
    ):
        sweep_temp(folder, "*", old, broom)
        works.kill()
    assert {path.name for path in folder.iterdir()} == {"union-at-work", "worker-s"}
    assert [(freed.kind, freed.things, freed.bytes) for freed in broom.freed()] == [("left by killed commands", 1, 10)]


def test_a_process_that_ends_while_it_is_looked_at_hinders_nobody(tmp_path, monkeypatch):
    for name in ("left", "open"):
        (tmp_path / name).mkdir()

    def ended(look, place):
        if str(place) == f"/proc/{os.getppid()}/fd":
            raise FileNotFoundError(place)
        return look(place)

    for look in (os.listdir, os.scandir):  # whichever it is looked at by
        monkeypatch.setattr(os, look.__name__, functools.partial(ended, look))
    opened = os.open(tmp_path / "open", os.O_RDONLY)
    sweep_temp(tmp_path, "*", EVERYTHING_IS_OLD, Broom(dry_run=False))
    os.close(opened)
    assert [path.name for path in tmp_path.iterdir()] == ["open"]


@pytest.mark.parametrize("name", ["tmp", "scratch"])
def test_a_build_that_ends_while_its_folder_is_looked_at_is_no_leftover(tmp_path, monkeypatch, name):
    make(Store(tmp_path), 1)
    left, locked = tmp_path / name / "half", Store.locked
    left.mkdir(parents=True)

    @contextlib.contextmanager
    def ended(store, wanted, wait=True):
        with locked(store, wanted, wait=wait) as free:
            if wanted == left.name and left.exists():
                left.rename(tmp_path / "whole")
            yield free

    monkeypatch.setattr(Store, "locked", ended)
    assert "left by killed builds" not in swept(tmp_path)
    assert (tmp_path / "whole").exists()
