"""The vault's tables: what they are, and how an earlier version's, whose user ids lie open, becomes these.

users       token, user id sealed for it
forgotten   token, when (seconds UTC)
door        a token by which a key is told from another
"""

import sqlite3

from recsys.door import Door
from tasks.adapters.seal import Seal

SEALED, WIPED = 1, 2
"""PRAGMA user_version: the user ids are sealed; and nothing of what was there before is left. An earlier version's has 0."""

_USERS = "CREATE TABLE IF NOT EXISTS users (token BLOB PRIMARY KEY, user_id BLOB) WITHOUT ROWID"
_OTHERS = (
    "CREATE TABLE IF NOT EXISTS forgotten (token BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS door (one INTEGER PRIMARY KEY, sample TEXT NOT NULL)",
)
_SAMPLE = "recsys vault"  # its token tells one key from another


def prepare(connection: sqlite3.Connection, door: Door, seal: Seal) -> bool:
    """Makes the tables once, and seals what an earlier version kept; one transaction. False, and nothing done, for another
    door's users.

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
    connection.execute("INSERT OR IGNORE INTO door VALUES (1, ?)", [door.token(_SAMPLE)])
    if connection.execute("SELECT sample FROM door").fetchone()[0] != door.token(_SAMPLE):
        connection.execute("ROLLBACK")
        return False
    if not tables:
        connection.execute(f"PRAGMA user_version = {WIPED}")
    elif not _state(connection):
        _seal_users(connection, door, seal)
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


def _state(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _seal_users(connection: sqlite3.Connection, door: Door, seal: Seal) -> None:
    """A user id that does not make its token is damaged, and stays so without what it was. One that is sealed stays."""

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
