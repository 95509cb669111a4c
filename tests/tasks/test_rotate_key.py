"""The vault's key is changed: users keep their names, the forgotten stay so, of the old tokens nothing is left; killed, it is finished."""

import dataclasses
import sqlite3
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.errors import ConfigError, HomeError
from tasks.adapters.night_lock import Holder, alone_tonight
from tasks.adapters.registry import STUDENT
from tasks.adapters.store import Recipe, Store
from tasks.adapters.vault import Vault, forgotten, key_changes
from tasks.adapters.vault_key import next_to
from tasks.back_up import back_up, restore
from tasks.check_home import check_home
from tasks.check_store import read_store
from tasks.forget_users import forget_users
from tasks.rotate_key import rotate_key
from tasks.workshop import Workshop

NOW = datetime(2026, 11, 24, tzinfo=UTC)
USERS = [f"user-{number:06}" for number in range(120)]
KILLED = """
import os, sys
from pathlib import Path
from tasks import rotate_key
from tasks.adapters import vault_key, vault_tables
from tasks.adapters.settings import Settings
from tasks.workshop import Workshop
owner, name = {"erase_objects": (rotate_key, "erase_objects"), "erase_pages": (rotate_key, "erase_pages"),
               "wipe": (vault_tables, "wipe"), "settle": (vault_key, "settle")}[sys.argv[2]]
real = getattr(owner, name)
calls = []
def killed(*given, **named):
    calls.append(given)
    if name == "settle" and len(calls) < 2:  # the first is the command's own look for what is left to do
        return real(*given, **named)
    os._exit(9)
setattr(owner, name, killed)
settings = Settings.from_environment(Path(sys.argv[1])).prepare().export()
rotate_key.rotate_key(Workshop.of(settings), "a test")
"""


@pytest.fixture
def workshop(own_environment, released) -> Workshop:
    return Workshop.of(released.settings)


def vault_of(workshop: Workshop) -> Vault:
    return Vault(workshop.settings.vault, workshop.settings.vault_key)


def named(vault: Vault) -> set[str]:
    return set(vault.user_ids([vault.door.token(user) for user in USERS]).values())


def names_somebody(home: Path, tokens: list[str]) -> list[str]:
    """Files of a home in which one of the tokens stands: as text, as bytes, or in a column of Parquet."""
    wanted = pa.array(tokens)
    return [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file() and _holds(path, wanted)]


def _holds(path: Path, tokens: pa.Array) -> bool:
    content = path.read_bytes()
    if content[:4] == b"PAR1":
        columns = [column for column in pq.read_table(path).columns if pa.types.is_string(column.type)]
        if any(pc.any(pc.is_in(column, tokens)).as_py() for column in columns):
            return True
    return any(token.encode() in content or bytes.fromhex(token) in content for token in tokens.to_pylist())


def test_users_keep_their_names_and_of_the_old_tokens_none_is_left(workshop):
    settings, gone = workshop.settings, USERS[:3]
    forget_users(workshop, gone)
    old = vault_of(workshop)
    tokens = [old.door.token(user) for user in USERS]
    Store(settings.store).make(
        Recipe("validate", 1, {"test": 1}, ()), lambda out: (out / "tokens").write_text(tokens[5])
    )
    assert {name.split("/")[0] for name in names_somebody(settings.home, tokens)} == {"store", "vault"}
    old_key = settings.vault_key.read_bytes()
    done = rotate_key(workshop, "the laptop was stolen")
    assert (done.users, done.forgotten, done.champion) == (117, 3, 1)
    assert settings.vault_key.read_bytes() != old_key
    assert settings.vault_key.stat().st_mode & 0o777 == 0o600
    assert not next_to(settings.vault_key).exists()
    assert names_somebody(settings.home, tokens) == []
    assert all(old_key not in path.read_bytes() for path in settings.vault.iterdir())
    assert named(vault_of(workshop)) == set(USERS[3:])
    (change,) = key_changes(settings.vault)
    assert change.reason == "the laptop was stolen"
    workshop.registry.load_check(STUDENT, 1)
    assert list(check_home(workshop, read_store(workshop), repair=False)) == []


def test_the_forgotten_stay_forgotten_under_a_third_key(workshop):
    settings = workshop.settings
    eras = [USERS[:2], USERS[2:4], USERS[4:6]]
    for era in eras:
        forget_users(workshop, era)
        rotate_key(workshop, "a test")
    door, gone = vault_of(workshop).door, forgotten(settings.vault)
    assert len(gone) == 6
    for user in USERS:
        assert gone.keys().isdisjoint(door.names(user)) == (user not in USERS[:6])
    again = forget_users(workshop, [USERS[0], USERS[3], USERS[7]])
    assert (again.users, again.again) == (3, 2)
    assert len(forgotten(settings.vault)) == 7


def test_where_nobody_is_forgotten_no_old_key_is_kept(workshop):
    rotate_key(workshop, "a test")
    door = vault_of(workshop).door
    assert list(door.names("a")) == [door.token("a")]


