"""CPU seconds of training until a model ranks as well as ours does after a few epochs, on one shop and one machine.

    python -m benchmarks.time_to_quality --data DIR/SHOP [--width 32] [--epochs 5] [--budget 600] [--seeds 0 1]
        [--split leave_one_out] [--threads 1] [--out docs/time_to_quality.jsonl]

Contestants, all of one width, reading the newest --length items, with a softmax over items and no item texts:
ours: `recsys.teacher` with the default knobs of a teacher, trained --epochs epochs by `recsys.training.fit`;
rectools: SASRecModel of RecTools 0.19.0 with its own defaults, in an environment of its own under --home;
plain: the SASRec one writes in PyTorch: fixed-length padding, nn.TransformerEncoder, all items scored, Adam.

The target is the validation NDCG@10 of our last epoch. After each pass, and every --every seconds of a long one, a
contestant ranks the whole catalog for the same validation users by the same code; the first time it is at the target
counts. The clock is CPU time of all threads of its process, stopped while it ranks or prepares data. Who is not there
when --budget seconds are spent is told as "at least". Rows are kept; a row that is there is not run again.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.time_to_quality_race import CONTESTANTS, Lesson, Race

ROOT = Path(__file__).parents[1]
RECTOOLS = ("rectools[torch]==0.19.0", "torch==2.13.0", "safetensors")  # the last for recsys/sequence_model.py
CASES = 5_000  # validation users at most, evenly spaced


def lesson_of(data: Path, split: Any, home: Path) -> Path:
    """The shop's lesson, made once."""
    from recsys.config import DataConfig, EventsConfig
    from recsys.dataset import BuildPlan, Dataset, build
    from recsys.door import Door
    from recsys.events import EventSource, validate_file

    folder = home / f"{data.name}-{split}"
    if not (folder / "lesson.npz").exists():
        source = EventSource({}, None, int(time.time()), Door(bytes(32)), lambda users: None)
        validate_file(data / "events.parquet", folder / "accepted", source, EventsConfig())
        plan = BuildPlan(EventsConfig(), DataConfig(split=split), None, 4, 2_000, folder / "scratch")
        build([folder / "accepted" / "accepted.parquet"], None, None, folder / "dataset", plan)
        made = Dataset.load(folder / "dataset")
        Lesson(made.histories, made.validation_cases().sample(CASES), made.catalog.items).save(folder / "lesson.npz")
    return folder / "lesson.npz"


def environment(home: Path) -> Path:
    """The interpreter that has RecTools."""
    python = home / "rectools" / "bin" / "python"
    if not (home / "rectools" / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home / "rectools"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *RECTOOLS], check=True)
        (home / "rectools" / "complete").touch()
    return python


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, a line a contestant: medians over the seeds, and the seeds themselves."""
    lines = [
        "| shop | width | target NDCG@10 | contestant | CPU seconds to it (a seed each) | against ours | best NDCG@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = [tuple(r[name] for name in ("shop", "width", "epochs", "split", "length", "threads")) for r in rows]
    for kind in dict.fromkeys(kinds):
        group = [r for r, its in zip(rows, kinds, strict=True) if its == kind]
        base = median(r["seconds"] for r in group if r["contestant"] == "ours")
        for contestant in dict.fromkeys(r["contestant"] for r in group):
            some = [r for r in group if r["contestant"] == contestant]
            told = ", ".join(f"{'' if r['reached'] else 'at least '}{r['seconds']:.0f}" for r in some)
            times = f"{'' if all(r['reached'] for r in some) else 'at least '}{median(r['seconds'] for r in some) / base:.1f}"
            targets, best = (" ".join(f"{r[name]:.4f}" for r in some) for name in ("target", "best"))
            lines.append(f"| {kind[0]} | {kind[1]} | {targets} | {contestant} | {told} | {times} | {best} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and not yet there, one process a row."""
    asked = _arguments()
    rows = [json.loads(line) for line in asked.out.open()] if asked.out.exists() else []
    file = lesson_of(asked.data, asked.split, asked.home).resolve()
    sizes = asked.width, asked.length, asked.epochs, asked.budget, asked.every, asked.threads
    for seed in asked.seeds:
        target = math.inf  # ours comes first and sets it
        for contestant in (name for name in CONTESTANTS if name in ("ours", *asked.contestants)):
            race = Race(contestant, asked.data.name, asked.split, *sizes, seed)
            row = next((row for row in rows if race.is_of(row)), None)
            if row is None:
                python = environment(asked.home.resolve()) if contestant == "rectools" else Path(sys.executable)
                row = _in_process(race, file, target, python)
                rows.append(row)
                with asked.out.open("a") as out:
                    out.write(json.dumps(row, sort_keys=True) + "\n")
            target = row["target"]
    print(as_markdown(rows))


def _in_process(race: Race, file: Path, target: float, python: Path) -> dict[str, Any]:
    """A row measured by an interpreter of its own, so that no contestant inherits another's memory or threads."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(race.threads))
    words = [python, "-m", "benchmarks.time_to_quality_race", json.dumps([asdict(race), str(file), target])]
    load = round(os.getloadavg()[0], 1)
    told = subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True)
    return {**json.loads(told.stdout.splitlines()[-1]), "load_before": load}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--contestants", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS])
    parser.add_argument("--split", choices=["leave_one_out", "temporal"], default="leave_one_out")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--budget", type=float, default=600)
    parser.add_argument("--every", type=float, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--home", type=Path, default=Path("build/time_to_quality"))
    parser.add_argument("--out", type=Path, default=Path("docs/time_to_quality.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
