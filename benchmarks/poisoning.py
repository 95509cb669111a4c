"""Made-up users who push one item: whom it reaches, and whether the gate sees it. `python -m benchmarks.poisoning`

A home of the built-in shop has a champion. Then its last day comes in, and with it a file of made-up users: each buys some of the most popular
items, as an attacker can read them off the shop's pages, and then the item that is pushed (the "bandwagon attack" of
O'Mahony et al. 2005). Two nights follow from the same champion: one that keeps its teacher, one that trains a new one.
Exposure is the share of the real test users who are shown the item among their first ten; made-up users are not counted.
A share of made-up users is two lines of docs/poisoning.jsonl, and what is there is not run again.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.one_night import last_story, recsys
from recsys import sample
from recsys.door import Door
from recsys.evaluate import ModelReport
from recsys.split import DAY
from tasks.adapters.manifest import Manifest
from tasks.adapters.store import Store
from tasks.opening import open_item_ids

SHARES = (0.0, 0.001, 0.01, 0.05)
BOUGHT = 10  # popular items that a made-up user buys before the one that is pushed
POPULAR = 100  # items that those are drawn from, by how popular they are
BEGAN, ENDED = 60, 15  # days before the newest event between which they buy: learnt from tonight
NEW_TEACHER = "refresh.max_age_days=0"


@dataclass(frozen=True)
class Row:
    """One night after made-up users came."""

    share: float  # made-up users for each real one
    users: int  # made-up
    new_teacher: bool
    item: str
    bought_by: float  # share of the real users
    before: float  # exposure by the champion
    after: float  # exposure by tonight's candidate
    rise: float  # that the gate saw, of the item that rose most
    caught: bool  # whether the criterion exposure failed
    decision: str


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "poisoning.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    done = _read(arguments.out)
    missing = [
        (s, n) for s in SHARES for n in (False, True) if not any((r.share, r.new_teacher) == (s, n) for r in done)
    ]
    with TemporaryDirectory(prefix="poisoning-") as folder:
        place = Path(folder)
        if missing:
            real = pq.read_table(sample.EVENTS)
            last_day = pc.max(real["timestamp"]).as_py() - DAY
            _write_events(place / "in", [real.filter(pc.less(real["timestamp"], last_day))])
            _night(place / "champion", place / "in")
            recsys(place / "champion", "promote", "--version", "1", "--approve", "poisoning", "--reason", "a champion")
        for share, new_teacher in missing:
            done.append(_attacked(place, share, new_teacher, arguments.seed))
            with arguments.out.open("a") as out:
                out.write(json.dumps(asdict(done[-1]), sort_keys=True) + "\n")
    print("\n".join(_as_markdown(done)))


def _attacked(place: Path, share: float, new_teacher: bool, seed: int) -> Row:
    """A night of a copy of the champion's home."""
    real = pq.read_table(sample.EVENTS)
    rng = np.random.default_rng(seed)
    counts = real["item_id"].value_counts()
    item_ids = counts.field("values").to_numpy(zero_copy_only=False)[np.argsort(-counts.field("counts").to_numpy())]
    item = str(item_ids[len(item_ids) // 2])
    made_up = _made_up(round(share * len(pc.unique(real["user_id"]))), item_ids[:POPULAR], item, real, rng)
    # under its own name: MLflow's database names the folder
    shutil.copytree(place / "champion", place / "kept", dirs_exist_ok=True)
    _write_events(place / "in", [real, made_up])
    try:
        _night(place / "champion", place / "in", *(("--set", NEW_TEACHER) if new_teacher else ()))
        before, after = (_exposure(place / "champion", role, item, made_up) for role in ("champion", "artifact"))
        story = last_story(place / "champion")
    finally:
        shutil.rmtree(place / "champion")
        (place / "kept").rename(place / "champion")
    criterion = next(row for row in story["criteria"] if row["name"] == "exposure")
    users = len(pc.unique(made_up["user_id"]))
    buyers = len(pc.unique(real.filter(pc.equal(real["item_id"], item))["user_id"])) / len(pc.unique(real["user_id"]))
    return Row(
        share, users, new_teacher, item, buyers, before, after, criterion["value"],
        criterion["outcome"] == "fail", story["decision"],
    )  # fmt: skip


def _made_up(users: int, popular: np.ndarray, item: str, real: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Their events, in the columns of the shop's."""
    newest = pc.max(real["timestamp"]).as_py()
    rows: list[tuple[str, str, int]] = []
    for user in range(users):
        time = int(rng.integers(newest - BEGAN * DAY, newest - ENDED * DAY))
        bought = [*rng.choice(popular, BOUGHT, replace=False), item]
        rows += [(f"made up {user}", str(each), time + 60 * place) for place, each in enumerate(bought)]
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    types = (pa.string(), pa.string(), pa.int64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(dict(zip(("user_id", "item_id", "timestamp"), arrays, strict=True)))


def _write_events(folder: Path, tables: Sequence[pa.Table]) -> None:
    """A file for each table that is not empty, beside the shop's items."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "events").mkdir(parents=True)
    shutil.copy(sample.ITEMS, folder / "items.parquet")
    for number, table in enumerate(table for table in tables if len(table)):
        pq.write_table(table, folder / "events" / f"{number}.parquet")


def _night(home: Path, data: Path, *words: str) -> None:
    recsys(home, "nightly", "--events", data / "events", "--items", data / "items.parquet", *words)


def _exposure(home: Path, role: str, item: str, made_up: pa.Table) -> float:
    """Share of the real test users to whom the model of a role, in the last night, shows the item among its first ten."""
    store = Store(home / "store")
    dataset = store.head("last-night")["dataset"]
    found = (Manifest.read(path) for path in (home / "store" / "objects" / "evaluate").glob("*.json"))
    digest = next(m.digest for m in found if m.config["role"] == role and dataset in m.parents)
    report = ModelReport.load(store.open("evaluate", digest))
    door = Door((home / "vault" / "key").read_bytes())
    strangers = [door.token(user).encode() for user in pc.unique(made_up["user_id"]).to_pylist()]
    real = ~np.isin(report.users, strangers)
    ids = open_item_ids(store, dataset).to_pylist()
    return float((report.top[real, :10] == ids.index(item) + 1).any(axis=1).mean())


def _read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _as_markdown(rows: Sequence[Row]) -> Iterator[str]:
    yield "| made-up users | teacher | shown to, by the champion | by the candidate | largest rise of any item | exposure | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: (row.share, row.new_teacher)):
        yield (
            f"| {row.users} ({row.share:.1%}) | {'new' if row.new_teacher else 'kept'} | {row.before:.1%} | {row.after:.1%} "
            f"| {row.rise:.1%} | {'fails' if row.caught else 'passes'} | {row.decision} |"
        )


if __name__ == "__main__":
    main()
