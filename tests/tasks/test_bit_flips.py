"""Fifty flipped bits in a real home, three a kind, and the law of benchmarks/bit_flips.py convicts readers that do not look."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.bit_flips import LOOSE, kinds_of, tallied
from benchmarks.published import Target, targets_of
from recsys.errors import StoreError
from tasks.workshop import Workshop

STEPS = ("validate", "items", "build", "teach", "label", "distil", "compress", "artifact", "evaluate", "judge")
REMADE = (*STEPS, "manifest", "mirrored record", "copy that serves", "current.json", "head")
FOR_A_PERSON = ("record", "key", "users.sqlite", "artifact in MLflow", "MLmodel")


def test_a_flipped_bit_is_refused_by_name_and_what_can_be_is_made_again(released):
    kinds = kinds_of(targets_of(Workshop.of(released.settings.export())))
    assert sorted(kinds) == sorted((*REMADE, *FOR_A_PERSON))
    tallies = [tallied(kind, targets, 3, seed=1) for kind, targets in kinds.items()]
    assert [breach for tally in tallies for breach in tally.breaches] == []
    for tally in tallies:
        assert tally.counts == {"refused": 3} or tally.kind in LOOSE
        assert tally.remade == (tally.counts["refused"] if tally.kind in REMADE else 0)


def refuses_without_a_name(path):
    raise StoreError("something is damaged")


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda path: path.read_bytes(), "missed it was read"),
        (lambda path: pq.read_table(path), "parsed a parser was called"),  # looked up when it is called, as the product does
        (refuses_without_a_name, "unnamed something is damaged"),
        (lambda path: int(path.read_bytes()), "crashed ValueError"),
    ],
)  # fmt: skip
def test_a_reader_that_does_not_look_is_convicted(tmp_path, read, told):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"x": list(range(5000))}), path)
    whole = path.read_bytes()
    target = Target("table", path.name, path.read_bytes, path.write_bytes, lambda: read(path))
    tally = tallied("table", [target], 2, seed=0)
    assert [told in breach for breach in tally.breaches] == [True, True]
    assert path.read_bytes() == whole


def test_what_is_not_made_again_is_told(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"whole")

    def read():
        raise StoreError("a is damaged")

    tally = tallied("a", [Target("a", "a", path.read_bytes, path.write_bytes, read, None, lambda: b"other")], 1, 0)
    assert (tally.remade, tally.not_remade, len(tally.breaches)) == (0, 1, 1)
