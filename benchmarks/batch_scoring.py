"""Users a second of `recsys score`, and its memory, as users grow. `python -m benchmarks.batch_scoring`

A throwaway home with an untrained champion (speed does not depend on what was learnt) of as many items as the built-in
shop; generated users with five events each, by Zipf's law (benchmarks/generated_shop.py); ten items for everybody. With
--shop the events of a folder are scored first, by a champion over its items.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq

from benchmarks.generated_shop import write_shop
from benchmarks.growth import Memory
from benchmarks.one_night import RECSYS
from benchmarks.serving import home_of

ITEMS, WIDTH, EVENTS_A_USER = 3_659, 64, 5
USERS = (10_000, 100_000, 300_000, 1_000_000)


def main() -> None:
    """Prints a markdown table, a line a size, as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=USERS)
    parser.add_argument("--shop", type=Path)
    asked = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| events of | users | s | users a second | peak MB | written MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="batch-scoring-") as folder:
        here = Path(folder)
        if asked.shop:
            items = pq.read_table(asked.shop / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
            print(_line(asked.shop.name, here / "home-of-shop", asked.shop / "events.parquet", items), flush=True)
        for users in asked.users:
            write_shop(here, EVENTS_A_USER * users, users, ITEMS)
            names = pq.read_table(here / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
            print(_line("generated users", here / f"home-{users}", here / "events.parquet", names), flush=True)


def _line(name: str, home: Path, events: Path, items: list[str]) -> str:
    with patch.dict(os.environ):  # where a home is kept is exported, and the next one is elsewhere
        settings, out = home_of(home, items, WIDTH, versions=1), home / "recs.parquet"
    command = [RECSYS, "score", "--events", events, "--out", out, "--home", settings.home]
    began = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    memory = Memory(process.pid)
    if process.wait():
        sys.exit(f"recsys score failed with exit code {process.returncode}")
    memory.stop()
    ended = time.monotonic()
    users, took = pq.ParquetFile(out).metadata.num_rows // 10, ended - began
    peak = memory.peak(began, ended)
    return f"| {name} | {users:,} | {took:.1f} | {users / took:,.0f} | {peak:,.0f} | {out.stat().st_size / 1e6:,.1f} |"


if __name__ == "__main__":
    main()