@pytest.mark.parametrize("at", ["erase_objects", "erase_pages", "wipe", "settle"])
def test_killed_it_leaves_one_key_with_its_users_and_is_finished_by_the_same_command(workshop, at):
    settings = workshop.settings
    forget_users(workshop, USERS[:1])
    old = vault_of(workshop)
    tokens, old_key = [old.door.token(user) for user in USERS], settings.vault_key.read_bytes()
    died = subprocess.run([sys.executable, "-c", KILLED, str(settings.home), at], check=False)
    assert died.returncode == 9
    over = at in ("wipe", "settle")
    assert settings.vault_key.read_bytes() == old_key
    assert next_to(settings.vault_key).exists()
    if at == "erase_pages":
        assert named(vault_of(workshop)) == set(USERS[1:]), "a night may come between"
    done = rotate_key(workshop, "a test")
    assert (done.users is None) == over, "where the users had gone over, the key is not changed once more"
    assert settings.vault_key.read_bytes() != old_key
    assert not next_to(settings.vault_key).exists()
    assert names_somebody(settings.home, tokens) == []
    assert named(vault_of(workshop)) == set(USERS[1:])
    assert not forgotten(settings.vault).keys().isdisjoint(vault_of(workshop).door.names(USERS[0]))


@pytest.mark.parametrize("at", ["wipe", "settle"])
def test_killed_at_its_last_steps_whoever_opens_the_vault_finishes_it(workshop, at):
    settings = workshop.settings
    tokens = [vault_of(workshop).door.token(user) for user in USERS]
    subprocess.run([sys.executable, "-c", KILLED, str(settings.home), at], check=False)
    assert named(vault_of(workshop)) == set(USERS)
    assert not next_to(settings.vault_key).exists()
    assert names_somebody(settings.vault, tokens) == []


def test_a_failure_leaves_the_old_key_and_no_other(workshop, monkeypatch):
    def fails(*given, **named):
        raise HomeError("something is in use", where="", mend="")

    monkeypatch.setattr("tasks.rotate_key.erase_objects", fails)
    before = workshop.settings.vault_key.read_bytes()
    with pytest.raises(HomeError, match="something is in use"):
        rotate_key(workshop, "a test")
    assert workshop.settings.vault_key.read_bytes() == before
    assert not next_to(workshop.settings.vault_key).exists()
    assert named(vault_of(workshop)) == set(USERS)
    assert key_changes(workshop.settings.vault) == []


def test_a_key_that_is_given_stays_where_it_is_and_the_old_one_opens_nothing(workshop, tmp_path):
    settings, new = workshop.settings, tmp_path / "new key"
    new.write_bytes(b"n" * 32)
    old = settings.vault_key.read_bytes()
    assert rotate_key(workshop, "a test", new).users == 120
    assert settings.vault_key.read_bytes() == old
    with pytest.raises(HomeError, match="belong to another key"):
        vault_of(workshop)
    assert named(Vault(settings.vault, new)) == set(USERS)
    assert rotate_key(workshop, "a test", new).users is None, "done again it says that it is done"
    turned = Workshop.of(dataclasses.replace(settings, vault_key=new))
    with pytest.raises(ConfigError, match="that is the key which the users have"):
        rotate_key(turned, "a test", new)


def test_what_is_no_key_is_refused_before_anything_is_touched(workshop, tmp_path):
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(HomeError, match="has 5 bytes, fewer than 32"):
        rotate_key(workshop, "a test", tmp_path / "short")
    with pytest.raises(ConfigError, match="the new key cannot be read: No such file"):
        rotate_key(workshop, "a test", tmp_path / "nothing")
    assert named(vault_of(workshop)) == set(USERS)
    assert list((workshop.settings.store / "manifests").glob("validate/*.json"))


def test_while_a_night_is_at_work_it_is_refused(workshop):
    with alone_tonight(workshop.settings, Holder.me("nightly", "", "all"), lambda holder: None):
        with pytest.raises(HomeError, match="a night is at work"):
            rotate_key(workshop, "a test")
        with pytest.raises(HomeError, match="a night is at work"):
            forget_users(workshop, USERS[:1])
    assert named(vault_of(workshop)) == set(USERS)


def test_a_user_whose_id_is_damaged_is_left_out_until_events_name_it_again(workshop):
    old = vault_of(workshop)
    with sqlite3.connect(workshop.settings.vault / "users.sqlite") as table:
        table.execute("UPDATE users SET user_id = x'00' WHERE token = ?", [bytes.fromhex(old.door.token(USERS[0]))])
    assert rotate_key(workshop, "a test").users == 119
    assert named(vault_of(workshop)) == set(USERS[1:])


def test_a_backup_is_of_one_key_whatever_is_changed_meanwhile(workshop, tmp_path, monkeypatch):
    settings = workshop.settings
    back_up(settings, tmp_path / "before.tar", NOW)
    rotate_key(workshop, "a test")
    next_to(settings.vault_key).write_bytes(b"n" * 32)
    back_up(settings, tmp_path / "after.tar", NOW)
    with tarfile.open(tmp_path / "after.tar") as archive:
        assert [name for name in archive.getnames() if name.startswith("vault/")] == ["vault/users.sqlite", "vault/key"]
    for name in ("before", "after"):
        restore(tmp_path / f"{name}.tar", tmp_path / name)
        assert named(Vault(tmp_path / name / "vault")) == set(USERS)
    assert (tmp_path / "before" / "vault" / "key").read_bytes() != settings.vault_key.read_bytes()

    def changed(*given):  # what it does when it has erased all that a backup would wait for
        rotate_key(workshop, "a test")

    monkeypatch.setattr("tasks.rotate_key.erase_objects", lambda *given, **named: None)
    monkeypatch.setattr("tasks.back_up._add_objects", changed)
    with pytest.raises(HomeError, match="the vault's key was changed meanwhile"):
        back_up(settings, tmp_path / "between.tar", NOW)
    assert not (tmp_path / "between.tar").exists()
