"""Item ids in buffers answer as a list and a dict of Python strings would."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from recsys import item_ids
from recsys.item_ids import CodeOf, ItemIds

IDS = ["a", "", "Käse", "日本", "a b", "\0", "b" * 300, "🙂", "aa"]


def test_ids_are_a_sequence_of_texts() -> None:
    ids = ItemIds.of(IDS)
    assert list(ids) == IDS
    assert [ids[np.int64(place)] for place in range(-len(IDS), len(IDS))] == IDS * 2
    assert ids[2:4] == IDS[2:4]
    assert [ids == other for other in (IDS, ItemIds.of(IDS), ItemIds.of(IDS[:-1]), IDS[::-1])] == [True] * 2 + [
        False
    ] * 2
    assert ItemIds.of(ids) is ids
    with pytest.raises(IndexError):
        ids[len(IDS)]


def test_a_slice_of_a_column_is_read_from_its_own_beginning() -> None:
    assert list(ItemIds(pa.array(IDS).slice(2, 3))) == IDS[2:5]
    assert list(ItemIds(pa.array([], pa.string()))) == []


@pytest.mark.parametrize("clashing", [False, True])
def test_codes_are_those_of_a_dict(monkeypatch: pytest.MonkeyPatch, clashing: bool) -> None:
    if clashing:  # all ids, and all that are asked, have one of three hashes
        monkeypatch.setattr(item_ids, "hash", lambda text: len(text) % 3, raising=False)
    expected = {item_id: code for code, item_id in enumerate(IDS, start=1)}
    code_of = CodeOf(ItemIds.of(IDS))
    assert not code_of.twice
    assert dict(code_of) == expected
    asked = ["aa", "none", "", "🙂", "a", "a", "Kase", "\ud800", "b" * 299, "b" * 300]
    assert code_of.codes(asked).tolist() == [expected[each] for each in asked if each in expected]
    assert [code_of.get(each, 0) for each in asked] == [expected.get(each, 0) for each in asked]
    assert CodeOf(ItemIds.of([*IDS, "日本"])).twice


def test_what_is_no_text_is_no_item() -> None:
    code_of = CodeOf(ItemIds.of(IDS))
    assert code_of.codes([1, None, b"a", "a", float("nan")]).tolist() == [1]
    assert not [each for each in (1, b"a", None, ["a"]) if each in code_of]


def test_a_model_without_items_knows_none() -> None:
    code_of = CodeOf(ItemIds.of([]))
    assert (len(code_of), "" in code_of, code_of.twice) == (0, False, False)
    assert code_of.codes(["a", ""]).tolist() == []


def test_codes_are_found_by_a_process_that_hashes_texts_otherwise() -> None:
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).codes(['aa', 'none', '🙂']).tolist())"
    code_of = CodeOf(ItemIds.of(IDS))
    for seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", program],
            input=pickle.dumps(code_of),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
        )
        assert told.stdout.decode().strip() == str(code_of.codes(["aa", "none", "🙂"]).tolist()), told.stderr.decode()
