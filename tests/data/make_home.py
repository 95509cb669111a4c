"""Makes tests/data/home-v<format>.tar.gz: a tiny home as a released version writes it, for the test that upgrades it.

    git worktree add /tmp/released <commit>
    python tests/data/make_home.py /tmp/released tests/data/home-v1.tar.gz

The home is made at /tmp/recsys-home-fixture/home by the code of that checkout, then trimmed of what is made anew.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

from recsys.synthetic import shop

PLACE = Path("/tmp/recsys-home-fixture")
KNOBS = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=4", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=2", "search.epochs=2", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "compress.max_loss=0.5", "text.dims=8",
    "data.history_length=8", "data.min_users=20", "gate.min_users=20", "gate.teacher_retention=0.3",
    "gate.quantization_loss=0.5", "gate.slice_loss=0.9", "gate.neighbours_loss=0.9", "gate.champion_loss=0.9",
    "limits.size_ratio=9", "limits.coverage_ratio=0.1", "limits.latency_ms=1000", "limits.popularity_ratio=9",
]  # fmt: skip
MADE_ANEW = ("prefect", "cache", "tmp", "run", "store/views", "store/locks", "store/tmp")


def make(checkout: Path, archive: Path) -> None:
    """Runs one night with the code of `checkout`, and packs its home and shop."""
    shutil.rmtree(PLACE, ignore_errors=True)
    shop(users=120, items=24, events_a_user=16, randomness=0.3, seed=1, days=60).write(PLACE / "shop")
    words = [
        "--home",
        PLACE / "home",
        "--events",
        PLACE / "shop/events.parquet",
        "--items",
        PLACE / "shop/items.parquet",
    ]
    words += [word for knob in KNOBS for word in ("--set", knob)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "flows.cli.app", "nightly", *map(str, words)], env=environment, check=True)
    home = PLACE / "home"
    with sqlite3.connect(home / "vault" / "users.sqlite") as users:
        users.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in MADE_ANEW:
        shutil.rmtree(home / name, ignore_errors=True)
    (home / "run").mkdir()
    for page in home.rglob("*.html"):
        page.write_text("<html></html>")
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("home", "shop"):
            tar.add(PLACE / name, name)
    shutil.rmtree(PLACE)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
