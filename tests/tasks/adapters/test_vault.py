"""The vault: one key, made once; tokens lead back to users here and nowhere else."""

import sqlite3
import stat
import subprocess
import sys

import pyarrow as pa
import pytest

from recsys.errors import HomeError
from tasks.adapters.vault import KEY_BYTES, Vault


def remembered(vault, *users):
    ids = pa.array(users)
    tokens = vault.door.tokens(ids)
    vault.remember(pa.table({"token": tokens, "user_id": ids}))
    return tokens.to_pylist()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_users_come_back(tmp_path):
    vault = Vault(tmp_path / "vault")
    users = ["alice", "007", "émoji 🛒", "x'; DROP TABLE users; --", "a" * 512]
    tokens = remembered(vault, *users)
    assert list(vault.each_user_id(["0" * 32, *reversed(tokens)])) == list(
        zip(reversed(tokens), reversed(users), strict=True)
    )
    assert Vault(tmp_path / "vault").user_ids(tokens[:1]) == {tokens[0]: "alice"}
    assert vault.user_ids([]) == {}


def test_remembering_twice_changes_nothing(tmp_path):
    vault = Vault(tmp_path / "vault")
    tokens = remembered(vault, "a", "b")
    assert remembered(vault, "b", "c")[0] == tokens[1]
    assert len(vault.user_ids([*tokens, vault.door.token("c")])) == 3


def test_more_tokens_than_one_query_takes(tmp_path):
    vault = Vault(tmp_path / "vault")
    tokens = remembered(vault, *(f"user-{i}" for i in range(25_000)))
    assert [user for _, user in vault.each_user_id(iter(tokens))] == [f"user-{i}" for i in range(25_000)]


def test_the_key_is_random_secret_and_made_once(tmp_path):
    first, other = Vault(tmp_path / "one"), Vault(tmp_path / "two")
    key = (tmp_path / "one" / "key").read_bytes()
    assert len(key) == KEY_BYTES
    assert key != (tmp_path / "two" / "key").read_bytes()
    assert first.door.token("a") == Vault(tmp_path / "one").door.token("a") != other.door.token("a")
    assert (mode(tmp_path / "one"), mode(tmp_path / "one" / "key"), mode(tmp_path / "one" / "users.sqlite")) == (
        0o700,
        0o600,
        0o600,
    )
    assert not list((tmp_path / "one").glob("key.*"))


def test_a_key_kept_elsewhere(tmp_path):
    key = tmp_path / "secrets" / "key"
    made = Vault(tmp_path / "vault", key)
    assert mode(key) == 0o600
    assert not (tmp_path / "vault" / "key").exists()
    assert Vault(tmp_path / "vault", key).door.token("a") == made.door.token("a")


def test_processes_that_open_a_new_vault_at_once_agree_on_the_key(tmp_path):
    code = (
        "import sys, pathlib, pyarrow as pa; from tasks.adapters.vault import Vault; v = Vault(pathlib.Path(sys.argv[1]));"
        "ids = pa.array([sys.argv[2], 'shared']); v.remember(pa.table({'token': v.door.tokens(ids), 'user_id': ids}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "vault")]
    running = [subprocess.Popen([*command, f"user-{i}"], stderr=subprocess.PIPE) for i in range(4)]
    assert [(p.communicate()[1], p.returncode) for p in running] == [(b"", 0)] * 4
    vault = Vault(tmp_path / "vault")
    tokens = [vault.door.token(user) for user in ("user-0", "user-1", "user-2", "user-3", "shared")]
    assert len(vault.user_ids(tokens)) == 5


def test_users_of_another_key_are_refused(tmp_path):
    remembered(Vault(tmp_path / "vault"), "a")
    (tmp_path / "other").write_bytes(b"k" * 32)
    with pytest.raises(HomeError, match="belong to another key"):
        Vault(tmp_path / "vault", tmp_path / "other")


def test_a_lost_key_is_not_replaced(tmp_path):
    remembered(Vault(tmp_path / "vault"), "a")
    (tmp_path / "vault" / "key").unlink()
    with pytest.raises(HomeError, match=r"the key of the vault's users is gone \(.*key\)"):
        Vault(tmp_path / "vault")
    assert not (tmp_path / "vault" / "key").exists()


def test_a_short_key_is_refused(tmp_path):
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(HomeError, match="has 5 bytes, fewer than 32"):
        Vault(tmp_path / "vault", tmp_path / "key")


def test_a_damaged_table_is_refused(tmp_path):
    Vault(tmp_path / "vault")
    (tmp_path / "vault" / "users.sqlite").write_bytes(b"no database " * 1000)
    with pytest.raises(HomeError, match="table of users cannot be read"):
        Vault(tmp_path / "vault")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "vault").write_text("x")
    with pytest.raises(HomeError, match="cannot be opened"):
        Vault(tmp_path / "vault")


def harmed(tmp_path, statement):
    """A vault of a and b, and what somebody or a bit did to its table. Gives it and the tokens."""
    vault = Vault(tmp_path / "vault")
    tokens = remembered(vault, "a", "b")
    with sqlite3.connect(tmp_path / "vault" / "users.sqlite") as users:
        users.execute(statement)
    return vault, tokens


def test_an_id_that_does_not_make_its_token_is_refused_and_mended_by_who_names_it_again(tmp_path):
    vault, tokens = harmed(tmp_path, "UPDATE users SET user_id = 'q' WHERE user_id = 'a'")
    with pytest.raises(HomeError, match=r"1 users of the vault are damaged \(.*users\.sqlite\)"):
        vault.user_ids(tokens)
    assert vault.damaged() == 1
    remembered(vault, "a")
    assert vault.user_ids(tokens) == dict(zip(tokens, "ab", strict=True))
    assert vault.damaged() == 0


@pytest.mark.parametrize("value", ["NULL", "7", "x'ff'"])
def test_what_is_no_user_id_is_refused(tmp_path, value):
    vault, tokens = harmed(tmp_path, f"UPDATE users SET user_id = {value} WHERE user_id = 'a'")
    with pytest.raises(HomeError, match="1 users of the vault are damaged"):
        vault.user_ids(tokens)


def test_a_damaged_token_names_nobody_and_is_found(tmp_path):
    vault, tokens = harmed(tmp_path, "UPDATE users SET token = x'00' WHERE user_id = 'a'")
    assert vault.user_ids(tokens) == {tokens[1]: "b"}
    assert vault.damaged() == 1


def test_a_table_that_lost_its_name_is_not_begun_anew(tmp_path):
    harmed(tmp_path, "ALTER TABLE users RENAME TO usess")
    with pytest.raises(HomeError, match=r"it has door, forgotten, usess, and no table users.*Restore it"):
        Vault(tmp_path / "vault")


def test_a_page_that_sqlite_refuses_is_told_as_the_table(tmp_path):
    vault = Vault(tmp_path / "vault")
    tokens = remembered(vault, *(f"user-{i}" for i in range(3000)))
    table = tmp_path / "vault" / "users.sqlite"
    with sqlite3.connect(table) as users:
        users.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(table.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 8] = b"\xff" * 8
    table.write_bytes(content)
    for asked in (lambda: vault.user_ids(tokens), lambda: remembered(vault, "new"), vault.damaged):
        with pytest.raises(HomeError, match=r"table of users cannot be read.*users\.sqlite"):
            asked()
