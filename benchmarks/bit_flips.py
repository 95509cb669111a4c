"""One bit of one published file, a thousand times a kind: refused before it is parsed, by name, and made again. `python -m benchmarks.bit_flips`

Every kind of file that a night publishes (benchmarks/published.py), read as the product reads it, with the parsers of
models and tables replaced by traps. The law:

    a flipped bit is refused by an error that names the file (a record: its number); nothing was parsed by then
    "harmless" is only what reads the same in every value: free space of a database, a letter of MLflow's own MLmodel
    what can be made again is, to the bit: an object of the store by its recipe, a mirrored record, a copy that serves

The home is tests/data/home-v1.tar.gz, a real night. A kind and seed are a line of docs/bit_flips.jsonl; one that is there is
not run again.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.published import Target, targets_of
from recsys.artifact import Card, Golden
from recsys.errors import RecsysError
from recsys.silent_onnxruntime import onnxruntime
from tasks.workshop import Workshop

RESULTS = ("refused", "harmless", "missed", "parsed", "unnamed", "crashed")
LOOSE = ("manifest", "head", "users.sqlite", "MLmodel")
"""Kinds with bits that say nothing."""


class ParsedError(BaseException):
    """A parser was given what was not verified."""


@dataclass
class Tally:
    """What became of the flips of one kind."""

    kind: str
    seed: int
    flips: int
    counts: dict[str, int]
    remade: int
    not_remade: int
    breaches: list[str]


def tried(target: Target, draw: random.Random) -> tuple[str, str, bool | None]:
    """One flip: its result, why it breaks the law if it does, whether it was made again (None: it cannot be)."""
    whole = target.get()
    target.put(flipped(whole, draw))
    result, why = "refused", ""
    try:
        with no_parser():
            found = target.read()
        result = "harmless" if target.expected is not None and found == target.expected else "missed"
        why = "" if result == "harmless" and target.kind in LOOSE else f"it was read: {str(found)[:80]}"
    except RecsysError as error:
        if target.called not in str(error):
            result, why = "unnamed", str(error)
    except ParsedError as error:
        result, why = "parsed", str(error)
    except Exception as error:
        result, why = "crashed", f"{type(error).__name__}: {error}"
    remade = None
    if target.remake and result == "refused":
        remade = target.remake() == whole
    target.put(whole)
    return result, why, remade


def flipped(content: bytes, draw: random.Random) -> bytes:
    """The same with one bit another."""
    spoilt = bytearray(content)
    spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


@contextlib.contextmanager
def no_parser() -> Iterator[None]:
    """Whatever would parse a table, a model or a description of one raises ParsedError inside."""

    def trap(*words: Any, **more: Any) -> Any:
        raise ParsedError("a parser was called")

    places = [(pq, "read_table"), (pq, "ParquetFile"), (onnxruntime, "InferenceSession")]
    places += [(Card, "from_bytes"), (Golden, "from_bytes")]
    with contextlib.ExitStack() as stack:
        for owner, name in places:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, trap)
        yield


# --- the command --------------------------------------------------------------------------------------------------


def tallied(kind: str, targets: Sequence[Target], flips: int, seed: int) -> Tally:
    """So many flips of one kind, each in a file of it that is drawn by size, as rot would."""
    draw, counts, remade, breaches = random.Random(f"{seed} {kind}"), Counter[str](), Counter[bool | None](), []
    weights = [len(target.get()) for target in targets]
    for number in range(flips):
        target = draw.choices(targets, weights)[0]
        result, why, again = tried(target, draw)
        counts[result] += 1
        remade[again] += 1
        if why or again is False:
            breaches.append(f"{kind}, seed {seed}, flip {number}, {target.called}: {result} {why}, remade {again}")
    return Tally(kind, seed, flips, dict(counts), remade[True], remade[False], breaches)


def kinds_of(targets: Sequence[Target]) -> dict[str, list[Target]]:
    """The targets of each kind."""
    found: dict[str, list[Target]] = {}
    for target in targets:
        found.setdefault(target.kind, []).append(target)
    return found


def main() -> int:
    """Prints a row a kind; exit code 1 when the law was broken."""
    from tests.conftest import unpack

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "bit_flips.jsonl")
    asked = parser.parse_args()
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    known = {(line["kind"], line["seed"], line["flips"]): Tally(**line) for line in lines}
    rows = []
    with tempfile.TemporaryDirectory(prefix="bit-flips-") as folder:
        workshop = Workshop.of(unpack(Path(folder)).settings.export())
        for kind, targets in kinds_of(targets_of(workshop)).items():
            row = known.get((kind, asked.seed, asked.flips))
            if row is None:
                row = tallied(kind, targets, asked.flips, asked.seed)
                with asked.out.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            rows.append(row)
    print("| kind | flips | " + " | ".join(RESULTS) + " | remade | not remade |\n|" + "---|" * (len(RESULTS) + 4))
    for row in rows:
        cells = [row.kind, row.flips, *(row.counts.get(result, 0) for result in RESULTS), row.remade, row.not_remade]
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells) + " |")
    breaches = [breach for row in rows for breach in row.breaches]
    print("\n".join(breaches[:50]))
    return int(bool(breaches))


if __name__ == "__main__":
    sys.exit(main())
