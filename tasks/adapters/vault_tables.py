"""The vault's tables: what they are, how an earlier version's become these, and how they go over to another key.

users        token, user id sealed for it
forgotten    token, when (seconds UTC)
door         a token by which a key is told from another
retired      keys before this one, oldest first, sealed: of the forgotten nothing else is known than what these gave them
key_changes  when (seconds UTC), who, why
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from tasks.adapters.vault_key import VaultKey

SEALED, WIPED = 1, 2
"""PRAGMA user_version: the user ids are sealed; and nothing of what was there before is left. An earlier version's has 0."""

_USERS = "CREATE TABLE IF NOT EXISTS users (token BLOB PRIMARY KEY, user_id BLOB) WITHOUT ROWID"
_OTHERS = (
    "CREATE TABLE IF NOT EXISTS forgotten (token BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS door (one INTEGER PRIMARY KEY, sample TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS retired (number INTEGER PRIMARY KEY, key BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS key_changes (at INTEGER NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL)",
)


@dataclass(frozen=True)
class Rekeyed:
    """What has gone over to another key: how many users, when each forgotten one was (seconds UTC), the retired keys."""

    users: int
    forgotten: Mapping[str, int]  # by the new key's tokens
    retired: tuple[str, ...]  # oldest first, sealed under the new key, in hex


@dataclass(frozen=True)
class KeyChange:
    """That the key was changed."""

    at: int  # seconds UTC
    who: str
    reason: str


def prepare(connection: sqlite3.Connection, key: VaultKey) -> bool:
    """Makes the tables once, and seals what an earlier version kept; one transaction. False, and nothing done, for another
    key's users.

    sqlite3.DatabaseError for tables that are no vault's.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("BEGIN IMMEDIATE")
    tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "users" not in tables:  # all were made at once; a new one would be without its users
        raise sqlite3.DatabaseError(f"it has {', '.join(sorted(tables))}, and no table users")
    for table in (_USERS, *_OTHERS):
        connection.execute(table)
    connection.execute("INSERT OR IGNORE INTO door VALUES (1, ?)", [key.sample])
    if connection.execute("SELECT sample FROM door").fetchone()[0] != key.sample:
        connection.execute("ROLLBACK")
        return False
    if not tables:
        connection.execute(f"PRAGMA user_version = {WIPED}")
    elif not _state(connection):
        _seal_users(connection, key)
        connection.execute(f"PRAGMA user_version = {SEALED}")
    connection.execute("COMMIT")
    if _state(connection) != WIPED:
        wipe(connection)
    return True


def wipe(connection: sqlite3.Connection) -> None:
    """Nothing that was replaced is left in the file's free pages and its log. Interrupted, or beside a process that reads,
    it is done again when the vault is opened next."""
    connection.execute("VACUUM")
    connection.execute("PRAGMA busy_timeout = 1000")
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if not busy:
        connection.execute(f"PRAGMA user_version = {WIPED}")


def retired_keys(connection: sqlite3.Connection, key: VaultKey) -> tuple[bytes, ...]:
    """The keys before this one that still have forgotten users, oldest first."""
    found = opened_keys(key, sealed_retired(connection))
    if None in found:
        raise sqlite3.DatabaseError("a retired key is damaged, without which forgotten users are not known again")
    return tuple(each for each in found if each is not None)


def opened_keys(key: VaultKey, sealed: Sequence[str]) -> tuple[bytes | None, ...]:
    """Retired keys as `sealed_retired` gives them; None for what does not open."""
    return tuple(key.retired.opened(bytes.fromhex(each), _place(number)) for number, each in enumerate(sealed))


def sealed_retired(connection: sqlite3.Connection) -> tuple[str, ...]:
    """The retired keys as they are kept, in hex, oldest first: for homes that have the key too."""
    return tuple(str(row[0]) for row in connection.execute("SELECT lower(hex(key)) FROM retired ORDER BY number"))


def retire(connection: sqlite3.Connection, sealed: Sequence[str]) -> None:
    """These are the keys before this one, oldest first, and no others."""
    connection.execute("DELETE FROM retired")
    rows = [(number, bytes.fromhex(key)) for number, key in enumerate(sealed)]
    connection.executemany("INSERT INTO retired VALUES (?, ?)", rows)


@contextmanager
def rekeyed(connection: sqlite3.Connection, old: VaultKey, new: VaultKey, change: KeyChange) -> Iterator[Rekeyed]:
    """Users and forgotten go over to another key when the block has ended well; until then they are the old one's.

    One transaction. A user that is damaged is left out until events name it again. A token of a forgotten user becomes
    the new key's token of it, so that no old one is left.
    """
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("BEGIN IMMEDIATE")
    before = retired_keys(connection, old)
    connection.execute("ALTER TABLE users RENAME TO old_users")
    connection.execute(_USERS)
    users = connection.executemany("INSERT INTO users VALUES (?, ?)", _renewed(connection, old, new)).rowcount
    connection.execute("DROP TABLE old_users")
    token, rows = new.door().token, connection.execute("SELECT lower(hex(token)), at FROM forgotten").fetchall()
    forgotten = {token(name): int(at) for name, at in rows}
    connection.execute("DELETE FROM forgotten")
    connection.executemany(
        "INSERT INTO forgotten VALUES (?, ?)", [(bytes.fromhex(name), at) for name, at in forgotten.items()]
    )
    keys = (*before, old.content) if forgotten else ()
    retire(connection, [new.retired.closed(content, _place(number)).hex() for number, content in enumerate(keys)])
    connection.execute("UPDATE door SET sample = ?", [new.sample])
    connection.execute("INSERT INTO key_changes VALUES (?, ?, ?)", astuple(change))
    connection.execute(f"PRAGMA user_version = {SEALED}")
    yield Rekeyed(users, forgotten, sealed_retired(connection))
    connection.execute("COMMIT")


def _renewed(connection: sqlite3.Connection, old: VaultKey, new: VaultKey) -> Iterator[tuple[bytes, bytes]]:
    door = new.door()
    for token, sealed in connection.execute("SELECT CAST(token AS BLOB), CAST(user_id AS BLOB) FROM old_users"):
        user_id = old.users.opened(sealed, token)
        if user_id is not None:
            renewed = bytes.fromhex(door.token(user_id.decode()))
            yield renewed, new.users.closed(user_id, renewed)


def _place(number: int) -> bytes:
    return b"%d" % number


def _state(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _seal_users(connection: sqlite3.Connection, key: VaultKey) -> None:
    """A user id that does not make its token is damaged, and stays so without what it was. One that is sealed stays."""
    door, seal = key.door(), key.users

    def sealed(user_id: object, token: object) -> bytes | None:
        if not isinstance(token, bytes) or not isinstance(user_id, bytes):
            return None
        if seal.opened(user_id, token) is not None:  # the version of the tables was damaged, not they
            return user_id
        makes = door.token(user_id.decode(errors="replace")) == token.hex()
        return seal.closed(user_id, token) if makes else None

    connection.create_function("sealed", 2, sealed)
    connection.execute("ALTER TABLE users RENAME TO open_users")
    connection.execute(_USERS)
    connection.execute("INSERT INTO users SELECT token, sealed(CAST(user_id AS BLOB), token) FROM open_users")
    connection.execute("DROP TABLE open_users")
