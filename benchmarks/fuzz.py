"""Spoilt inputs by the thousand: each is read or refused in a sentence, to the row. `python -m benchmarks.fuzz --cases 10000 --seed 0`

Files of events, items and users, words of a command line and requests to `recsys serve`, each a valid one with one to three
faults (tests/fuzz), read by the product's own readers in a process of their own: what kills or hangs it is a defect
of that case. A block of cases is a line of docs/fuzz.jsonl, and a block that is there is not run again: delete the file to
run anew. `--only NUMBER` tries one case here and says more. The last lines are a table for docs/faults.md.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.fuzz.cases import Bench, Outcome, draw
from tests.fuzz.mutator import MUTATORS

BLOCK = 500
PATIENCE = 60
"""Seconds of processor time after which a case hangs; of a process that does nothing, thirty times as many of the clock."""
ADDRESS_SPACE = 24 << 30
RESULTS = ("accepted", "refused", "defect")


@dataclass
class Block:
    """What became of some cases: by mutator and by kind of input, how many were accepted, refused, and defects."""

    seed: int
    first: int
    cases: int
    seconds: float = 0.0
    mutators: dict[str, list[int]] = field(default_factory=dict)
    kinds: dict[str, list[int]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)

    def count(self, number: int, outcome: Outcome) -> None:
        """Takes in one case."""
        case, _ = draw(self.seed, number)
        for table, names in ((self.mutators, [each.name for each in case.mutators]), (self.kinds, [case.subject.kind])):
            for name in names:
                table.setdefault(name, [0, 0, 0])[RESULTS.index(outcome.result)] += 1
        if outcome.result == "defect":
            self.defects.append(f"{case}: {outcome.why}")


class Worker:
    """A process that tries cases; a new one when it died or hung."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._start()

    def tried(self, number: int) -> Outcome:
        """One case."""
        self._line.send(number)
        if not self._answered():
            self._process.kill()
            self._start()
            return Outcome("defect", "it hung")
        try:
            return self._line.recv()
        except EOFError:
            self._process.join()
            died = self._process.exitcode
            self._start()
            return Outcome("defect", f"the process died of {died}")

    def _answered(self) -> bool:
        process = psutil.Process(self._process.pid)
        before = sum(process.cpu_times()[:2])
        for _ in range(3 * PATIENCE):
            if self._line.poll(10):
                return True
            if sum(process.cpu_times()[:2]) - before > PATIENCE:
                return False
        return False

    def close(self) -> None:
        """Ends the process."""
        self._line.close()
        self._process.join(20)
        self._process.kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self.seed), daemon=True)
        self._process.start()
        theirs.close()


def _work(line: Connection, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with TemporaryDirectory(prefix="fuzz-") as folder:
        bench = Bench(Path(folder))
        try:
            while True:
                line.send(bench.tried(seed, line.recv())[1])
        except (EOFError, KeyboardInterrupt):
            bench.close()


def main() -> int:
    """Exit code 1 when there was a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="try this case alone, in this process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "fuzz.jsonl")
    asked = parser.parse_args()
    if asked.only is not None:
        return _alone(asked.seed, asked.only)
    blocks = list(_blocks(asked.seed, asked.cases, asked.out))
    print(as_markdown(blocks))
    defects = [defect for block in blocks for defect in block.defects]
    print("\n".join(defects))
    return int(bool(defects))


def _alone(seed: int, number: int) -> int:
    with TemporaryDirectory(prefix="fuzz-") as folder:
        bench = Bench(Path(folder))
        case, outcome = bench.tried(seed, number)
        bench.close()
    print(f"{case}\n{outcome.result} {outcome.why}")
    return int(outcome.result == "defect")


def _blocks(seed: int, cases: int, out: Path) -> Iterator[Block]:
    lines = out.read_text().splitlines() if out.exists() else []
    known = {(block.seed, block.first, block.cases): block for block in (Block(**json.loads(line)) for line in lines)}
    worker: Worker | None = None
    for first in range(0, cases, BLOCK):
        block = Block(seed, first, min(BLOCK, cases - first))
        if found := known.get((seed, first, block.cases)):
            yield found
            continue
        worker, began = worker or Worker(seed), time.monotonic()
        for number in range(first, first + block.cases):
            block.count(number, worker.tried(number))
            if sys.stderr.isatty():
                print(f"\r{number + 1:,} cases, {len(block.defects)} defects", end="", file=sys.stderr)
        block.seconds = round(time.monotonic() - began, 1)
        with out.open("a") as file:
            file.write(json.dumps(asdict(block), sort_keys=True) + "\n")
        print(
            f"cases {first:,} to {first + block.cases:,} in {block.seconds:.0f} s, {len(block.defects)} defects",
            flush=True,
        )
        yield block
    if worker:
        worker.close()


def as_markdown(blocks: list[Block]) -> str:
    """The sums, a row a kind of input and a row a mutator; a case counts for each of its mutators."""
    lines = []
    for title, rows, names in (
        ("input", [block.kinds for block in blocks], ()),
        ("mutator", [block.mutators for block in blocks], MUTATORS),
    ):
        sums = {result: Counter[str]() for result in RESULTS}
        for counted in rows:
            for name, numbers in counted.items():
                for result, number in zip(RESULTS, numbers, strict=True):
                    sums[result][name] += number
        lines += ["", f"| {title} | cases | accepted | refused | defects |", "|---|---|---|---|---|"]
        for name in sorted({*names, *(name for each in sums.values() for name in each)}):
            numbers = [sums[result][name] for result in RESULTS]
            lines.append(
                "| " + " | ".join([name.replace("_", " "), *(f"{n:,}" for n in (sum(numbers), *numbers))]) + " |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
