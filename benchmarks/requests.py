"""What one request costs: history in, ten items out, by catalog, bits and neighbours. `python -m benchmarks.requests`

Untrained models (speed does not depend on what was learnt), histories of 50 items, one thread. The ways take turns, a
round each, and the median of CPU time is told: wall time of a shared machine says more about its neighbours. Beside
them torch does the same in float32 (one encode, one product, one topk), and numpy reads a table of eight bits once,
which is what memory allows. The last lines are a table for docs/results.md.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import csr_array

from recsys.decoder import DecoderShape
from recsys.graph import Bits, serving_graph
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.serving_graph import ServingGraph
from recsys.student import Student

LENGTH, WIDTH, KEPT, K = 50, 64, 10, 10
CATALOGS = (12_000, 100_000, 1_000_000)


@dataclass
class Way:
    """One way to answer, what its file takes, and what its turns took."""

    name: str
    answer: Callable[[], object]
    bytes: int
    seconds: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """The median of its CPU time."""
        return 1e3 * float(np.median(self.seconds))


def main() -> None:
    """Measures each catalog, then tells all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="*", default=CATALOGS)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for items in asked.items:
        measured = ways(items, asked.batch)
        for turn in range(asked.rounds + 10):
            for way in measured:
                began = time.process_time()
                way.answer()
                if turn >= 10:  # the first ones warm up
                    way.seconds.append(time.process_time() - began)
        reference = next(way.milliseconds for way in measured if way.name == "torch float")
        lines += [
            f"| {items:,} | {asked.batch} | {way.name} | {way.bytes / 1e6:,.1f} | {way.milliseconds:.2f} | "
            f"{reference / way.milliseconds:.1f} |"
            for way in measured
        ]
    print(f"{processor()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {asked.rounds} rounds")
    print("| items | batch | way | MB | p50 CPU ms | times torch |\n|---|---|---|---|---|---|")
    print("\n".join(lines))


def ways(items: int, batch: int) -> list[Way]:
    """All that are compared, on the same histories."""
    student = Student.untrained(DecoderShape.of(items, WIDTH, 1, LENGTH), 0.0, seed=0).eval()
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, items + 1, LENGTH) for _ in range(batch)]
    asked = torch.from_numpy(np.stack(histories))
    table = student.item_table().detach()

    def eager() -> object:
        with torch.inference_mode():
            scores = student.states(asked, table)[:, -1] @ table.T
            scores.scatter_(1, asked, -torch.inf)
            return scores.topk(K)

    found = [Way("torch float", eager, table.numel() * 4)]
    opinion = neighbours(items, rng)
    kinds: list[tuple[str, Bits, Opinion | None]] = [
        ("float", 32, None), ("8 bits", 8, None), ("8 bits, neighbours", 8, opinion), ("4 bits, neighbours", 4, opinion),
    ]  # fmt: skip
    for name, bits, spoken in kinds:
        model = serving_graph(student, bits, spoken)
        found.append(Way(name, _served(ServingGraph(model), histories), len(model)))
    words = np.ones(items * WIDTH // 8, np.int64)  # untouched zeros would all be one page of memory
    return [*found, Way("numpy reads 8 bits once", words.sum, words.nbytes)]


def _served(graph: ServingGraph, histories: list[np.ndarray]) -> Callable[[], object]:
    return lambda: graph.best(histories, histories, K)


def neighbours(items: int, rng: np.random.Generator) -> Opinion:
    """Ten random ones of each item."""
    columns = rng.integers(0, items, (items, KEPT))
    near = csr_array((rng.random(items * KEPT, np.float32), columns.ravel(), np.arange(items + 1) * KEPT))
    return Opinion(Neighbourhood(csr_array(near, shape=(items, items)), 50), 0.5)


def processor() -> str:
    """Its name, and the instruction sets that matter here."""
    with open("/proc/cpuinfo") as file:
        lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in lines.items()}
    sets = [each for each in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if each in named["flags"].split()]
    return f"{named['model name']} ({', '.join(sets)})"


if __name__ == "__main__":
    main()
