"""How far one machine goes: 1, 5 and 20 million events within 4 GiB. `python -m benchmarks.scale`

Each size is one row of the result, written as soon as it is known; sizes already there are not run again.
Seconds and peak memory are those of a step's whole process tree, Great Expectations and the vault included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from benchmarks.generated_shop import OPENING, write_shop
from benchmarks.growth import resident
from recsys.config import DataConfig, EventsConfig
from recsys.dataset import BuildPlan, Dataset, build
from recsys.events import EventSource, validate_file
from recsys.items import validate_items
from recsys.split import DAY
from tasks.adapters import expectations
from tasks.adapters.vault import Vault

LIMIT_MB = 4096
SIZES = (1_000_000, 5_000_000, 20_000_000)
_STEPS = ("validate", "build", "load")
_ITEMS = 50_000
_EVENTS_A_USER = 20


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    seconds: float
    peak_mb: float  # largest sum of resident memory over the process tree, sampled every 50 ms


def main() -> int:
    """Runs the sizes that are missing; exit code 1 when one needed more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes to run, in events")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/scale.json"), help="where the rows are kept"
    )
    parser.add_argument("--step", choices=_STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        {"validate": _validate, "build": _build, "load": _load}[arguments.step](arguments.folder)
        return 0
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for rows in arguments.rows:
        if rows not in [result["rows"] for result in results]:
            results = sorted([*results, _measured(rows)], key=lambda result: result["rows"])
            _write(arguments.out, results)
    for result in results:
        print(_line(result))
    return int(any(not result["within_limit"] for result in results))


def _measured(rows: int) -> dict[str, object]:
    """One row of the result."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        write_shop(Path(folder), rows, rows // _EVENTS_A_USER, _ITEMS)
        costs = {step: _run(step, folder) for step in _STEPS}
        events_mb = Path(folder, "events.parquet").stat().st_size / 1e6
    return {
        "rows": rows,
        "events_mb": round(events_mb, 1),
        "cpus": len(psutil.Process().cpu_affinity()),
        "within_limit": max(cost.peak_mb for cost in costs.values()) <= LIMIT_MB,
        **{step: asdict(cost) for step, cost in costs.items()},
    }


def _run(step: str, folder: str) -> Cost:
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.scale", "--step", step, "--folder", folder])
    root, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        peak = max(peak, resident(root))
        time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"{step} failed with exit code {child.returncode}")
    return Cost(round(time.perf_counter() - began, 1), round(peak / 2**20))


def _validate(folder: Path) -> None:
    validate_items(folder / "items.parquet", folder / "items", {}, 0.0)
    known = pq.read_table(folder / "items" / "items.parquet", columns=["item_id"])["item_id"].combine_chunks()
    vault = Vault(folder / "vault")
    source = EventSource({}, known, OPENING + 365 * DAY, vault.door, vault.remember)
    found = validate_file(folder / "events.parquet", folder / "events", source, EventsConfig())
    accepted = folder / "events" / "accepted.parquet"
    expectations.check(accepted, oldest=found.oldest, newest=found.newest).require(folder / "events.parquet")


def _build(folder: Path) -> None:
    plan = BuildPlan(EventsConfig(), DataConfig(), None, shards=16, memory_mb=1500, temp=folder / "temp")
    accepted, items = folder / "events" / "accepted.parquet", folder / "items" / "items.parquet"
    build([accepted], items, None, folder / "dataset", plan)


def _load(folder: Path) -> None:
    dataset = Dataset.load(folder / "dataset")
    dataset.test_cases()
    dataset.validation_cases()


def _write(path: Path, results: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(results, sort_keys=True, indent=1, allow_nan=False))
    draft.rename(path)


def _line(result: dict[str, dict[str, float]]) -> str:
    steps = ", ".join(f"{step} {result[step]['seconds']} s, {result[step]['peak_mb']:,.0f} MB" for step in _STEPS)
    return f"{result['rows']:>12,} events: {steps}"


if __name__ == "__main__":
    sys.exit(main())
