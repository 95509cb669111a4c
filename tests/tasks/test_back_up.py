"""Backup while somebody writes, restore elsewhere; whatever is not a whole archive is refused and leaves nothing."""

import dataclasses
import io
import multiprocessing
import os
import sqlite3
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from recsys.errors import ConfigError, DataError, HomeError
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.adapters.vault import Vault
from tasks.back_up import back_up, restore
from tasks.check_home import check_home
from tasks.check_store import read_store
from tasks.last_night import LastNight
from tasks.workshop import Workshop

FORK = multiprocessing.get_context("fork")
NOW = datetime(2026, 11, 24, tzinfo=UTC)


def workshop_of(home: Path) -> Workshop:
    for name in ("RECSYS_HOME", "RECSYS_STORE", "RECSYS_VAULT_KEY", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    return Workshop.of(Settings.from_environment(home).prepare().export())


def test_a_home_is_restored_elsewhere_while_the_old_one_is_at_work(released, tmp_path):
    settings = released.settings
    scores = settings.home / "scores" / "20240229T231810Z-v1"
    scores.mkdir(parents=True)
    (scores / "scores.json").write_text('{"as_of": 1, "version": 1}')
    (settings.home / "scores" / "latest").symlink_to(scores.name)
    (settings.home / "shop.json").write_text('{"events": ""}')
    with sqlite3.connect(settings.mlflow / "mlflow.db") as database:
        database.execute("UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE name LIKE 'nightly%'")
    end = FORK.Event()

    vault = Vault(settings.vault, settings.vault_key)

    def night() -> None:
        number = 0
        while not end.is_set():
            user_ids = pa.array([f"new {number}"])
            vault.remember(pa.table({"token": vault.door.tokens(user_ids), "user_id": user_ids}))
            Store(settings.store).make(
                Recipe("night", 1, {"number": number}, ()), lambda out, n=number: (out / "a").write_text(f"{n}")
            )
            number += 1

    process = FORK.Process(target=night)
    process.start()
    done = back_up(settings, tmp_path / "home.tar", NOW)
    end.set()
    process.join()
    assert process.exitcode == 0
    assert done.left_out == ""
    assert os.stat(tmp_path / "home.tar").st_mode & 0o777 == 0o600, "it holds user ids and their key"

    os.rename(settings.home, tmp_path / "burnt")
    made = restore(tmp_path / "home.tar", tmp_path / "new place" / "home")
    assert (made.home, made.made) == (str(settings.home), NOW.isoformat())
    assert made.places > 5
    assert made.closed == 1, "the night that ran when the backup was taken never ends there"
    again = workshop_of(tmp_path / "new place" / "home")
    assert list(check_home(again, read_store(again), repair=False)) == []
    assert again.registry.aliases(STUDENT) == {"champion": 1}
    assert Path(LastNight.of(again.store).report).is_file()
    latest = again.settings.home / "scores" / "latest"
    assert (latest.is_symlink(), (latest / "scores.json").is_file()) == (True, True)
    assert (again.settings.home / "shop.json").read_text() == '{"events": ""}'
    assert again.settings.vault_key.read_bytes() == (tmp_path / "burnt" / "vault" / "key").read_bytes()


def test_a_key_that_is_kept_elsewhere_stays_out_of_the_archive_which_names_nobody_without_it(released, tmp_path):
    inside, key = released.settings, tmp_path / "key"
    tokens = [Vault(inside.vault).door.token("user-000099")]
    os.rename(inside.vault_key, key)
    content = key.read_bytes()
    done = back_up(dataclasses.replace(inside, vault_key=key), tmp_path / "home.tar", NOW)
    assert done.left_out == f"the vault's key, without which users cannot be named, in {key}"
    archived = (tmp_path / "home.tar").read_bytes()
    assert bytes.fromhex(tokens[0]) in archived, "the search finds what is there"
    assert content not in archived
    assert b"user-000099" not in archived
    restore(tmp_path / "home.tar", tmp_path / "new")
    with pytest.raises(HomeError, match="the key of the vault's users is gone"):
        Vault(tmp_path / "new" / "vault")
    assert Vault(tmp_path / "new" / "vault", key).user_ids(tokens) == {tokens[0]: "user-000099"}


@pytest.fixture(scope="module")
def archive(released_for_module) -> Path:
    path = released_for_module.shop.parent / "home.tar"
    back_up(released_for_module.settings, path, NOW)
    return path


def rewritten(archive: Path, to: Path, harm) -> Path:
    """The archive with each member passed through `harm(name, content)`, which gives members instead."""
    with tarfile.open(archive) as old, tarfile.open(to, "w") as new:
        for member in old:
            for name, content in harm(member.name, old.extractfile(member).read()):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                new.addfile(header, io.BytesIO(content))
    return to


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


HARMS = {
    "a bit of a file": (
        lambda n, c: [(n, flipped(c) if n == "mlflow/mlflow.db" else c)],
        "'mlflow/mlflow.db' is damaged",
    ),
    "a bit of the manifest": (lambda n, c: [(n, flipped(c) if n == "MANIFEST.json" else c)], "manifest is damaged"),
    "no manifest": (lambda n, c: [] if n == "MANIFEST.json" else [(n, c)], "its manifest is missing"),
    "a file is gone": (lambda n, c: [] if n == "vault/key" else [(n, c)], "'vault/key' is missing"),
    "a file too many": (
        lambda n, c: [("mlflow/planted.pkl", b"x"), (n, c)] if n == "MANIFEST.json" else [(n, c)],
        "'mlflow/planted.pkl' is not in its manifest",
    ),
    "up and out": (lambda n, c: [("../planted", b"x"), (n, c)] if n == "shards" else [(n, c)], "leads out of the home"),
    "from the root": (lambda n, c: [("/tmp/planted", b"x")] if n == "shards" else [(n, c)], "leads out of the home"),
    "twice": (lambda n, c: [(n, c), (n, c)] if n == "shards" else [(n, c)], "twice"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_no_whole_archive_is_refused_and_leaves_nothing(archive, tmp_path, harm):
    work, message = HARMS[harm]
    bad = rewritten(archive, tmp_path / "bad.tar", work)
    with pytest.raises(DataError, match=message):
        restore(bad, tmp_path / "home")
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_partial_archive_is_refused(archive, tmp_path, share):
    content = archive.read_bytes()
    bad = tmp_path / "bad.tar"
    bad.write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    with pytest.raises(DataError, match="not restored"):
        restore(bad, tmp_path / "home")
    assert list(tmp_path.iterdir()) == [bad]


def test_a_link_in_an_archive_is_refused(archive, tmp_path):
    bad = tmp_path / "bad.tar"
    with tarfile.open(archive) as old, tarfile.open(bad, "w") as new:
        header = tarfile.TarInfo("vault")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc"
        new.addfile(header)
        for member in old:
            new.addfile(member, old.extractfile(member))
    with pytest.raises(DataError, match="no plain file"):
        restore(bad, tmp_path / "home")


def test_nothing_is_overwritten(archive, released_for_module, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("mine")
    with pytest.raises(HomeError, match="there is something already"):
        restore(archive, tmp_path / "home")
    assert (tmp_path / "home" / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match="no new file"):
        back_up(released_for_module.settings, archive, NOW)


def test_a_home_of_a_later_format_is_not_touched(released):
    (released.settings.home / "format").write_text("3")
    with pytest.raises(HomeError, match="this home has format '3', and this version knows formats up to 2"):
        released.settings.prepare()
