"""The vault: one key, made once; tokens lead back to users here and nowhere else."""

import sqlite3
import stat
import subprocess
import sys
import tarfile

import pyarrow as pa
import pytest

from recsys.errors import HomeError
from tasks.adapters.database import Database
from tasks.adapters.seal import Seal
from tasks.adapters.vault import Vault, forgotten
from tasks.adapters.vault_key import KEY_BYTES
from tests.conftest import DATA


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
    """A vault of a and b, and what somebody or a bit did to its table; :a and :b are tokens. Gives it and both."""
    vault = Vault(tmp_path / "vault")
    tokens = remembered(vault, "a", "b")
    with sqlite3.connect(tmp_path / "vault" / "users.sqlite") as users:
        users.execute(statement, {"a": bytes.fromhex(tokens[0]), "b": bytes.fromhex(tokens[1])})
    return vault, tokens


ANOTHER = "UPDATE users SET user_id = (SELECT user_id FROM users WHERE token = :b) WHERE token = :a"


def test_another_users_id_is_refused_and_mended_by_who_names_it_again(tmp_path):
    vault, tokens = harmed(tmp_path, ANOTHER)
    with pytest.raises(HomeError, match=r"1 users of the vault are damaged \(.*users\.sqlite\)"):
        vault.user_ids(tokens)
    assert vault.damaged() == 1
    remembered(vault, "a")
    assert vault.user_ids(tokens) == dict(zip(tokens, "ab", strict=True))
    assert vault.damaged() == 0


@pytest.mark.parametrize("value", ["NULL", "7", "x''", "x'ff'", "'a'", "x'61' || user_id", "substr(user_id, 2)"])
def test_what_is_no_sealed_user_id_is_refused(tmp_path, value):
    vault, tokens = harmed(tmp_path, f"UPDATE users SET user_id = {value} WHERE token = :a")
    with pytest.raises(HomeError, match="1 users of the vault are damaged"):
        vault.user_ids(tokens)


@pytest.mark.parametrize("token", ["x'00'", "'text'", "7"])
def test_a_damaged_token_names_nobody_and_is_found(tmp_path, token):
    vault, tokens = harmed(tmp_path, f"UPDATE users SET token = {token} WHERE token = :a")
    assert vault.user_ids(tokens) == {tokens[1]: "b"}
    assert vault.damaged() == 1


def test_a_table_that_lost_its_name_is_not_begun_anew(tmp_path):
    harmed(tmp_path, "ALTER TABLE users RENAME TO usess")
    with pytest.raises(HomeError, match=r"it has .*usess, and no table users.*Restore it"):
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


def test_a_word_of_sqlite_that_is_no_text_is_told_as_the_table(tmp_path):
    remembered(Vault(tmp_path), "ann")
    file = tmp_path / "users.sqlite"
    with sqlite3.connect(file) as users:
        users.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(file.read_bytes())
    content[content.index(b"CREATE TABLE users") + 2] ^= 0x80  # the error quotes the schema
    file.write_bytes(content)
    with pytest.raises(HomeError, match=r"the table of users cannot be read: .*users\.sqlite"):
        Vault(tmp_path)
    assert Database(file).faults()
    with pytest.raises(HomeError, match="the vault cannot be read"):
        forgotten(tmp_path)


