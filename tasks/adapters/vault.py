"""The vault, the only place where user ids lie: a secret key, and a table from tokens back to the ids, sealed under it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import pyarrow as pa

from recsys.errors import HomeError
from tasks.adapters import vault_key, vault_tables
from tasks.adapters.database import DAMAGED
from tasks.adapters.vault_key import VaultKey
from tasks.adapters.vault_tables import KeyChange, Rekeyed

_A_QUERY = 10_000
_WAIT_SECONDS = 60
_KEEP = """INSERT INTO users VALUES (?, ?)
    ON CONFLICT (token) DO UPDATE SET user_id = excluded.user_id WHERE user_id IS NOT excluded.user_id"""
"""A token stands for one user for ever, and is sealed one way: where the table has anything else, that is damaged."""
_RESTORE = "Restore it from a backup; without it users cannot be named again."


class Vault:
    """A folder with `key` (unless it is kept elsewhere) and `users.sqlite`, readable by their owner only."""

    def __init__(self, folder: Path, key_file: Path | None = None) -> None:
        """Opens the vault, or makes it and its key. `key_file` is where the key is kept if not in the folder.

        What an earlier version kept is sealed first; a change of the key that was interrupted is brought to its end.
        Raises HomeError when the key or the table cannot be read, or the table was filled under another key.
        """
        self.folder, self._users = folder, folder / "users.sqlite"
        key_file = key_file or folder / "key"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if vault_key.next_to(key_file).exists():
                vault_key.settle(key_file, sample_of(folder))
            if not key_file.exists():
                self._require_no_users(key_file)
                vault_key.make(key_file)
            self._key = VaultKey.read(key_file)
            os.close(os.open(self._users, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            mend = "Check that the folder is writable and the key readable."
            where = str(error.filename or folder)
            raise HomeError(f"the vault cannot be opened: {error.strerror}", where=where, mend=mend) from error
        self.door = self._key.door(self._prepare(key_file))

    def remember(self, users: pa.Table) -> None:
        """Keeps the (token, user_id) rows that are not known yet. Several processes may do so at once."""
        rows = users.sort_by("token")  # neighbours in the index are written together
        tokens = (bytes.fromhex(token) for token in rows["token"].to_pylist())
        with self._told(), closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            pairs = zip(tokens, rows["user_id"].to_pylist(), strict=True)
            sealed = ((token, self._key.users.closed(user_id.encode(), token)) for token, user_id in pairs)
            connection.executemany(_KEEP, sealed)

    def user_ids(self, tokens: Iterable[str]) -> dict[str, str]:
        """The user ids of those tokens that are known."""
        return dict(self.each_user_id(tokens))

    def each_user_id(self, tokens: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(token, user id) of those tokens that are known, in the order given; memory stays bounded.

        HomeError for an id that does not open: it is not the one that was kept for its token.
        """
        remaining = iter(tokens)
        with self._told(), closing(self._connect()) as connection:
            while some := list(islice(remaining, _A_QUERY)):
                marks = ",".join("?" * len(some))
                query = f"SELECT token, CAST(user_id AS BLOB) FROM users WHERE token IN ({marks})"
                rows = connection.execute(query, [bytes.fromhex(token) for token in some])
                known = {token.hex(): self._key.users.opened(sealed, token) for token, sealed in rows}
                if wrong := sum(user_id is None for user_id in known.values()):
                    raise HomeError(f"{wrong:,} users of the vault are damaged", where=str(self._users), mend=_RESTORE)
                yield from ((token, user_id.decode()) for token in some if (user_id := known.get(token)) is not None)

    def forget(self, tokens: Iterable[str], at: int) -> None:
        """Their user ids are gone, from the file's free space too; their tokens stay, with the time `at` (seconds UTC).

        Without its token nobody could tell a user who comes again in the shop's files from any other.
        """
        gone = [(bytes.fromhex(token),) for token in tokens]
        with self._told(), closing(self._connect()) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", [(*one, at) for one in gone])
            connection.executemany("DELETE FROM users WHERE token = ?", gone)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def store_door(self) -> str:
        """A token by which homes of one shared store see that they have one key."""
        return self._key.store_door

    def tokens(self) -> list[str]:
        """Of all users that are known."""
        return [str(token) for (token,) in _rows(self.folder, "users", "lower(hex(token))")]

    @property
    def retired(self) -> tuple[str, ...]:
        """The keys before this one, sealed under it, in hex; the first first."""
        with self._told(), closing(self._connect()) as connection:
            return vault_tables.sealed_retired(connection)

    def retire(self, sealed: Sequence[str]) -> None:
        """These are the keys before this one, as another home with the same key has them sealed; for who opens it next."""
        if tuple(sealed) != self.retired:
            with self._told(), closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                vault_tables.retire(connection, sealed)
                connection.execute("COMMIT")

    @contextlib.contextmanager
    def changing_key(self, new: VaultKey, change: KeyChange) -> Iterator[Rekeyed]:
        """Its users go over to another key when the block has ended well; this object knows the old one.

        The file of the key is the caller's, and must be on the disk by then.
        """
        with self._told(), closing(self._connect()) as connection:
            with vault_tables.rekeyed(connection, self._key, new, change) as rekeyed:
                yield rekeyed
            vault_tables.wipe(connection)

    def damaged(self) -> int:
        """Rows whose user id does not open. Reads them all; HomeError when they cannot be read."""
        with self._told(), closing(self._connect()) as connection:
            rows = connection.execute("SELECT CAST(token AS BLOB), CAST(user_id AS BLOB) FROM users")
            return sum(self._key.users.opened(sealed, token) is None for token, sealed in rows)

    def _require_no_users(self, key_file: Path) -> None:
        if self._users.exists() and self._users.stat().st_size:
            mend = "Restore it from a backup: under another key every user is a stranger."
            raise HomeError("the key of the vault's users is gone", where=str(key_file), mend=mend)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._users, timeout=_WAIT_SECONDS, isolation_level=None)

    def _prepare(self, key_file: Path) -> tuple[bytes, ...]:
        """The keys that are retired."""
        with self._told(), closing(self._connect()) as connection:
            if vault_tables.prepare(connection, self._key):
                return vault_tables.retired_keys(connection, self._key)
        mend = "Give the key they were tokenised with: under another key every user is a stranger."
        where = f"{self._users}, {key_file}"
        raise HomeError("the vault's users belong to another key", where=where, mend=mend)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """HomeError for what SQLite finds wrong with the table."""
        try:
            yield
        except DAMAGED as error:
            what = f"the table of users cannot be read: {error}"
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            mend = "Make room on the disk; the users are as they were." if full else _RESTORE
            raise HomeError(what, where=str(self._users), mend=mend) from error


def forgotten(folder: Path) -> dict[str, int]:
    """When each forgotten user was forgotten (seconds UTC), by token. The vault need not be there; no key is needed."""
    return {str(token): int(at) for token, at in _rows(folder, "forgotten", "lower(hex(token)), at")}


def sample_of(folder: Path) -> str | None:
    """By which the key of a vault's users is known (VaultKey.sample); None where there are no users."""
    return next((str(sample) for (sample,) in _rows(folder, "door", "sample")), None)


def key_changes(folder: Path) -> list[KeyChange]:
    """When its key was changed, by whom and why; the first first."""
    return [KeyChange(*row) for row in _rows(folder, "key_changes", "at, who, reason")]


def _rows(folder: Path, table: str, columns: str) -> list[tuple]:
    file = folder / "users.sqlite"
    if not file.exists():
        return []
    try:
        with closing(sqlite3.connect(file, timeout=_WAIT_SECONDS)) as connection:
            there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone()
            return connection.execute(f"SELECT {columns} FROM {table}").fetchall() if there else []
    except DAMAGED as error:
        raise HomeError(f"the vault cannot be read: {error}", where=str(file), mend=_RESTORE) from error
