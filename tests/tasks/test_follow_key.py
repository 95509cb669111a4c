"""The key of a shared store is changed: interrupted, it is gone on with; a home that follows has its users and knows the forgotten."""

import shutil
from pathlib import Path

import pytest

from recsys.errors import ConfigError, HomeError
from tasks import rotate_key as rotating
from tasks.adapters.night_lock import Holder, alone_tonight
from tasks.adapters.settings import Settings
from tasks.adapters.vault import Vault, forgotten, key_changes
from tasks.adapters.vault_key import next_to
from tasks.eras import catch_up
from tasks.follow_key import follow_key
from tasks.forget_users import forget_users
from tasks.rotate_key import rotate_key
from tasks.workshop import Workshop
from tests.tasks.adapters.test_remote_store import Bucket, opened
from tests.tasks.adapters.test_remote_store import server as server

USERS = [f"user-{number:06}" for number in range(120)]


@pytest.fixture
def bucket(server, released, monkeypatch) -> Bucket:
    found = opened(server, monkeypatch)
    monkeypatch.setenv("RECSYS_STORE", f"s3://{found.name}/a/b")
    return found


@pytest.fixture
def home(released, bucket) -> Path:
    """Its vault has the users; its store is in a bucket now."""
    return Workshop.of(Settings.from_environment(released.settings.home).prepare()).settings.home


@pytest.fixture
def other(home, tmp_path) -> Path:
    """A home of the same store and key, on another host."""
    shutil.copytree(home, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "mlflow")  # it would be taken for one that was moved
    return tmp_path / "other"


def workshop(home: Path) -> Workshop:
    return Workshop.of(Settings.from_environment(home).prepare())


def follow(home: Path, new_key_file: Path | None = None):
    return follow_key(Settings.from_environment(home), "a test", new_key_file)


def named(vault: Vault) -> set[str]:
    return set(vault.user_ids([vault.door.token(user) for user in USERS]).values())


def known_as_forgotten(home: Path) -> list[str]:
    vault = Vault(home / "vault")
    return [user for user in USERS if forgotten(vault.folder).keys() & set(vault.door.names(user))]


def test_interrupted_between_store_and_vault_the_same_command_goes_over_to_the_store_s_key(home, monkeypatch):
    forget_users(workshop(home), USERS[:2])
    old, real = (home / "vault" / "key").read_bytes(), rotating.begin_under_another_key

    def interrupted(*given):
        real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(rotating, "begin_under_another_key", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rotate_key(workshop(home), "a test")
    assert (home / "vault" / "key").read_bytes() == old
    with pytest.raises(HomeError, match=r"another key than the shared store.*run recsys rotate-key here"):
        workshop(home)
    done = follow(home)
    assert done
    assert (done.users, done.forgotten) == (118, 2)
    assert (home / "vault" / "key").read_bytes() != old
    assert not next_to(home / "vault" / "key").exists()
    assert workshop(home).settings.shared.era == 2
    assert follow(home) is None, "there is nothing left to follow"
    assert catch_up(workshop(home)) == 0
    assert named(Vault(home / "vault")) == set(USERS[2:])
    assert known_as_forgotten(home) == USERS[:2]


def test_interrupted_before_the_store_changed_nothing_has_and_the_next_key_is_a_new_one(home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rotating, "erase_objects", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rotate_key(workshop(home), "a test")
    left = next_to(home / "vault" / "key").read_bytes()
    assert named(Vault(home / "vault")) == set(USERS)
    assert follow(home) is None
    assert rotate_key(workshop(home), "a test").users == 120
    assert (home / "vault" / "key").read_bytes() != left
    assert len(key_changes(home / "vault")) == 1


def test_killed_after_the_users_went_over_the_key_is_not_changed_once_more(home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tasks.adapters.vault_key.settle", lambda *given: False)
        rotate_key(workshop(home), "a test")
    new = next_to(home / "vault" / "key").read_bytes()
    done = follow(home)
    assert done
    assert done.users is None
    assert (home / "vault" / "key").read_bytes() == new
    assert named(Vault(home / "vault")) == set(USERS)


def test_who_was_forgotten_before_the_key_changed_is_forgotten_by_who_follows(home, other, bucket):
    forget_users(workshop(home), USERS[:3])
    rotate_key(workshop(home), "a test")
    forget_users(workshop(home), USERS[3:4])
    with pytest.raises(ConfigError, match="the new one is not here"):
        follow(other)
    assert named(Vault(other / "vault")) == set(USERS), "nothing was touched"
    shutil.copy(home / "vault" / "key", next_to(other / "vault" / "key")).chmod(0o644)
    night = alone_tonight(Settings.from_environment(other), Holder.me("nightly", "", "all"), lambda holder: None)
    with night, pytest.raises(HomeError, match="a night is at work"):
        follow(other)
    done = follow(other)
    assert done
    assert (done.users, done.forgotten) == (117, 3)
    assert (other / "vault" / "key").stat().st_mode & 0o777 == 0o600
    assert catch_up(workshop(other)) == 1
    assert named(Vault(other / "vault")) == set(USERS[4:])
    assert known_as_forgotten(other) == known_as_forgotten(home) == USERS[:4]


def test_a_home_that_missed_a_change_is_told_and_one_that_begins_anew_knows_the_forgotten(home, other, tmp_path):
    for user in USERS[:2]:
        forget_users(workshop(home), [user])
        rotate_key(workshop(home), "a test")
    given = shutil.copy(home / "vault" / "key", tmp_path / "a key")
    with pytest.raises(HomeError, match="missed an earlier change"):
        follow(other, Path(given))
    assert named(Vault(other / "vault")) == set(USERS)
    anew = tmp_path / "anew"
    (anew / "vault").mkdir(parents=True)
    shutil.copy(given, anew / "vault" / "key")
    assert catch_up(workshop(anew)) == 2
    assert known_as_forgotten(anew) == USERS[:2]


def test_keys_that_are_given_stay_where_they_are(home, other, tmp_path, monkeypatch):
    given = tmp_path / "given"
    given.write_bytes(b"n" * 32)
    assert rotate_key(workshop(home), "a test", given).users == 120
    old = (other / "vault" / "key").read_bytes()
    done = follow(other, given)
    assert done
    assert done.users == 120
    assert (other / "vault" / "key").read_bytes() == old
    again = follow(other, given)
    assert again
    assert again.users is None, "done again it says that it is done"
    monkeypatch.setenv("RECSYS_VAULT_KEY", str(given))
    assert workshop(other).settings.shared.era == 1
    assert follow(other) is None


def test_a_home_with_a_store_of_its_own_follows_nobody(released):
    assert follow_key(released.settings, "a test") is None
