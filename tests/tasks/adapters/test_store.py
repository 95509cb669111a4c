"""The store under kill, full disk, damage and company."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import stat
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import DataError, HomeError, StoreError
from tasks.adapters.disk import told
from tasks.adapters.scrub import scrub
from tasks.adapters.store import MEASURED, File, Manifest, Recipe, Store

FORK = multiprocessing.get_context("fork")
OPERATIONS = ("link", "rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "chmod", "write")
RECIPE = Recipe("label", 3, {"top_k": 50}, ("aa", "bb"), {"threads": "1"})


def build(folder: Path) -> None:
    """Three files, one in a folder, each written in two halves by counted operations."""
    os.mkdir(folder / "part")
    for name in ("labels.bin", "part/0.bin", MEASURED):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        content = b'{"seconds": 1}' if name == MEASURED else name.encode() * 100
        os.write(descriptor, content[:7])
        os.write(descriptor, content[7:])
        os.close(descriptor)


class Interrupter:
    """Counts the operations that touch the disk, and does something at the n-th."""

    def __init__(self, at: int, action) -> None:
        self.at, self.action = at, action
        self.seen: list[tuple[str, str]] = []
        self.originals = {name: getattr(os, name) for name in OPERATIONS}

    def __enter__(self):
        for name, original in self.originals.items():
            setattr(os, name, self._counted(name, original))
        return self

    def __exit__(self, *_) -> None:
        for name, original in self.originals.items():
            setattr(os, name, original)

    def _counted(self, name, original):
        def operation(*args, **kwargs):
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else " ".join(map(str, args[:2]))
            self.seen.append((name, target))
            if len(self.seen) == self.at:
                self.action()
            return original(*args, **kwargs)

        return operation


def operations_of_a_make(root: Path) -> list[tuple[str, str]]:
    store = Store(root)
    with Interrupter(0, None) as counted:
        store.scratch(RECIPE)
        store.make(RECIPE, build)
    return counted.seen


def killed(at: int, work) -> int:
    """Runs `work` in a child that dies at its n-th operation, as from kill -9: no clean-up runs."""

    def child() -> None:
        with Interrupter(at, lambda: os._exit(9)):
            work()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kill_at_any_operation_resumes_to_the_same_object(tmp_path):
    store = Store(tmp_path / "whole")
    store.make(RECIPE, build)
    whole = store.find(RECIPE)
    expected = contents(store.open("label", whole.digest))

    def work() -> None:
        store = Store(root)
        store.scratch(RECIPE)
        store.open("label", store.make(RECIPE, build).digest)

    reused = set()
    for at in itertools.count(1):
        root = tmp_path / str(at)
        if killed(at, work) == 0:
            break  # there is no operation left to be killed at
        store = Store(root)
        resumed = store.make(RECIPE, build)
        reused.add(resumed.reused)
        assert resumed.digest == whole.digest, at
        assert contents(store.open("label", resumed.digest)) == expected, at
        assert not list((root / "tmp").iterdir()), at
        assert not list((root / "scratch").iterdir()), at
        assert not list((root / "bad").iterdir()), at
    assert at > 40
    assert reused == {False, True}  # kills before and after the commit were both among them


def test_the_same_harness_convicts_the_naive_cache(tmp_path):
    """Skip-if-exists, the control: it must be caught, or the test above shows nothing."""

    def work() -> None:
        if not folder.exists():
            os.mkdir(folder)
            build(folder)

    wrong = 0
    for at in range(1, 9):
        folder = tmp_path / str(at)
        assert killed(at, work) == 9
        work()
        wrong += sum(map(len, contents(folder).values())) != 2014
    assert wrong >= 4


def test_a_full_disk_at_any_operation_is_told_and_mended(tmp_path):
    points = len(operations_of_a_make(tmp_path / "whole"))
    digest = Store(tmp_path / "whole").find(RECIPE).digest

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work(store: Store) -> None:
        store.scratch(RECIPE)
        store.make(RECIPE, build)

    for at in range(1, points + 1):
        store = Store(tmp_path / str(at))
        with Interrupter(at, full), pytest.raises(HomeError, match=r"No space left on device.* bytes are free"):
            work(store)
        assert Store(store.root).make(RECIPE, build).digest == digest, at


def test_what_is_named_was_made_durable_before(tmp_path):
    seen = operations_of_a_make(tmp_path)
    links = [(i, target.split()) for i, (name, target) in enumerate(seen) if name == "link"]
    assert len(links) == 5  # three blobs, the manifest by digest, the manifest by key
    for i, (source, target) in links:
        assert ("fsync", source) in seen[:i]
        assert ("fsync", str(Path(target).parent)) in seen[i:]
    assert links[-1][1][1] == str(tmp_path / "manifests" / "label" / f"{RECIPE.key}.json")


def test_a_made_object_is_found_opened_and_traced(tmp_path):
    store = Store(tmp_path)
    parent = store.make(Recipe("build", 1, {}, ("raw",)), lambda f: (f / "a.json").write_text("1") and None)
    child = store.make(Recipe("label", 1, {"k": 1}, (parent.digest,)), build)
    assert not child.reused
    again = Store(tmp_path).make(Recipe("label", 1, {"k": 1}, (parent.digest,)), lambda _: pytest.fail("built twice"))
    assert again.reused
    assert again.digest == child.digest
    view = store.open("label", child.digest)
    assert set(contents(view)) == {"labels.bin", "part/0.bin"}
    assert stat.S_IMODE((view / "labels.bin").stat().st_mode) == 0o444
    assert store.measured("label", child.digest) == {"seconds": 1}
    assert store.measured("build", parent.digest) == {}
    manifest = store.manifest("label", child.digest)
    assert (manifest.step, manifest.key, manifest.config) == ("label", again.key, {"k": 1})
    assert [(f.name, f.bytes, f.rows) for f in manifest.files] == [
        ("labels.bin", 1000, None),
        ("part/0.bin", 1000, None),
    ]
    lineage = store.lineage(child.digest)
    assert set(lineage) == {child.digest, parent.digest, "raw"}
    assert lineage[child.digest].parents == (parent.digest,)
    assert lineage[parent.digest].step == "build"
    assert lineage["raw"] is None


def test_the_lineage_of_a_year_of_nights_is_found(tmp_path):
    store, digest = Store(tmp_path), "nothing"
    for night in range(1500):
        recipe = Recipe("build", 1, {"night": night}, (digest,))
        manifest = Manifest.of(recipe, (File("a", f"{night:064}", 1, None),), None)
        digest = manifest.digest
        (tmp_path / "objects" / "build").mkdir(exist_ok=True)
        (tmp_path / "objects" / "build" / f"{digest}.json").write_bytes(manifest.to_bytes())
    assert len(store.lineage(digest)) == 1501


def test_an_object_kept_for_its_lineage_alone_is_whole_again_when_it_is_made_again(tmp_path):
    first = Store(tmp_path).make(RECIPE, build)
    key = tmp_path / "manifests" / "label" / f"{RECIPE.key}.json"
    manifest = Manifest.read(key)
    for sha256 in manifest.blobs:  # as gc leaves what it remembers
        blob = Store(tmp_path).blob(sha256)
        blob.chmod(0o644)
        blob.unlink()
    key.unlink()

    def slower(folder: Path) -> None:
        build(folder)
        (folder / MEASURED).write_text('{"seconds": 2}')

    store = Store(tmp_path)
    again = store.make(RECIPE, slower)
    assert (again.digest, again.reused) == (first.digest, False)
    assert store.measured("label", again.digest) == {"seconds": 2}
    assert Store(tmp_path).make(RECIPE, build).reused


def test_digest_covers_names_and_contents_but_nothing_measured(tmp_path):
    def writes(files):
        def build(folder: Path) -> None:
            for name, text in files.items():
                (folder / name).write_text(text)

        return build

    store = Store(tmp_path)
    made = [
        store.make(Recipe("s", version, {}, ()), writes(files)).digest
        for version, files in enumerate(
            [{"a": "1"}, {"a": "1", MEASURED: '{"s": 1}'}, {"a": "1", MEASURED: '{"s": 2}'}, {"b": "1"}, {"a": "2"}]
        )
    ]
    assert made[0] == made[1] == made[2]
    assert len({made[0], made[3], made[4]}) == 3


def test_every_part_of_a_recipe_is_in_its_key():
    recipes = [
        RECIPE,
        Recipe("teach", 3, {"top_k": 50}, ("aa", "bb"), {"threads": "1"}),
        Recipe("label", 4, {"top_k": 50}, ("aa", "bb"), {"threads": "1"}),
        Recipe("label", 3, {"top_k": 51}, ("aa", "bb"), {"threads": "1"}),
        Recipe("label", 3, {"top_k": 50}, ("bb", "aa"), {"threads": "1"}),
        Recipe("label", 3, {"top_k": 50}, ("aa", "bb"), {"threads": "2"}),
    ]
    assert len({r.key for r in recipes}) == 6
    assert Recipe("s", 1, {"a": 1, "b": 2}, ()).key == Recipe("s", 1, {"b": 2, "a": 1}, ()).key
    with pytest.raises(ValueError, match="Out of range float"):
        _ = Recipe("s", 1, {"a": float("nan")}, ()).key


def test_rows_are_those_of_the_parquet_files(tmp_path):
    def build(folder: Path) -> None:
        pq.write_table(pa.table({"x": [1, 2, 3]}), folder / "a.parquet")
        pq.write_table(pa.table({"x": [1]}), folder / "b.parquet")

    assert Store(tmp_path).make(RECIPE, build).rows == 4


def damage(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_blob_is_refused_set_aside_and_made_again(tmp_path):
    made = Store(tmp_path).make(RECIPE, build)
    view = Store(tmp_path).open("label", made.digest)
    damage(view / "labels.bin")
    with pytest.raises(StoreError) as refused:
        Store(tmp_path).open("label", made.digest)
    sha256 = next(f.sha256 for f in Store(tmp_path).manifest("label", made.digest).files if f.name == "labels.bin")
    assert f"label/labels.bin is damaged, expected sha256 {sha256}, found " in str(refused.value)
    assert len(list((tmp_path / "bad").iterdir())) == 1
    with pytest.raises(StoreError, match=r"label/labels\.bin is missing"):
        Store(tmp_path).open("label", made.digest)
    healed = Store(tmp_path).make(RECIPE, build)
    assert not healed.reused
    assert healed.digest == made.digest
    assert (Store(tmp_path).open("label", made.digest) / "labels.bin").read_bytes() == b"labels.bin" * 100


@pytest.mark.parametrize("folder", ["manifests", "objects"])
@pytest.mark.parametrize("copied", [False, True], ids=["linked", "copied"])
def test_a_damaged_manifest_is_made_again(tmp_path, folder, copied):
    made = Store(tmp_path).make(RECIPE, build)
    path = next((tmp_path / folder).rglob("*.json"))
    if copied:  # a store brought over without its hard links
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    damage(path)
    healed = Store(tmp_path).make(RECIPE, build)
    assert healed.digest == made.digest
    assert Store(tmp_path).open("label", made.digest).is_dir()
    assert list((tmp_path / "bad").iterdir())


@pytest.mark.parametrize("folder", ["manifests", "objects"])
def test_manifests_that_changed_places_are_made_again(tmp_path, folder):
    """Each is whole and has its own checksum; taken for the other it would be another's result without a word."""
    other = Recipe("label", 3, {"top_k": 49}, ("aa", "bb"), {"threads": "1"})
    made = Store(tmp_path).make(RECIPE, build)
    Store(tmp_path).make(other, lambda out: (out / "labels.bin").write_text("other") and None)
    one, two = sorted((tmp_path / folder / "label").glob("*.json"))
    one.rename(tmp_path / "third")
    two.rename(one)
    (tmp_path / "third").rename(two)
    assert len(scrub(Store(tmp_path)).damages) >= 2
    with pytest.raises(StoreError, match="a manifest of the store is damaged"):
        Store(tmp_path)._read(two.relative_to(tmp_path).as_posix())
    healed = Store(tmp_path).make(RECIPE, build)
    assert healed.digest == made.digest
    assert set(contents(Store(tmp_path).open("label", healed.digest))) == {"labels.bin", "part/0.bin"}


