"""What one request costs: history in, ten items out, by catalog, bits and neighbours. `python -m benchmarks.requests`

Untrained models (speed does not depend on what was learnt), histories of 50 items, one thread, passes as large as the
runtime's. The ways take turns, a round each, and the median of CPU time is told: wall time of a shared machine says more
about its neighbours. Beside them torch does the same in float32 (one encode, one product, one topk), and numpy reads a
table of eight bits once, which is what memory allows. With --scoring states are given, and nothing is encoded. The last
lines are a table for docs/results.md.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx
import torch
from onnx.utils import Extractor
from scipy.sparse import csr_array

from recsys.decoder import DecoderShape
from recsys.graph import Bits, serving_graph
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.runtime import pass_rows
from recsys.serving_graph import ServingGraph
from recsys.silent_onnxruntime import onnxruntime
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
    parser.add_argument("--scoring", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for items in asked.items:
        measured = (scoring if asked.scoring else ways)(items, asked.batch)
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
        found.append(Way(name, _served(ServingGraph(model), histories, items), len(model)))
    words = np.ones(items * WIDTH // 8, np.int64)  # untouched zeros would all be one page of memory
    return [*found, Way("numpy reads 8 bits once", words.sum, words.nbytes)]


def scoring(items: int, batch: int) -> list[Way]:
    """From states to the ten best: the end of the same graphs."""
    student = Student.untrained(DecoderShape.of(items, WIDTH, 1, LENGTH), 0.0, seed=0).eval()
    states = np.random.default_rng(0).standard_normal((batch, WIDTH), np.float32)
    table = student.item_table().detach()

    def eager() -> object:
        with torch.inference_mode():
            return (torch.from_numpy(states) @ table.T).topk(K)

    found, kinds = [Way("torch float", eager, table.numel() * 4)], {"float": 32, "8 bits": 8, "4 bits": 4}
    for name, bits in kinds.items():
        model = serving_graph(student, cast(Bits, bits))
        found.append(Way(name, _scored(model, states, pass_rows(1, items)), len(model)))
    words = np.ones(items * WIDTH // 8, np.int64)  # untouched zeros would all be one page of memory
    return [*found, Way("numpy reads 8 bits once", words.sum, words.nbytes)]


def _scored(model: bytes, states: np.ndarray, rows: int) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    end = Extractor(onnx.load_from_string(model)).extract_model(["state", "exclude", "k"], ["codes", "scores"])
    session = onnxruntime.InferenceSession(end.SerializeToString(), options, providers=["CPUExecutionProvider"])
    k = np.array([K], np.int64)
    feeds = [
        {"state": some, "exclude": np.zeros((len(some), 0), np.int64), "k": k}
        for some in (states[start : start + rows] for start in range(0, len(states), rows))
    ]
    return lambda: [session.run(["codes", "scores"], feed) for feed in feeds]


def _served(graph: ServingGraph, histories: list[np.ndarray], items: int) -> Callable[[], object]:
    rows = pass_rows(LENGTH, items)
    passes = [histories[start : start + rows] for start in range(0, len(histories), rows)]
    return lambda: [graph.best(some, some, K) for some in passes]


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
