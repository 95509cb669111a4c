"""From nothing to the first answer: what a process that serves an artifact takes to start. `python -m benchmarks.start`

An untrained student of width 64 with ten neighbours an item is exported for each size of catalog; then a fresh process
imports the runtime, verifies and opens the folder and answers one history of 50, several times over. Wall time from
the start of the process to the answer, its resident memory then, and the largest it had.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.requests import LENGTH, WIDTH, neighbours, processor
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.student import Student

FIRST_ANSWER = """
import sys
from pathlib import Path
import pyarrow
from recsys.runtime import Runtime
pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # as recsys serve does
runtime = Runtime.open(Path(sys.argv[1]))
answer = runtime.recommend([[str(code) for code in range(1, 51)]])[0]
assert len(answer) == 10
# Not ru_maxrss: it starts with what the parent had when it forked.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(int(status[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")))
"""


def main() -> None:
    """Prints one row a catalog."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="*", default=(12_000, 100_000))
    parser.add_argument("--starts", type=int, default=7)
    asked = parser.parse_args()
    print(processor())
    print(
        "| items | MB of model.onnx | s to the first answer (median) | MB resident | MB at most |\n|---|---|---|---|---|"
    )
    for items in asked.items:
        with tempfile.TemporaryDirectory() as folder:
            student = Student.untrained(DecoderShape.of(items, WIDTH, 1, LENGTH), 0.0, seed=0).eval()
            torch.nn.init.normal_(student.table.weight.data[1:], std=WIDTH**-0.5)  # learnt ones are as long
            ids = [str(code) for code in range(1, items + 1)]
            catalog = Catalog(ids, [f"item {code}" for code in ids], [None] * items, [None] * items)
            opinion = neighbours(items, np.random.default_rng(0))
            manifest = export(student, Publication(catalog, np.ones(items), "exclude", {}, opinion), 8, Path(folder))
            seconds, resident, most = zip(*(start(folder) for _ in range(asked.starts)), strict=True)
            memory = f"{max(resident)} | {max(most)}"
            figures = f"{manifest.model_bytes / 1e6:.1f} | {statistics.median(seconds):.2f} | {memory}"
            print(f"| {items:,} | {figures} |", flush=True)


def start(folder: str) -> tuple[float, int, int]:
    """Seconds of one process, MB it has at its end and MB it had at most."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", FIRST_ANSWER, folder], capture_output=True, text=True, check=True)
    resident, most = map(int, done.stdout.split())
    return time.monotonic() - began, resident, most


if __name__ == "__main__":
    main()