def bytes_of(folder):
    """Of every file of a vault, the log that SQLite has not read back included."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("users.sqlite*")))


def test_no_file_of_the_vault_has_a_user_id(tmp_path):
    vault = Vault(tmp_path / "vault")
    tokens = remembered(vault, *(f"canary-{i}" for i in range(3000)))
    assert bytes.fromhex(tokens[0]) in bytes_of(tmp_path / "vault"), "the search finds what is there"
    assert b"canary" not in bytes_of(tmp_path / "vault")
    vault.forget(tokens[:1000], 1)
    assert b"canary" not in bytes_of(tmp_path / "vault")


def test_a_seal_is_of_one_token_under_one_key_for_one_purpose():
    seal = Seal(b"k" * 32, "user ids")
    closed = seal.closed(b"alice", b"token")
    assert closed == seal.closed(b"alice", b"token"), "so that what is known need not be written again"
    assert len(closed) == 16 + len(b"alice")
    assert seal.opened(closed, b"token") == b"alice"
    assert seal.opened(closed, b"other") is None
    assert Seal(b"K" * 32, "user ids").opened(closed, b"token") is None
    assert Seal(b"k" * 32, "keys").opened(closed, b"token") is None


def test_what_is_known_is_not_written_again(tmp_path):
    vault = Vault(tmp_path / "vault")
    remembered(vault, *(f"user-{i}" for i in range(3000)))
    with sqlite3.connect(tmp_path / "vault" / "users.sqlite", isolation_level=None) as users:
        users.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        log = tmp_path / "vault" / "users.sqlite-wal"
        assert log.stat().st_size == 0
        remembered(vault, *(f"user-{i}" for i in range(3000)))
        assert log.stat().st_size == 0
        remembered(vault, "new")
        assert log.stat().st_size > 0


@pytest.fixture
def earlier(tmp_path):
    """A vault as an earlier version wrote it, its last commits in SQLite's log alone. Gives its folder and its tokens."""
    folder = tmp_path / "vault"
    door = Vault(folder).door
    (folder / "users.sqlite").unlink()
    tokens = [door.token(f"canary-{i}") for i in range(3000)]
    writer = sqlite3.connect(folder / "users.sqlite", isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE users (token BLOB PRIMARY KEY, user_id TEXT) WITHOUT ROWID")
    writer.execute("CREATE TABLE door (one INTEGER PRIMARY KEY, sample TEXT NOT NULL)")
    writer.execute("INSERT INTO door VALUES (1, ?)", [door.token("recsys vault")])
    pairs = sorted((bytes.fromhex(token), f"canary-{i}") for i, token in enumerate(tokens))
    writer.execute("BEGIN")
    writer.executemany("INSERT INTO users VALUES (?, ?)", pairs)
    writer.execute("COMMIT")
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.execute("BEGIN")
    writer.execute("DELETE FROM users WHERE user_id LIKE 'canary-1%'")  # in free pages, and in what is left of pages
    writer.executemany(
        "INSERT INTO users VALUES (?, ?)", [pair for pair in pairs if "canary-1" <= pair[1] < "canary-15"]
    )
    writer.execute("COMMIT")
    yield folder, tokens
    writer.close()


def known_of(earlier):
    _, tokens = earlier
    return {token: f"canary-{i}" for i, token in enumerate(tokens) if not "canary-15" <= f"canary-{i}" < "canary-2"}


def test_what_an_earlier_version_kept_is_sealed_and_left_nowhere_in_its_files(earlier):
    folder, tokens = earlier
    for file in ("users.sqlite", "users.sqlite-wal"):
        assert b"canary" in (folder / file).read_bytes(), "the search finds it before"
    vault = Vault(folder)
    assert b"canary" not in bytes_of(folder)
    assert vault.user_ids(tokens) == known_of(earlier)
    assert vault.damaged() == 0


def test_beside_a_reader_the_wiping_is_left_to_who_opens_the_vault_next(earlier):
    folder, tokens = earlier
    with sqlite3.connect(folder / "users.sqlite", isolation_level=None) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM users").fetchone() != (0,)
        assert Vault(folder).user_ids(tokens) == known_of(earlier)
        assert b"canary" in bytes_of(folder), "the reader still reads it"
        reader.execute("COMMIT")
    Vault(folder)
    assert b"canary" not in bytes_of(folder)


def test_an_earlier_version_killed_at_its_sealing_is_sealed_whole(earlier):
    """Killed in the transaction: as before; killed after it: what is left to wipe is wiped."""
    folder, tokens = earlier
    code = (
        "import os, sys, pathlib; from tasks.adapters import vault, vault_tables;"
        "real = vault_tables.{0}; vault_tables.{0} = lambda *given: ({1}, os._exit(9));"
        "vault.Vault(pathlib.Path(sys.argv[1]))"
    )
    for at, how in (("_seal_users", "real(*given)"), ("wipe", "0")):
        killed = subprocess.run([sys.executable, "-c", code.format(at, how), str(folder)], check=False)
        assert killed.returncode == 9
        assert b"canary" in bytes_of(folder)
    vault = Vault(folder)
    assert b"canary" not in bytes_of(folder)
    assert vault.user_ids(tokens) == known_of(earlier)


def test_under_another_key_an_earlier_versions_vault_is_left_as_it_is(earlier):
    folder, tokens = earlier
    (folder / "other").write_bytes(b"k" * 32)
    with pytest.raises(HomeError, match="belong to another key"):
        Vault(folder, folder / "other")
    assert b"canary" in bytes_of(folder)
    assert Vault(folder).user_ids(tokens) == known_of(earlier)


def test_a_damaged_user_of_an_earlier_version_stays_damaged(earlier):
    folder, tokens = earlier
    with sqlite3.connect(folder / "users.sqlite") as users:
        users.execute("UPDATE users SET user_id = 'canary-x' WHERE user_id = 'canary-7'")
        users.execute("UPDATE users SET user_id = CAST(x'ff' AS TEXT) WHERE user_id = 'canary-8'")
    vault = Vault(folder)
    assert vault.damaged() == 2
    remembered(vault, "canary-7", "canary-8")
    assert vault.user_ids(tokens) == known_of(earlier)


def test_a_damaged_version_of_the_tables_costs_nobody(tmp_path):
    vault, tokens = harmed(tmp_path, "PRAGMA user_version = 0")
    assert Vault(tmp_path / "vault").user_ids(tokens) == vault.user_ids(tokens) == dict(zip(tokens, "ab", strict=True))


def test_the_vault_of_the_previous_release_is_sealed(tmp_path):
    with tarfile.open(DATA / "home-v1.tar.gz") as tar:
        tar.extractall(tmp_path, [member for member in tar if member.name.startswith("home/vault")], filter="data")
    folder = tmp_path / "home" / "vault"
    assert b"user-0000" in bytes_of(folder)
    vault = Vault(folder)
    assert b"user-0000" not in bytes_of(folder)
    assert vault.user_ids([vault.door.token("user-000099")]) == {vault.door.token("user-000099"): "user-000099"}
