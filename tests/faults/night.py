"""A tiny night, real Prefect, MLflow and Optuna: how it is run, killed and run again, and what must be true of its home then.

The law of a resumed home, `broken`: the objects of a night that was left alone, every step's; one version of the teacher, one of
the student, one record of the ledger and its mirror, aliases at them; every blob and database sound and no other fault of fsck;
nothing half made in the store, no run still open in MLflow, none running in Prefect; no process of the home alive.
"""

import json
import os
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.synthetic import shop

ROOT = Path(__file__).parents[2]
STEPS = ("start", "validate", "build", "teach", "label", "distil", "compress", "evaluate", "judge", "promote", "tell")
KNOBS = (
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=4", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=3", "search.epochs=2", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "compress.max_loss=0.5", "text.dims=8",
    "data.history_length=8", "data.min_users=20", "gate.min_users=20", "gate.teacher_retention=0.3",
    "gate.quantization_loss=0.5", "gate.slice_loss=0.9", "gate.neighbours_loss=0.9", "gate.champion_loss=0.9",
    "limits.size_ratio=9", "limits.coverage_ratio=0.1", "limits.latency_ms=1000", "limits.popularity_ratio=9",
)  # fmt: skip
JUDGED = "judge"
"""Of this step the recipe is compared and not the object: a verdict holds the latency that was measured."""

TWINS = "SELECT name, version FROM model_version_tags WHERE key = 'recsys.duplicate_of'"
RECORDS = "SELECT version FROM model_versions WHERE name LIKE '%ledger'"

_DONE = re.compile(rf"^({'|'.join(STEPS)}) +(done in|reused)", re.MULTILINE)


@dataclass(frozen=True)
class Shop:
    """Its files, and the key of its vault: homes with one key have the same objects."""

    folder: Path

    def make(self) -> Self:
        """Writes it: all its events, and those without the last day, as a file of the same name."""
        made = shop(users=120, items=24, events_a_user=16, randomness=0.3, seed=1, days=60)
        made.write(self.folder)
        (self.folder / "early").mkdir()
        last_day = pc.max(made.events["timestamp"]).as_py() - 86_400
        early = made.events.filter(pc.less(made.events["timestamp"], last_day))
        pq.write_table(early, self.folder / "early" / "events.parquet")
        (self.folder / "key").write_bytes(bytes(range(32)))
        (self.folder / "key").chmod(0o600)
        return self

    def words(self, home: Path, command: str = "nightly", events: str = "events.parquet") -> list[str]:
        """What follows `recsys`."""
        if command != "nightly":
            return [command, "--home", str(home)]
        places = ["--events", str(self.folder / events), "--items", str(self.folder / "items.parquet")]
        return [command, "--home", str(home), *places, *(word for knob in KNOBS for word in ("--set", knob))]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """A stranger's, with the shop's key."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
        own = {"HOME": "/proc/nobody", "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1"}
        own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
        return {**kept, **own, "RECSYS_VAULT_KEY": str(self.folder / "key"), **(more or {})}


def step_at_work(said: str) -> str:
    """Which step a night is in that has printed this."""
    done = _DONE.findall(said)
    if not done:
        return STEPS[1] if STEPS[1] in said else STEPS[0]
    return (*STEPS, "end")[STEPS.index(done[-1][0]) + 1]


@dataclass(frozen=True)
class Truth:
    """What a home has come to."""

    objects: Mapping[str, str]  # digest by step and key
    registered: tuple[tuple[object, ...], ...]  # model, version, digest of its files
    aliases: tuple[tuple[object, ...], ...]
    ledger: tuple[tuple[object, ...], ...]  # what each record says, without times

    @classmethod
    def of(cls, home: Path) -> "Truth":
        """Read from the store and MLflow's database, by nothing of the product but the format."""
        return cls.read(home / "store", lambda query: rows(home, query))

    @classmethod
    def read(cls, store: Path, ask: Callable[[str], list[tuple[object, ...]]]) -> "Truth":
        """As `of`, wherever they are; `ask` gives the rows that MLflow's database has for a query.

        Versions that are marked as the twins of others, from answers that were lost, do not count.
        """
        tag = "(SELECT value FROM model_version_tags t WHERE t.name = v.name AND t.version = v.version AND key = '{}')"
        counts = f"{tag.format('recsys.duplicate_of')} IS NULL"
        versions = (
            f"SELECT name, version, {tag.format('recsys.digest')} FROM model_versions v WHERE name NOT LIKE '%ledger'"
        )
        records = f"SELECT version, {tag.format('recsys.record')} FROM model_versions v WHERE name LIKE '%ledger'"
        return cls(
            objects_of(store),
            tuple(sorted(ask(f"{versions} AND {counts}"))),
            tuple(sorted(ask("SELECT name, alias, version FROM registered_model_aliases"))),
            tuple(_entry(*record) for record in sorted(ask(f"{records} AND {counts}"))),
        )


