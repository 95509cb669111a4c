"""One bucket, several hosts: what they make at once is one object, and no fault of the way leaves a wrong one."""

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.config import Config
from moto import settings as moto_settings

from recsys.errors import ConfigError, HomeError, StoreError
from tasks.adapters import remote
from tasks.adapters.address import Address
from tasks.adapters.fill_bucket import Carried, fill_bucket, keep_ages
from tasks.adapters.remote import Remote
from tasks.adapters.settings import Settings
from tasks.adapters.sharing import join
from tasks.adapters.store import MEASURED, Recipe, Store
from tasks.adapters.sweep import Broom, Kept, sweep
from tasks.build_dataset import advance_catalog
from tests.bucket import Server

RECIPE = Recipe("label", 3, {"top_k": 50}, ("aa", "bb"), {"threads": "1"})
NUMBERS = itertools.count()


def build(folder: Path, more: str = "") -> None:
    (folder / "part").mkdir()
    for name in ("labels.bin", "part/0.bin"):
        (folder / name).write_bytes((name + more).encode() * 100)
    (folder / MEASURED).write_text('{"seconds": 1}')


def refuses(_: Path) -> None:
    pytest.fail("built although it was there")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


def opened(server: Server, patch: pytest.MonkeyPatch) -> "Bucket":
    """A new bucket, as those who use it ask for it; and impatience, so that what is repeated is so at once."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    variables = {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "mine", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**variables, "ENDPOINT_URL": server.url, "EC2_METADATA_DISABLED": "true"}.items():
        patch.setenv(f"AWS_{name}", value)
    patch.setattr(remote, "FIRST_WAIT", 0.001)
    patch.setattr(remote, "ATTEMPTS", 1)
    server.reset()
    return Bucket(server, f"bucket-{next(NUMBERS)}")


@pytest.fixture
def bucket(server, monkeypatch, own_environment):
    return opened(server, monkeypatch)


class Bucket:
    """One as its owner sees it, without the proxy."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.address = Address.of(f"s3://{name}/a/b", server.url)
        url = "http://{}:{}".format(*server.behind)
        style = Config(s3={"addressing_style": "path"})
        self.client = boto3.client("s3", endpoint_url=url, config=style)
        self.client.create_bucket(Bucket=name)

    def host(self, root: Path) -> Store:
        """The store of another host, or of a new process of the same."""
        root.mkdir(exist_ok=True)
        join(root, self.address, lambda: "sample")
        return Store(root)

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", ())
        return sorted(each["Key"].removeprefix("a/b/") for each in found)

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=f"a/b/{name}")["Body"].read()

    def flip(self, name: str) -> None:
        content = bytearray(self.read(name))
        content[len(content) // 2] ^= 1
        self.client.put_object(Bucket=self.name, Key=f"a/b/{name}", Body=bytes(content))

    def blob(self, store: Store, digest: str, name: str) -> str:
        sha256 = next(f.sha256 for f in store.manifest("label", digest).files if f.name == name)
        return f"blobs/{sha256[:2]}/{sha256}"

    def require_whole(self) -> None:
        """No name shows an object of which anything is missing."""
        names = self.names()
        for name in names:
            if name.startswith(("manifests/", "objects/")):
                manifest = json.loads(self.read(name))["manifest"]
                for sha256 in [f["sha256"] for f in manifest["files"]] + [manifest["measured"]]:
                    assert f"blobs/{sha256[:2]}/{sha256}" in names
                assert f"objects/{manifest['step']}/{manifest['digest']}.json" in names


def test_another_host_has_everything_after_the_first_is_gone(bucket, tmp_path):
    first = bucket.host(tmp_path / "first")
    parent = first.make(Recipe("build", 1, {}, ("raw",)), build)
    recipe = Recipe("label", 1, {}, (parent.digest,))
    made = first.make(recipe, lambda out: build(out, "more"))
    expected = contents(first.open("label", made.digest))
    first.set_head("catalog", {"digest": made.digest})
    assert first.once("night", {"teacher": 1}) == {"teacher": 1}
    assert [n.split("/")[0] for n in bucket.names()].count("blobs") == 5  # measured is the same
    (tmp_path / "first").rename(tmp_path / "gone")

    second = bucket.host(tmp_path / "second")
    assert second.head("catalog") == {"digest": made.digest}
    assert second.once("night", {"teacher": 2}) == {"teacher": 1}
    assert contents(second.open("label", made.digest)) == expected
    assert second.read("label", made.digest, "labels.bin") == expected["labels.bin"]
    assert second.measured("label", made.digest) == {"seconds": 1}
    assert second.made_at("build", parent.digest) is not None
    lineage = second.lineage(made.digest)
    assert set(lineage) == {made.digest, parent.digest, "raw"}
    assert lineage[parent.digest].step == "build"
    assert lineage["raw"] is None
    again = second.make(recipe, refuses)
    assert again.reused
    assert again.digest == made.digest
    assert not list((tmp_path / "second" / "tmp").iterdir())
    assert not list((tmp_path / "second" / "scratch").iterdir())

    bucket.server.fault = lambda method, path, time: pytest.fail("asked for what is here")
    assert second.make(recipe, refuses).digest == made.digest
    assert contents(Store(tmp_path / "second").open("label", made.digest)) == expected


def test_a_folder_that_is_carried_up_is_the_store_of_every_host(bucket, tmp_path):
    folder = Store(tmp_path / "folder")
    parent = folder.make(Recipe("build", 1, {}, ("raw",)), build)
    made = folder.make(RECIPE, lambda out: build(out, "more"))
    (folder.root / "manifests" / "build" / f"{parent.key}.json").unlink()  # gc: it is only remembered
    folder.set_head("catalog", {"digest": parent.digest})
    os.utime(folder.root / "objects" / "label" / f"{made.digest}.json", (86_400, 86_400))
    first = bucket.host(tmp_path / "first")
    shared = first.shared
    for _ in range(2):  # done again it is the same
        assert fill_bucket(folder, shared) == Carried(objects=1, remembered=1, heads=1)
        keep_ages(folder, first)
    assert first.made_at("label", made.digest) == 86_400
    assert first.make(RECIPE, refuses).digest == made.digest
    other = bucket.host(tmp_path / "other")
    assert other.make(RECIPE, refuses).digest == made.digest
    assert contents(other.open("label", made.digest)) == contents(folder.open("label", made.digest))
    assert other.manifest("build", parent.digest) == folder.manifest("build", parent.digest)
    assert other.head("catalog") == {"digest": parent.digest}

    other.set_head("catalog", {"digest": made.digest})
    with pytest.raises(HomeError, match="it is another one or has gone on since"):
        fill_bucket(folder, shared)
    assert other.head("catalog") == {"digest": made.digest}


def test_a_folder_with_a_damaged_file_is_carried_up_when_it_is_mended(bucket, tmp_path):
    folder = Store(tmp_path / "folder")
    made = folder.make(RECIPE, build)
    blob = folder.blob(folder.manifest("label", made.digest).files[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"another")
    shared = bucket.host(tmp_path / "first").shared
    with pytest.raises(StoreError, match=f"damaged or missing.*{blob.name}"):
        fill_bucket(folder, shared)
    assert not [name for name in bucket.names() if name.startswith(("manifests/", "objects/"))]
    assert Store(folder.root).make(RECIPE, build).digest == made.digest
    fill_bucket(folder, shared)
    bucket.require_whole()


def test_of_two_hosts_that_make_it_at_once_one_is_right(bucket, tmp_path):
    both = threading.Barrier(2)
    made = {}

    def work(name: str) -> None:
        def slow(out: Path) -> None:
            build(out, name)  # hosts whose bits differ
            both.wait()

        made[name] = bucket.host(tmp_path / name).make(RECIPE, slow)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not made["one"].reused
    assert not made["other"].reused
    assert made["one"].digest == made["other"].digest
    assert len([name for name in bucket.names() if name.startswith("manifests/")]) == 1
    views = [contents(Store(tmp_path / name).open("label", made[name].digest)) for name in made]
    assert views[0] == views[1]
    for name in ("one", "other", "third"):
        again = bucket.host(tmp_path / name).make(RECIPE, refuses)
        assert (again.reused, again.digest) == (True, made["one"].digest)


def story(bucket: Bucket, place: Path) -> list[object]:
    """What two hosts do with every kind of request, and what they come to."""
    first = bucket.host(place / "first")
    made = first.make(RECIPE, build)
    first.set_head("last", {"night": 1})
    first.set_head("last", {"night": 2})
    for _ in range(2):
        first.move_head("count", lambda head: {"n": (head or {"n": 0})["n"] + 1})
    second = bucket.host(place / "second")
    again = second.make(RECIPE, refuses)
    view = contents(second.open("label", again.digest))
    lineage = sorted(second.lineage(made.digest))
    heads = [second.head(name) for name in ("last", "count", "none")]
    once = [store.once("night", {"of": n}) for n, store in enumerate((first, second))]
    return [made.digest, again.digest, view, lineage, heads, once]


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> tuple[list[object], list[str]]:
    """The story where nothing fails, and the names that are in the bucket then."""
    with pytest.MonkeyPatch.context() as patch:
        bucket = opened(server, patch)
        return story(bucket, tmp_path_factory.mktemp("undisturbed")), bucket.names()


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("fault", ["500", "503", "dropped", "lost", "slow", "half"])
def test_every_request_may_fail_and_nothing_is_wrong_or_twice(undisturbed, bucket, tmp_path, monkeypatch, fault, times):
    monkeypatch.setattr(remote, "ANSWER", 0.3 if fault == "slow" else 20)
    # to wait for all that is slow twice would take half a minute: then it is the puts alone
    waits = fault == "slow" and times == 2
    bucket.server.fault = lambda method, path, time: fault if time <= times and (method == "PUT" or not waits) else ""
    found = story(bucket, tmp_path)
    asked = {method for method, _ in bucket.server.seen}
    bucket.server.reset()
    assert (found, bucket.names()) == undisturbed
    assert found[4] == [{"night": 2}, {"n": 2}, None]
    assert asked == {"GET", "PUT", "HEAD"}
    bucket.require_whole()


class KilledError(BaseException):
    """As from outside."""


def test_a_host_that_dies_at_any_request_leaves_nothing_half(bucket, tmp_path, monkeypatch):
    ask, digests = Remote._ask, set()

    def dies(self, call, **more):
        if next(asked) == at:
            raise KilledError
        return ask(self, call, **more)

    for at in itertools.count(1):
        fresh, asked = Bucket(bucket.server, f"{bucket.name}-{at}"), itertools.count(1)
        store = fresh.host(tmp_path / f"{at}")
        monkeypatch.setattr(Remote, "_ask", dies)
        try:
            store.make(RECIPE, build)
            break  # there is no request left to die at
        except KilledError:
            fresh.require_whole()
        finally:
            monkeypatch.setattr(Remote, "_ask", ask)
        digests.add(fresh.host(tmp_path / f"{at}").make(RECIPE, build).digest)
        digests.add(fresh.host(tmp_path / f"{at}-other").make(RECIPE, refuses).digest)
        fresh.require_whole()
    assert at > 8
    assert len(digests) == 1


def test_a_flipped_byte_in_the_bucket_is_refused_by_name_and_made_again(bucket, tmp_path):
    digest = bucket.host(tmp_path / "first").make(RECIPE, build).digest
    name = bucket.blob(Store(tmp_path / "first"), digest, "labels.bin")
    whole = bucket.read(name)
    bucket.flip(name)
    second = bucket.host(tmp_path / "second")
    with pytest.raises(StoreError) as refused:
        second.open("label", digest)
    assert f"label/labels.bin is damaged, expected sha256 {name[-64:]}, found " in str(refused.value)
    assert f"s3://{bucket.name}/a/b/{name} at {bucket.server.url}" in str(refused.value)
    assert not (tmp_path / "second" / name).exists()
    assert len(list((tmp_path / "second" / "bad").iterdir())) == 1  # the evidence
    made = bucket.host(tmp_path / "second").make(RECIPE, build)
    assert (made.reused, made.digest) == (False, digest)
    assert bucket.read(name) == whole
    assert bucket.host(tmp_path / "third").make(RECIPE, refuses).digest == digest


def test_what_is_lost_in_the_bucket_is_made_again_even_as_other_bytes(bucket, tmp_path):
    digest = bucket.host(tmp_path / "first").make(RECIPE, build).digest
    bucket.client.delete_object(
        Bucket=bucket.name, Key=f"a/b/{bucket.blob(Store(tmp_path / 'first'), digest, 'labels.bin')}"
    )
    second = bucket.host(tmp_path / "second")
    with pytest.raises(StoreError, match=r"label/labels\.bin is missing"):
        second.open("label", digest)
    made = second.make(RECIPE, lambda out: build(out, "other"))
    assert not made.reused
    assert made.digest != digest
    assert bucket.host(tmp_path / "third").make(RECIPE, refuses).digest == made.digest


@pytest.mark.parametrize("folder", ["manifests", "objects"])
def test_a_damaged_manifest_in_the_bucket_is_made_again(bucket, tmp_path, folder):
    digest = bucket.host(tmp_path / "first").make(RECIPE, build).digest
    bucket.flip(next(name for name in bucket.names() if name.startswith(folder)))
    second = bucket.host(tmp_path / "second").make(RECIPE, build)
    assert (second.reused, second.digest) == (False, digest)
    assert bucket.host(tmp_path / "third").make(RECIPE, refuses).digest == digest


def test_a_damaged_file_of_the_cache_is_brought_again(bucket, tmp_path):
    digest = bucket.host(tmp_path / "first").make(RECIPE, build).digest
    path = tmp_path / "first" / bucket.blob(Store(tmp_path / "first"), digest, "labels.bin")
    path.chmod(0o644)
    path.write_bytes(b"x")
    for manifest in (tmp_path / "first" / "manifests").rglob("*.json"):
        manifest.chmod(0o644)
        manifest.write_bytes(b"x")
    store = Store(tmp_path / "first")
    assert store.make(RECIPE, refuses).digest == digest
    assert (store.open("label", digest) / "labels.bin").read_bytes() == b"labels.bin" * 100
    assert list((tmp_path / "first" / "bad").iterdir())


def test_what_was_made_while_the_bucket_was_away_is_named_later_and_not_made_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    store = bucket.host(tmp_path / "first")

    def last(out: Path) -> None:
        build(out)
        bucket.server.fault = lambda method, path, time: "503"

    with pytest.raises(HomeError, match="is not well: it kept answering 503"):
        store.make(RECIPE, last)
    assert not list((tmp_path / "first" / "manifests").rglob("*.json"))
    assert not [name for name in bucket.names() if name.startswith(("manifests", "blobs", "objects"))]
    bucket.server.reset()
    sweep(store, lambda: Kept(frozenset()), time.time() - 3600, Broom(dry_run=False))  # gc knows that it is young
    assert bucket.host(tmp_path / "first").make(RECIPE, refuses).reused
    assert bucket.host(tmp_path / "second").make(RECIPE, refuses).reused
    assert not list((tmp_path / "first" / "scratch").iterdir())


def test_a_large_file_goes_up_in_parts_and_memory_stays_bounded(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_PART", 5 << 20)
    content = os.urandom(1 << 20) * 12

    store = bucket.host(tmp_path / "first")
    made = store.make(RECIPE, lambda out: (out / "labels.bin").write_bytes(content))
    assert ("POST", f"/{bucket.name}/a/b/{bucket.blob(store, made.digest, 'labels.bin')}") in bucket.server.seen
    bucket.server.times.clear()
    bucket.server.fault = lambda method, path, time: "half" if time <= 3 and "blobs" in path else ""
    other = bucket.host(tmp_path / "second")
    assert (other.open("label", made.digest) / "labels.bin").read_bytes() == content


def test_heads_of_two_hosts_move_one_after_the_other(bucket, tmp_path):
    hosts = [bucket.host(tmp_path / name) for name in ("one", "other")]

    def append(store: Store) -> None:
        for each in range(5):
            word = f"{store.root.name} {each}"
            store.move_head("list", lambda head, word=word: {"words": [*(head or {"words": []})["words"], word]})

    threads = [threading.Thread(target=append, args=(store,)) for store in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = [store.head("list")["words"] for store in hosts]
    assert words[0] == words[1]
    assert sorted(words[0]) == [f"{name} {each}" for name in ("one", "other") for each in range(5)]
    assert Store(tmp_path / "a-folder").move_head("count", lambda head: {"n": 1}) == {"n": 1}  # and without a bucket
    assert Store(tmp_path / "a-folder").move_head("count", lambda head: None) == {"n": 1}
    bucket.client.put_object(Bucket=bucket.name, Key="a/b/heads/count.json", Body=b"{")
    with pytest.raises(StoreError, match="a head of the store is damaged"):
        hosts[0].head("count")
    hosts[0].set_head("count", {"n": 0})
    assert hosts[1].head("count") == {"n": 0}


def test_two_nights_at_once_do_not_give_one_code_to_two_items(bucket, tmp_path):
    def catalog(store: Store, *items: str) -> str:
        recipe = Recipe("build", 1, {"items": items}, ())
        table = pa.table({"item_id": list(items)})
        return store.make(recipe, lambda out: pq.write_table(table, out / "catalog.parquet")).digest

    one, other = (bucket.host(tmp_path / name) for name in ("one", "other"))
    before, longer = catalog(one, "a", "b"), catalog(one, "a", "b", "c", "d")
    assert advance_catalog(one, before) is None
    assert advance_catalog(one, longer) is None
    parted = catalog(other, "a", "b", "x", "y", "z")
    assert advance_catalog(other, parted) == {"digest": longer, "items": 4}
    assert advance_catalog(other, before) is None  # a night repeated
    assert advance_catalog(other, catalog(other, "a", "b", "c", "d", "x")) is None
    assert one.head("catalog")["items"] == 5


def settings(monkeypatch, tmp_path, place: str) -> Settings:
    monkeypatch.setenv("RECSYS_STORE", place)
    return Settings.from_environment(tmp_path / "home")


def test_a_home_names_its_bucket_and_so_do_its_children(bucket, tmp_path, monkeypatch):
    found = settings(monkeypatch, tmp_path, f"s3://{bucket.name}/a/b/").prepare().export()
    assert found.store.parent == found.cache / "s3"
    Store(found.store).set_head("catalog", {"digest": "a"})
    assert json.loads(bucket.read("heads/catalog.json"))["digest"] == "a"
    assert Settings.from_environment(found.home) == found
    monkeypatch.setenv("RECSYS_STORE", f"s3://{bucket.name}/c")
    assert Settings.from_environment(found.home).store != found.store
    monkeypatch.setenv("RECSYS_STORE", "")
    assert Settings.from_environment(found.home).store == found.home / "store"
    (found.store / "shared").unlink()
    with pytest.raises(HomeError, match="the cache of the shared store is gone"):
        Store(found.store)


def test_a_home_with_another_key_is_no_host_of_the_same_store(bucket, tmp_path, monkeypatch):
    first = settings(monkeypatch, tmp_path, f"s3://{bucket.name}/a/b").prepare()
    other = Settings.from_environment(tmp_path / "other")
    with pytest.raises(HomeError, match="another key than the shared store"):
        other.prepare()
    monkeypatch.setenv("RECSYS_VAULT_KEY", str(first.vault_key))
    Settings.from_environment(tmp_path / "third").prepare()


@pytest.mark.parametrize(
    "place", ["gs://bucket/a", "s3://", "s3://Bucket/a", "s3://bucket/../a", "s3://bucket//a/b//c"]
)
def test_what_is_no_address_is_told(tmp_path, monkeypatch, own_environment, place):
    with pytest.raises(ConfigError, match=r"is no place for a store \(RECSYS_STORE\)"):
        settings(monkeypatch, tmp_path, place)


def refused(monkeypatch, tmp_path, place: str) -> str:
    with pytest.raises(HomeError) as told:
        settings(monkeypatch, tmp_path, place).prepare()
    assert not list((tmp_path / "home" / "cache" / "s3").rglob("shared*"))
    return str(told.value)


def test_a_bucket_that_is_not_there_is_told_with_its_address(bucket, tmp_path, monkeypatch):
    told = refused(monkeypatch, tmp_path, "s3://no-such-bucket/a")
    assert f"the store's bucket is not there (s3://no-such-bucket/a at {bucket.server.url})" in told
    assert "RECSYS_STORE" in told


def test_credentials_that_are_refused_or_missing_are_told(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on it looks at them
    told = refused(monkeypatch, tmp_path, f"s3://{bucket.name}/a")
    assert "the store refuses these credentials (InvalidAccessKeyId)" in told
    assert bucket.server.url in told
    assert "AWS_SECRET_ACCESS_KEY" in told
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "there are no credentials for the store" in refused(monkeypatch, tmp_path, f"s3://{bucket.name}/a")


def test_a_server_that_is_away_is_told_with_its_address(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    told = refused(monkeypatch, tmp_path, "s3://bucket/a")
    assert "the store's server does not answer" in told
    assert "s3://bucket/a at http://127.0.0.1:9" in told
    assert "AWS_ENDPOINT_URL" in told


def test_a_server_without_conditions_is_not_used(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(Remote, "swap", lambda *_: True)
    with pytest.raises(ConfigError, match="takes no notice of If-None-Match"):
        settings(monkeypatch, tmp_path, f"s3://{bucket.name}/a").prepare()


def test_without_boto3_the_command_that_brings_it_is_told(tmp_path, monkeypatch, own_environment):
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "tasks.adapters.remote")
    with pytest.raises(ConfigError, match=r"boto3, which is not installed .*pip install 'recsys-factory\[s3\]'"):
        settings(monkeypatch, tmp_path, "s3://bucket/a").prepare()
