"""How much two sets of batch scores differ, by the users who are in both. In bounded memory, by DuckDB."""

import glob
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import HomeError
from recsys.event_union import Engine


@dataclass(frozen=True)
class ScoreChange:
    """The first k items of each user, now and before, as sets."""

    users: int  # in both
    share_changed: float | None  # of them, whose list holds another item; None without common users
    overlap: float | None  # mean share of a list that is in the other one as well


def score_change(new: Path, old: Path, k: int, engine: Engine) -> ScoreChange:
    """Compares two files with the columns user_id, item_id and rank (from 1). HomeError when one cannot be read."""
    import duckdb  # as in recsys/event_union.py

    engine.temp.mkdir(parents=True, exist_ok=True)
    settings = {"memory_limit": f"{engine.memory_mb}MB", "threads": engine.threads, "temp_directory": str(engine.temp)}
    try:
        with duckdb.connect(config=settings) as sql:
            for name, file in (("now", new), ("before", old)):
                rows = sql.read_parquet(glob.escape(str(file))).filter(f"rank <= {int(k)}")
                rows.create_view(name)
            found = sql.execute(_LISTS_BY_HITS).fetchall()
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
        mend = "Score again; what is damaged may be deleted."
        raise HomeError(f"two batch scores cannot be compared: {error}", where=str(old), mend=mend) from error
    users = sum(count for _, _, count in found)
    if not users:
        return ScoreChange(0, None, None)
    changed = sum(count for hits, length, count in found if hits < length)
    return ScoreChange(users, changed / users, sum(count * hits / length for hits, length, count in found) / users)


_LISTS_BY_HITS = """
    WITH lists_now AS (SELECT user_id, count(*) AS length FROM now GROUP BY user_id),
         lists_before AS (SELECT user_id, count(*) AS length FROM before GROUP BY user_id),
         hits AS (SELECT user_id, count(*) AS hits FROM now JOIN before USING (user_id, item_id) GROUP BY user_id)
    SELECT coalesce(hits, 0), greatest(lists_now.length, lists_before.length), count(*)
    FROM lists_now JOIN lists_before USING (user_id) LEFT JOIN hits USING (user_id)
    GROUP BY 1, 2 ORDER BY 1, 2"""
"""(items in both lists, items of the longer list, users): counts, so that no sum depends on the number of threads."""
