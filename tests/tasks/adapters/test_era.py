"""Eras of a shared store: one of several hosts begins the next, who is overtaken names nothing, and what has passed goes."""

import gc
import json

import pytest

from recsys.errors import HomeError, StoreError
from tasks.adapters import era, remote
from tasks.adapters.manifest import with_checksum
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.adapters.vault_tables import Rekeyed
from tasks.eras import begin_next, begin_under_another_key, bring
from tests.tasks.adapters.test_remote_store import RECIPE, Bucket, build, contents, opened, refuses, settings
from tests.tasks.adapters.test_remote_store import server as server

AT, DOOR = 1_700_000_000, "a token of the key"
OTHER = Recipe("label", 3, {"top_k": 50}, ("cc",))


@pytest.fixture
def bucket(server, monkeypatch, own_environment) -> Bucket:
    return opened(server, monkeypatch)


def home(bucket: Bucket, monkeypatch, tmp_path, name: str = "home") -> Settings:
    monkeypatch.setenv("RECSYS_VAULT_KEY", str(tmp_path / "key"))
    return settings(monkeypatch, tmp_path / name, f"s3://{bucket.name}/a/b").prepare()


def forget(store: Store, token: str) -> int:
    """The next era begins with what the cache has."""
    return begin_next(store.shared, store, {token: AT}, DOOR)


def test_of_two_hosts_that_begin_the_same_era_one_does_and_all_forgotten_are_known(bucket, tmp_path):
    root = bucket.host(tmp_path / "one").shared.root
    assert era.present(root) == era.FIRST
    assert era.begin(root, 1, {"a": AT}, DOOR)
    assert not era.begin(root, 1, {"b": AT}, DOOR)
    assert not era.begin(root, 3, {"b": AT}, DOOR)
    assert era.begin(root, 2, {"b": AT + 1, "a": AT + 9}, DOOR)
    assert era.present(root) == era.Era(2, {"a": AT, "b": AT + 1}, cleared=2)
    era.add(root, {"c": AT}, (), DOOR)
    era.add(root, {"c": AT + 5, "a": AT + 5}, (), DOOR)
    assert era.present(root) == era.Era(2, {"a": AT, "b": AT + 1, "c": AT}, cleared=2)


def test_under_another_key_an_era_begins_once_and_a_home_with_the_old_one_adds_nothing(bucket, tmp_path):
    store = bucket.host(tmp_path / "one")
    root, before = store.shared.root, era.present(store.shared.root)
    era.add(root, {"a": AT}, (), DOOR)
    with pytest.raises(HomeError, match="at the same time"):
        begin_under_another_key(store.shared, store, before, Rekeyed(1, {}, ()), "another")
    begin_under_another_key(store.shared, store, era.present(root), Rekeyed(1, {"A": AT}, ("00",)), "another")
    changed = era.Era(1, {"A": AT}, cleared=0, door="another", retired=("00",))
    assert era.present(root) == changed
    for asked in (lambda: era.begin(root, 2, {"b": AT}, DOOR), lambda: era.add(root, {"b": AT}, (), DOOR)):
        with pytest.raises(HomeError, match="another key than the shared store"):
            asked()
    with pytest.raises(HomeError, match="another key than the shared store"):
        bucket.host(tmp_path / "two")
    assert era.add(root, {"B": AT}, ("01",), "another") == era.Era(1, {"A": AT, "B": AT}, 0, "another", ("00",))
    assert era.begin(root, 2, {}, "another")
    assert (era.present(root).cleared, era.present(root).door) == (2, "another")


def test_an_era_of_an_earlier_version_is_read_as_it_was_meant(bucket, tmp_path):
    root = bucket.host(tmp_path / "one").shared.root
    content = json.dumps(with_checksum({"era": 3, "forgotten": {"a": AT}})).encode()
    bucket.client.put_object(Bucket=bucket.name, Key="a/b/era.json", Body=content)
    assert era.present(root) == era.Era(3, {"a": AT}, cleared=3)


@pytest.mark.parametrize("fault", ["lost", "dropped", "503"])
def test_no_fault_of_the_way_begins_two_eras_or_none(bucket, tmp_path, fault):
    store = bucket.host(tmp_path / "one")
    store.make(RECIPE, build)
    bucket.server.fault = lambda method, path, time: fault if time == 1 else ""
    forget(store, "a")
    bucket.server.reset()
    assert era.present(store.shared.root) == era.Era(1, {"a": AT}, cleared=1)
    assert {name.split("/")[0] for name in bucket.names()} == {"era.json", "heads", "era-1"}