def objects_of(store: Path) -> dict[str, str]:
    """The digest of each object that a store's folder has, by step and key."""
    objects = {}
    for path in (store / "manifests").glob("*/*.json"):
        manifest = json.loads(path.read_bytes())["manifest"]
        digest = "" if manifest["step"] == JUDGED else manifest["digest"]
        objects[f"{manifest['step']} {manifest['key']}"] = digest
    return objects


def _entry(number: object, text: object) -> tuple[object, ...]:
    record = json.loads(str(text))
    return number, record["op"], record["from"], record["to"], record["expected"], record["digest"], record["actor"]


def rows(home: Path, query: str, database: str = "mlflow/mlflow.db") -> list[tuple[object, ...]]:
    """What a database of the home says."""
    return asked(home / database, query)


def asked(database: Path, query: str) -> list[tuple[object, ...]]:
    """What a database of SQLite's says."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        return connection.execute(query).fetchall()


def broken(home: Path, truth: Truth) -> list[str]:
    """The sentences of the law that do not hold, but for fsck's."""
    wrong = [*broken_in(home, home / "mlflow" / "mlflow.db", truth)]
    if twins := rows(home, TWINS):
        wrong.append(f"{len(twins)} versions were registered twice")
    prefect = home / "prefect" / "prefect.db"
    if prefect.exists() and (running := asked(prefect, "SELECT name FROM flow_run WHERE state_type = 'RUNNING'")):
        wrong.append(f"{len(running)} runs are running in Prefect")
    return wrong


def broken_in(home: Path, mlflow: Path, truth: Truth) -> list[str]:
    """The same without Prefect's, of a home whose MLflow may have its database elsewhere, and in it twins that do not count."""
    found = Truth.read(home / "store", lambda query: asked(mlflow, query))
    wrong = [
        f"{name}: {theirs} instead of {ours}"
        for name in ("registered", "aliases", "ledger")
        if (theirs := getattr(found, name)) != (ours := getattr(truth, name))
    ]
    for key in sorted(found.objects.keys() | truth.objects.keys()):
        ours, theirs = truth.objects.get(key), found.objects.get(key)
        if ours != theirs:
            wrong.append(f"object {key}: {theirs} instead of {ours}")
    wrong += [f"left in the store: {left}" for left in half_made(home)]
    mirrored, records = len(list((home / "ledger").glob("*/*.json"))), len(asked(mlflow, RECORDS))
    wrong += [f"{mirrored} records in the mirror"] if mirrored != records else []
    if running := asked(mlflow, "SELECT run_uuid FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"):
        wrong.append(f"{len(running)} runs are open in MLflow")
    return [*wrong, *(f"process {pid} is alive" for pid in processes(home))]


def half_made(home: Path) -> list[str]:
    """What builds left in the store, set aside as damaged, or wrote without giving it its name."""
    places = [path for name in ("tmp", "scratch", "bad") for path in (home / "store" / name).iterdir()]
    return sorted(str(path.relative_to(home)) for path in (*places, *home.rglob("*.part")))


def left_in_temp(home: Path) -> int:
    """Bytes that killed commands left in the home's tmp/ and among its item vectors: `recsys gc` takes them when they are old."""
    left = (*(home / "tmp").rglob("*"), *(home / "cache" / "text").glob("*.tmp"))
    return sum(path.stat().st_size for path in left if path.is_file())


def processes(home: Path) -> list[int]:
    """Those that know the home from their environment or their words, but not us."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(str(home)) + b"\0" in known and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