@pytest.mark.parametrize("harm", ["truncated", "deleted", "another's"])
def test_a_blob_that_is_not_itself_is_made_again(tmp_path, harm):
    made = Store(tmp_path).make(RECIPE, build)
    other = Store(tmp_path).make(Recipe("label", 4, {}, ()), lambda out: (out / "labels.bin").write_text("x") and None)
    blobs = {
        m.files[0].name: Store(tmp_path).blob(m.files[0].sha256)
        for m in [Store(tmp_path).manifest("label", made.digest)]
    }
    theirs = Store(tmp_path).blob(Store(tmp_path).manifest("label", other.digest).files[0].sha256)
    blob = blobs["labels.bin"]
    content = blob.read_bytes()
    blob.unlink()
    if harm != "deleted":
        blob.write_bytes(content[:7] if harm == "truncated" else theirs.read_bytes())
    with pytest.raises(StoreError, match=r"label/labels\.bin is (damaged|missing)"):
        Store(tmp_path).open("label", made.digest)
    healed = Store(tmp_path).make(RECIPE, build)
    assert (healed.reused, healed.digest) == (False, made.digest)
    assert contents(Store(tmp_path).open("label", made.digest))["labels.bin"] == content


def test_a_foreign_file_in_a_view_does_not_stay(tmp_path):
    store = Store(tmp_path)
    digest = store.make(RECIPE, build).digest
    (store.open("label", digest) / "planted.pkl").write_text("x")
    assert set(contents(store.open("label", digest))) == {"labels.bin", "part/0.bin"}


