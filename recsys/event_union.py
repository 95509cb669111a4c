"""The union of all accepted files, in DuckDB and out of core, brought step by step to the events that count.

Every result is ordered explicitly: the number of threads changes nothing but the time.
"""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recsys.config import EventsConfig
from recsys.errors import DataError, HomeError
from recsys.rating_scale import Ratings
from recsys.split import DAY

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True)
class Losses:
    """How many accepted events were set aside, by reason; what remains is kept."""

    accepted: int
    after_as_of: int
    left_out: int  # rated too low, or of a kind with weight 0
    duplicates: int  # same user, item, timestamp and kind as an earlier row
    repeats: int  # the user had this item before, and repeats are excluded
    capped: int  # older than the newest events kept of one user
    kept: int


@dataclass(frozen=True)
class Engine:
    """What DuckDB may use. None of it changes a result."""

    memory_mb: int
    threads: int
    temp: Path


@contextmanager
def open_union(accepted: Sequence[Path], engine: Engine) -> Iterator["EventUnion"]:
    """The union of accepted.parquet files, in the order given; its database is a folder of `engine.temp`."""
    import duckdb  # here: held by a module, it would print what it calls leaks when the interpreter ends

    try:
        engine.temp.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=engine.temp, prefix="union-") as folder:
            database = Path(folder, "events.duckdb")
            with _connected(database, Path(folder), engine) as sql:
                yield EventUnion(sql, accepted, database)
    except duckdb.OutOfMemoryException as error:
        mend = "Raise RECSYS_MEMORY_MB, or free disk space for what does not fit."
        raise HomeError(f"{engine.memory_mb} MB do not suffice to join the events", mend=mend) from error
    except (duckdb.IOException, duckdb.InvalidInputException, OSError) as error:
        mend = "Check the disk's space and mode; if a file is damaged, validate it again."
        raise HomeError(f"the events cannot be joined: {error}", where=str(engine.temp), mend=mend) from error


def _connected(database: Path, temp: Path, engine: Engine, *, read_only: bool = False) -> "DuckDBPyConnection":
    import duckdb

    settings = {
        "memory_limit": f"{engine.memory_mb}MB",
        "threads": engine.threads,
        "temp_directory": str(temp),
        "preserve_insertion_order": False,
    }
    return duckdb.connect(str(database), read_only, settings)


class NumberedUnion:
    """A union whose users are numbered and whose items are coded: what is read of it, shard by shard."""

    def __init__(self, connection: "DuckDBPyConnection") -> None:
        self._sql = connection

    def users_of(self, shard: int, shards: int) -> pa.Table:
        """(u,) number and token of a shard's users, by number. The shard is the prefix of the token."""
        where = f"prefix * {shards:d} // 256 = {shard:d}"
        return self._table(f"SELECT number, token FROM users WHERE {where} ORDER BY number")

    def events_of(self, shard: int, shards: int) -> Mapping[str, np.ndarray]:
        """A shard's kept events, (e,) each: number of the user, code, timestamp, weight; in order."""
        table = self._table(f"""
            SELECT number, code, timestamp, weight
            FROM kept JOIN users USING (user_key) JOIN codes USING (item) JOIN kinds USING (kind)
            WHERE prefix * {shards:d} // 256 = {shard:d} ORDER BY number, timestamp, place""")
        return {name: table[name].to_numpy() for name in table.column_names}

    def _table(self, query: str) -> pa.Table:
        return self._sql.sql(query).to_arrow_table()


@dataclass(frozen=True)
class UnionFile:
    """A union nobody writes to any more: any process that sees the file may read it."""

    database: Path
    engine: Engine  # of each process that reads

    @property
    def folder(self) -> Path:
        """For what is made of it; it goes with the union."""
        return self.database.parent

    @contextmanager
    def reading(self) -> Iterator[NumberedUnion]:
        """The union, to be read by this process."""
        # One place a process: DuckDB wants it alone, and threads of a process must name the same one.
        temp = self.folder / f"reader-{os.uname().nodename}-{os.getpid()}"
        with _connected(self.database, temp, self.engine, read_only=True) as sql:
            yield NumberedUnion(sql)