def test_what_stays_is_in_the_next_era_and_the_passed_one_is_empty_but_for_the_door(bucket, tmp_path, monkeypatch):
    first = home(bucket, monkeypatch, tmp_path)
    store = Store(first.store)
    made = store.make(RECIPE, build)
    before = contents(store.open("label", made.digest))
    assert forget(store, "a") > 3
    assert [name for name in bucket.names() if not name.startswith("era-1/")] == ["era.json", "heads/door.json"]

    followed = home(bucket, monkeypatch, tmp_path)
    assert followed.shared.era == 1
    assert followed.store != first.store
    assert Settings.from_environment(followed.home) == followed, "the host remembers it, without a request"
    again = Store(followed.store)
    assert again.make(RECIPE, refuses).digest == made.digest
    assert contents(again.open("label", made.digest)) == before
    assert forget(again, "b") > 3
    assert {name.split("/")[0] for name in bucket.names()} == {"era.json", "heads", "era-2"}
    assert home(bucket, monkeypatch, tmp_path, "new").shared.era == 2, "a home that joins later"


def test_what_stays_comes_along_from_a_host_that_has_only_just_followed(bucket, tmp_path, monkeypatch):
    made = Store(home(bucket, monkeypatch, tmp_path).store).make(RECIPE, build)
    for number, name in enumerate(("other", "third"), start=1):
        store = Store(home(bucket, monkeypatch, tmp_path, name).store)
        bring(store, {made.digest, "of which nobody knows"})
        forget(store, name)
        assert home(bucket, monkeypatch, tmp_path, name).shared.era == number
    after = Store(home(bucket, monkeypatch, tmp_path).store)
    assert contents(after.open("label", made.digest))
    assert after.make(RECIPE, refuses).digest == made.digest


def test_who_was_at_work_in_an_era_that_passed_names_nothing_and_is_told(bucket, tmp_path):
    overtaken, other = bucket.host(tmp_path / "overtaken"), bucket.host(tmp_path / "other")
    overtaken.make(RECIPE, build)
    forget(other, "a")
    names = bucket.names()
    with pytest.raises(HomeError, match="while this was at work: what it makes is not kept"):
        overtaken.make(OTHER, build)
    assert bucket.names() == names
    assert not list((overtaken.root / "manifests").glob(f"*/{OTHER.key}.json"))


def test_a_cache_of_a_passed_era_goes_when_no_living_process_uses_it(bucket, tmp_path, monkeypatch):
    first = home(bucket, monkeypatch, tmp_path)
    busy = Store(first.store)
    busy.make(RECIPE, build)
    forget(Store(home(bucket, monkeypatch, tmp_path, "other").store), "a")
    home(bucket, monkeypatch, tmp_path)
    assert contents(first.store / "blobs"), "a process works in it"
    del busy
    gc.collect()
    followed = home(bucket, monkeypatch, tmp_path)
    assert [each.name for each in followed.store.parent.iterdir() if each.is_dir()] == [followed.store.name]


def test_a_host_whose_bucket_is_away_stays_in_the_era_it_knows(bucket, tmp_path, monkeypatch):
    store = Store(home(bucket, monkeypatch, tmp_path).store)
    made = store.make(RECIPE, build)
    forget(store, "a")
    followed = home(bucket, monkeypatch, tmp_path)
    Store(followed.store).make(RECIPE, refuses)
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    bucket.server.fault = lambda method, path, time: "503"
    away = home(bucket, monkeypatch, tmp_path)
    assert away == followed
    assert contents(Store(away.store).open("label", made.digest))


@pytest.mark.parametrize("content", [b"", b"{", b'{"era": 2}', b'{"era": "x", "forgotten": {}, "sha256": "0"}'])
def test_a_damaged_file_of_the_era_is_told_and_not_taken_for_the_first(bucket, tmp_path, monkeypatch, content):
    home(bucket, monkeypatch, tmp_path)
    bucket.client.put_object(Bucket=bucket.name, Key="a/b/era.json", Body=content)
    with pytest.raises(StoreError, match="the file that says who was forgotten is damaged"):
        home(bucket, monkeypatch, tmp_path)


def test_a_bucket_that_has_forgotten_who_was_forgotten_is_told_and_not_begun_anew(bucket, tmp_path, monkeypatch):
    forget(Store(home(bucket, monkeypatch, tmp_path).store), "a")
    assert home(bucket, monkeypatch, tmp_path).shared.era == 1
    bucket.client.delete_object(Bucket=bucket.name, Key="a/b/era.json")
    with pytest.raises(StoreError, match="is in era 0 of its store, and this host knows era 1"):
        home(bucket, monkeypatch, tmp_path)