def test_a_failed_build_leaves_nothing_and_keeps_its_scratch(tmp_path):
    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        (store.scratch(RECIPE) / "checkpoint").write_text("epoch 3")
        raise DataError("no events", where="events.csv")

    store = Store(tmp_path)
    with pytest.raises(DataError):
        store.make(RECIPE, fails)
    assert store.find(RECIPE) is None
    assert (store.scratch(RECIPE) / "checkpoint").read_text() == "epoch 3"
    store.make(RECIPE, build)
    assert not (tmp_path / "scratch" / RECIPE.key).exists()


def test_an_unreadable_input_is_not_taken_for_a_full_disk(tmp_path):
    def build(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/events.csv")

    with pytest.raises(PermissionError):
        Store(tmp_path).make(RECIPE, build)


@pytest.mark.parametrize("kind", ["nothing", "link"])
def test_an_object_is_plain_files(tmp_path, kind):
    def build(folder: Path) -> None:
        if kind == "link":
            (folder / "a").symlink_to("/etc/passwd")

    with pytest.raises(StoreError, match="wrote nothing" if kind == "nothing" else "no plain file"):
        Store(tmp_path).make(RECIPE, build)


def test_of_many_processes_one_builds(tmp_path):
    def slow(folder: Path) -> None:
        (tmp_path / f"built-{os.getpid()}").touch()
        time.sleep(0.2)
        build(folder)

    processes = [FORK.Process(target=lambda: Store(tmp_path / "s").make(RECIPE, slow)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 6
    assert len(list(tmp_path.glob("built-*"))) == 1


def test_what_a_killed_build_of_another_recipe_left_is_swept_but_not_a_living_one(tmp_path):
    def dies(folder: Path) -> None:
        (folder / "half").write_text("x")
        os._exit(9)

    other = Recipe("teach", 1, {}, ())
    process = FORK.Process(target=lambda: Store(tmp_path).make(other, dies))
    process.start()
    process.join()
    assert [p.name for p in (tmp_path / "tmp").iterdir()] == [other.key]

    def looks(folder: Path) -> None:
        build(folder)
        assert [p.name for p in (tmp_path / "tmp").iterdir()] == [RECIPE.key]
        Store(tmp_path).make(Recipe("judge", 1, {}, ()), build)  # must not sweep the one that is being built
        assert (folder / "labels.bin").exists()

    Store(tmp_path).make(RECIPE, looks)


def test_heads(tmp_path):
    store = Store(tmp_path)
    assert store.head("catalog") is None
    store.set_head("catalog", {"digest": "a"})
    store.set_head("catalog", {"digest": "b"})
    assert Store(tmp_path).head("catalog") == {"digest": "b"}
    assert store.once("night", {"teacher": 1}) == {"teacher": 1}
    assert store.once("night", {"teacher": 2}) == {"teacher": 1}
    (tmp_path / "heads" / "catalog.json").write_text("{")
    with pytest.raises(StoreError, match="a head of the store is damaged"):
        store.head("catalog")


@pytest.mark.parametrize(
    ("old", "new"), [(b'"digest": "b', b'"digest": "c'), (b'"items": 4', b'"items": 5'), (b'"sha256"', b'"sha257"')]
)
def test_a_head_that_is_another_but_still_json_is_refused_with_the_mend(tmp_path, old, new):
    store, path = Store(tmp_path), tmp_path / "heads" / "catalog.json"
    store.set_head("catalog", {"digest": "b" * 64, "items": 4})
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(StoreError, match=r"a head of the store is damaged.*catalog\.json.*fsck --repair"):
        store.head("catalog")
    with pytest.raises(StoreError, match="damaged"):
        store.move_head("catalog", lambda head: {"digest": "d"})
    store.set_head("catalog", {"digest": "d"})
    assert store.head("catalog") == {"digest": "d"}


def test_a_head_of_before_there_were_checksums_is_read(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "heads" / "last.json").write_text(json.dumps({"digest": "b" * 64, "dataset": "c" * 64, "items": 4}))
    assert store.head("last") == {"digest": "b" * 64, "dataset": "c" * 64, "items": 4}
    (tmp_path / "heads" / "last.json").write_text("[]")
    with pytest.raises(StoreError, match="damaged"):
        store.head("last")


def test_the_manifest_file_is_json_with_its_own_checksum(tmp_path):
    Store(tmp_path).make(RECIPE, build)
    path = next((tmp_path / "manifests").rglob("*.json"))
    text = json.loads(path.read_text())
    assert sorted(text) == ["manifest", "sha256"]
    assert text["manifest"]["parents"] == ["aa", "bb"]


def test_what_fails_while_a_folder_is_copied_is_told_with_the_file(tmp_path):
    failed = shutil.Error([("there/a", str(tmp_path / "a"), "[Errno 5] Input/output error: 'there/a'")])
    with pytest.raises(HomeError, match="cannot write: Input/output error") as told_of, told(tmp_path):
        raise failed
    assert told_of.value.where == str(tmp_path / "a")
    with pytest.raises(shutil.Error), told(tmp_path):
        raise shutil.Error("the same file")