class EventUnion(NumberedUnion):
    """Tables of a DuckDB database: `kept` (user_key UUID, item, timestamp, kind, place) once `keep` has run.

    `place` is the position in file order and then row order, and decides between events of one time.
    """

    def __init__(self, connection: "DuckDBPyConnection", accepted: Sequence[Path], database: Path) -> None:
        super().__init__(connection)
        self._database = database
        files = [glob.escape(str(file)) for file in accepted]
        self._run("CREATE TABLE listed (filename VARCHAR, number INTEGER)")
        for number, file in enumerate(accepted):
            self._run("INSERT INTO listed VALUES (?, ?)", [str(file), number])
        listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        self._run(f"CREATE VIEW accepted AS SELECT * FROM read_parquet([{listed}], filename = true)")
        self._run("""
            CREATE TABLE files AS
            SELECT filename, sum(rows) OVER (ORDER BY number) - rows AS base
            FROM (SELECT filename, min(number) AS number, max("row") + 1 AS rows
                  FROM listed JOIN accepted USING (filename) GROUP BY filename)""")

    def newest(self) -> int:
        """The time of the newest accepted event. Raises DataError when there is none."""
        if self._number("SELECT count(*) FROM accepted") == 0:
            raise DataError("there are no events", mend="Validate a file of events with at least one good row.")
        return self._number("SELECT max(timestamp) FROM accepted")

    def keep(self, config: EventsConfig, as_of: int, exclude_repeats: bool) -> Losses:
        """Fills `kept` with the events before `as_of` that count; says how many were set aside and why."""
        events = sorted(config.event_weights)
        weights = pa.array([config.event_weights[event] for event in events], pa.float32())
        self._sql.register("weighed", pa.table({"event": pa.array(events, pa.string()), "weight": weights}))
        self._run("CREATE TABLE weights AS SELECT * FROM weighed")
        self._sql.unregister("weighed")
        self._run("""
            CREATE TABLE kinds AS
            SELECT event, (row_number() OVER (ORDER BY event NULLS FIRST))::INTEGER AS kind,
                   coalesce(weight, 1)::FLOAT AS weight
            FROM (SELECT DISTINCT event FROM accepted) LEFT JOIN weights USING (event)""")
        self._run("""
            CREATE TABLE names AS
            SELECT item_id, (row_number() OVER (ORDER BY item_id))::INTEGER AS item
            FROM (SELECT DISTINCT item_id FROM accepted)""")
        self._run(
            """
            CREATE TABLE kept AS
            SELECT token::UUID AS user_key, item, timestamp, kind, (base + "row")::BIGINT AS place
            FROM accepted JOIN files USING (filename) JOIN names USING (item_id)
                 JOIN kinds ON accepted.event IS NOT DISTINCT FROM kinds.event
            WHERE timestamp < $as_of AND weight > 0
                  AND (rating IS NULL OR $min_rating::FLOAT IS NULL OR rating >= $min_rating::FLOAT)""",
            {"as_of": as_of, "min_rating": config.min_rating},
        )
        accepted = self._number("SELECT count(*) FROM accepted")
        after = self._number("SELECT count(*) FROM accepted WHERE timestamp >= ?", [as_of])
        wishes = self._count()
        self._narrow("PARTITION BY user_key, item, timestamp, kind ORDER BY place", 1)
        once = self._count()
        if exclude_repeats:
            self._narrow("PARTITION BY user_key, item ORDER BY timestamp, place", 1)
        new = self._count()
        most = self._number("SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM kept GROUP BY user_key)")
        if most > config.max_user_events:
            self._narrow("PARTITION BY user_key ORDER BY timestamp DESC, place DESC", config.max_user_events)
        kept = self._count()
        return Losses(accepted, after, accepted - after - wishes, wishes - once, once - new, new - kept, kept)

    def events_a_day(self, until: int, most: int) -> list[int]:
        """Accepted events of each whole day before `until`, the newest first: `most` days, or as far back as there are any."""
        days = f"({until - 1:d} - timestamp) // {DAY}"
        counted = f"SELECT {days} AS day, count(*) FROM accepted WHERE timestamp < {until:d} GROUP BY day"
        counts = dict(self._sql.execute(counted).fetchall())
        return [int(counts.get(day, 0)) for day in range(min(most, max(counts)))]

    def ratings(self, since: int, until: int) -> Ratings:
        """Of the accepted events from `since` on and before `until`."""
        among = f"FROM accepted WHERE rating IS NOT NULL AND timestamp >= {since:d} AND timestamp < {until:d}"
        count, smallest, largest = self._sql.execute(f"SELECT count(*), min(rating), max(rating) {among}").fetchall()[0]
        return Ratings(int(count), float(smallest or 0), float(largest or 0))

    def number_users(self) -> int:
        """Numbers the users from 0 in the order of their first kept event, and says how many they are."""
        self._run("""
            CREATE TABLE users AS
            SELECT user_key, token, ('0x' || token[1:2])::INTEGER AS prefix,
                   (row_number() OVER (ORDER BY began, place) - 1)::BIGINT AS number
            FROM (SELECT user_key, began, min(place) AS place, replace(user_key::VARCHAR, '-', '') AS token
                  FROM kept
                  JOIN (SELECT user_key, min(timestamp) AS began FROM kept GROUP BY user_key) USING (user_key)
                  WHERE timestamp = began GROUP BY user_key, began)""")
        return self._number("SELECT count(*) FROM users")

    def user_spans(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last time before `end` of each user who has one, (u,) int64 each, in no order."""
        columns = self._sql.execute(
            "SELECT min(timestamp) AS first, max(timestamp) AS last FROM kept WHERE timestamp < ? GROUP BY user_key",
            [end],
        ).fetchnumpy()
        return np.asarray(columns["first"], np.int64), np.asarray(columns["last"], np.int64)

    def item_ids(self) -> pa.Array:
        """The items of kept events, in the order of their first one."""
        return self._table("""
            SELECT item_id
            FROM (SELECT item, began, min(place) AS place
                  FROM kept JOIN (SELECT item, min(timestamp) AS began FROM kept GROUP BY item) USING (item)
                  WHERE timestamp = began GROUP BY item, began)
                 JOIN names USING (item)
            ORDER BY began, place""")["item_id"].combine_chunks()

    def code_items(self, item_ids: pa.Array) -> None:
        """Fixes the items' codes: item_ids[c - 1] has code c."""
        table = pa.table({"item_id": item_ids, "code": pa.array(np.arange(1, len(item_ids) + 1, dtype=np.int32))})
        self._sql.register("coded", table)
        self._run("CREATE TABLE codes AS SELECT item, code FROM names JOIN coded USING (item_id)")
        self._sql.unregister("coded")

    def closed(self, engine: Engine) -> UnionFile:
        """The union as a file, to be read with `engine`. Nothing can be asked of it here any more."""
        self._sql.close()
        return UnionFile(self._database, engine)

    def log(self) -> pa.Table:
        """(E,) number of the user, code, timestamp and kind (null: none) of every kept event, by time."""
        return self._table("""
            SELECT number, code, timestamp, event AS kind
            FROM kept JOIN users USING (user_key) JOIN codes USING (item) JOIN kinds USING (kind)
            ORDER BY timestamp, place""")

    def _narrow(self, window: str, most: int) -> None:
        """Keeps the first `most` events of each partition of `window`."""
        self._run(f"CREATE TABLE fewer AS SELECT * FROM kept QUALIFY row_number() OVER ({window}) <= {most:d}")
        self._run("DROP TABLE kept; ALTER TABLE fewer RENAME TO kept")

    def _count(self) -> int:
        return self._number("SELECT count(*) FROM kept")

    def _run(self, query: str, values: object = None) -> None:
        self._sql.execute(query, values)

    def _number(self, query: str, values: object = None) -> int:
        return int(self._sql.execute(query, values).fetchall()[0][0])
