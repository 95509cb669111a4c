"""Reasons: they are what the runtime answers without an event, to the bit, and they name what really caused a score."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys import explanation
from recsys.decoder import DecoderShape
from recsys.explanation import Explained, Reason, explain, reasons_by_id
from recsys.export import Publication, export
from recsys.histories import Cases, Catalog, Histories
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.runtime import Runtime
from recsys.sequence_model import ranking_validator
from recsys.student import Student
from recsys.training import HardLabels, Schedule, fit

ITEMS, USERS, EVENTS, LENGTH = 24, 150, 14, 8
IDS = [f"item-{code}" for code in range(1, ITEMS + 1)]


def codes(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def chains() -> tuple[Histories, Cases]:
    """Users who mostly step from an item to the one after it."""
    rng = np.random.default_rng(0)
    steps = np.where(rng.random((USERS, EVENTS)) < 0.9, 1, rng.integers(1, ITEMS, (USERS, EVENTS)))
    items = ((np.cumsum(steps, 1) + rng.integers(0, ITEMS, (USERS, 1))) % ITEMS + 1).astype(np.int32)
    histories = Histories(
        tokens=np.array([f"{user:032d}".encode() for user in range(USERS)]),
        offsets=np.arange(USERS + 1) * EVENTS,
        items=items.ravel(),
        times=np.arange(USERS * EVENTS),
        weights=np.ones(USERS * EVENTS, np.float32),
        train_end=np.full(USERS, EVENTS - 1, np.int32),
        valid_end=np.full(USERS, EVENTS, np.int32),
    )
    return histories, Cases(np.arange(USERS), [row[:-1] for row in items], [row[-1:] for row in items], False)


def publication(repeats: str, opinion: Opinion | None = None) -> Publication:
    nothing: list[str | None] = [None] * ITEMS
    counts = np.arange(ITEMS, 0, -1)
    return Publication(Catalog(IDS, nothing, nothing, nothing), counts, repeats, {}, opinion)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student that was trained on the chains, published for both rules on repeats, and once with neighbours."""
    place, before = tmp_path_factory.mktemp("published"), torch.get_num_threads()
    torch.set_num_threads(1)
    histories, validation = chains()
    student = Student.untrained(DecoderShape.of(ITEMS, 16, 1, LENGTH), 0.1, seed=0)
    fit(student, histories, LENGTH, Schedule(3, 1e-2, 0, 128), HardLabels(), ranking_validator(student, validation))
    opinion = Opinion(Neighbourhood.of_training(histories, ITEMS, 5, 3), 0.5)
    export(student.eval(), publication("exclude"), 8, place / "exclude")
    export(student, publication("allow"), 32, place / "allow")
    export(student, publication("allow", opinion), 8, place / "blended")
    torch.set_num_threads(before)
    return {name: place / name for name in ("exclude", "allow", "blended")}


@pytest.fixture(scope="module")
def runtimes(folders: dict[str, Path]) -> dict[str, Runtime]:
    return {name: Runtime.open(folder) for name, folder in folders.items()}


def drawn(seed: int, most: int) -> list[np.ndarray]:
    """Histories of up to 19 events, with repeats and with items the model does not know."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, ITEMS + 3, rng.integers(0, 20)).astype(np.int32) for _ in range(most)]


def naive_drops(runtime: Runtime, history: np.ndarray, code: int) -> dict[int, float]:
    """By position, one call at a time. Where an item is read once it is left out with its repeats."""
    once = runtime.card.repeats == "exclude"
    items = history.tolist()
    known = [
        place for place, item in enumerate(items)
        if 1 <= item <= ITEMS and not (once and item in items[:place])
    ]  # fmt: skip
    whole, drops = runtime.scores([history])[0][code - 1], {}
    for place in known[-LENGTH:]:
        left = [i for at, i in enumerate(items) if (i != items[place] if once else at != place)]
        drops[place] = float(whole - runtime.scores([codes(*left)])[0][code - 1])
    return drops


@pytest.mark.parametrize("name", ["exclude", "allow", "blended"])
@pytest.mark.parametrize("rows", [None, 3])
def test_leave_one_out_equals_a_loop_of_single_calls_to_the_bit(runtimes, monkeypatch, name, rows):
    runtime, compared = runtimes[name], 0
    if rows:
        monkeypatch.setattr(explanation, "BATCH_SCORES", rows * ITEMS)
    for history in drawn(1, 40):
        served = runtime.serve([history], 4)
        explained = explain(runtime, history, 4, reasons=LENGTH)
        assert [item.code for item in explained] == [code for code in served.codes[0].tolist() if code]
        assert [item.score for item in explained] == served.scores[0][: len(explained)].tolist()
        for item in (item for item in explained if item.basis == "events"):
            drops = naive_drops(runtime, history, item.code)
            ranked = sorted(((-drop, -place) for place, drop in drops.items() if drop > 0))
            assert [(-each.drop, -each.position) for each in item.reasons] == ranked
            assert [each.code for each in item.reasons] == [history[each.position] for each in item.reasons]
            assert item.drops == pytest.approx(sum(drop for drop in drops.values() if drop > 0))
            compared += len(ranked)
    assert compared > 300


@pytest.mark.parametrize("name", ["exclude", "allow"])
def test_without_its_first_reason_an_item_scores_lower_and_more_so_than_without_another(runtimes, name):
    runtime, rng, falls, others = runtimes[name], np.random.default_rng(2), [], []
    histories, _ = chains()
    for user in range(USERS):
        history = histories.until(user, EVENTS)[-LENGTH:]
        (item,) = explain(runtime, history, 1)
        if name == "exclude" and len(set(history.tolist())) < LENGTH:
            continue
        first = item.reasons[0].position
        other = rng.choice([place for place in range(LENGTH) if place != first])
        kept = runtime.scores([history, np.delete(history, first), np.delete(history, other)])[:, item.code - 1]
        falls.append(kept[0] - kept[1])
        others.append(kept[0] - kept[2])
    assert len(falls) > 20
    assert min(falls) > 0
    assert all(fall >= other for fall, other in zip(falls, others, strict=True))
    assert np.mean(falls) > 3 * max(np.mean(others), 0)


def test_the_reason_is_the_event_that_really_leads_to_the_item(runtimes):
    histories, _ = chains()
    right = []
    for user in range(USERS):
        history = histories.until(user, EVENTS)
        (item,) = explain(runtimes["allow"], history, 1)
        if item.code == history[-1] % ITEMS + 1:  # the chain goes on
            right.append(item.reasons[0].position == EVENTS - 1)
    assert len(right) > 120
    assert np.mean(right) > 0.9


def test_an_older_event_moves_up_when_one_is_left_out(runtimes):
    history = codes(*range(1, 13))
    for item in explain(runtimes["allow"], history, 3, reasons=20):
        assert {reason.position for reason in item.reasons} <= set(range(4, 12)), "the newest eight are read"
        for reason in item.reasons:
            short = np.delete(history[-LENGTH:], reason.position - 4)  # what it would be if none moved up
            scores = runtimes["allow"].scores([history, np.delete(history, reason.position), short])[:, item.code - 1]
            assert reason.drop == scores[0] - scores[1] != scores[0] - scores[2]


def hand_set(folder: Path) -> Runtime:
    """Scores by neighbours alone: items 1 and 2 speak alike for item 4, item 3 less; nobody speaks for another."""
    near = csr_array((np.float32([0.5, 0.5, 0.1]), ([0, 1, 2], [3, 3, 3])), shape=(ITEMS, ITEMS))
    student = Student.untrained(DecoderShape.of(ITEMS, 16, 1, LENGTH), 0.0, seed=0).eval()
    export(student, publication("exclude", Opinion(Neighbourhood(near, LENGTH), 1.0)), 8, folder)
    return Runtime.open(folder)


def test_equal_drops_go_to_the_newer_event_and_an_item_nobody_speaks_for_has_no_reason(tmp_path):
    first, second = explain(hand_set(tmp_path), codes(1, 9, 3, 2), 2)
    assert (first.code, [reason.position for reason in first.reasons]) == (4, [3, 0, 2])
    drops = [np.log(111) - np.log(61), np.log(111) - np.log(61), np.log(111) - np.log(101)]
    assert [reason.drop for reason in first.reasons] == pytest.approx(drops, rel=2**-8)  # scales have sixteen bits
    assert [first.share(reason) for reason in first.reasons] == pytest.approx(
        np.array(drops) / np.sum(drops), rel=2**-8
    )
    assert second == Explained(5, 0.0, "events", (), 0.0)
    assert len(explain(hand_set(tmp_path), codes(1, 9, 3, 2), 1, reasons=1)[0].reasons) == 1


@pytest.mark.parametrize("history", [codes(), codes(0, 99)])
def test_a_history_without_a_known_item_is_answered_by_popularity_and_has_no_reasons(runtimes, history):
    explained = explain(runtimes["exclude"], history, 2)
    assert explained == (Explained(1, 24.0, "popularity", ()), Explained(2, 23.0, "popularity", ()))


@pytest.mark.parametrize("history", [codes(7), codes(99, 7, 0), codes(99, 7, 7)])
def test_the_only_known_item_is_the_whole_history_and_has_no_drop(runtimes, history):
    explained = explain(runtimes["exclude"], history, 3)
    assert {item.basis for item in explained} == {"history"}
    place = history.tolist().index(7)
    assert [item.reasons for item in explained] == [(Reason(7, place, None),)] * 3
    assert explained[0].share(explained[0].reasons[0]) is None


def test_a_model_that_reads_repeats_reads_two_events_of_one_item(runtimes):
    assert {item.basis for item in explain(runtimes["allow"], codes(7, 7), 3)} == {"events"}


class Counting(Runtime):
    """Counts how many histories are asked at once."""

    most = 0

    def scores(self, histories):
        self.most = max(self.most, len(histories))
        return super().scores(histories)


def test_so_many_scores_are_held_at_once_and_no_more(folders, monkeypatch):
    runtime = Counting.open(folders["allow"])
    monkeypatch.setattr(explanation, "BATCH_SCORES", 2 * ITEMS + 1)
    explain(runtime, codes(*range(1, 9)), 3)
    assert runtime.most == 2
    monkeypatch.setattr(explanation, "BATCH_SCORES", 1)
    assert explain(runtime, codes(*range(1, 9)), 3) == explain(Runtime.open(folders["allow"]), codes(*range(1, 9)), 3)


def test_ids_are_named_as_the_caller_names_them(runtimes):
    named = reasons_by_id(runtimes["allow"], ["item-3", "?", "item-5"], 2)
    explained = explain(runtimes["allow"], codes(3, 5), 2)
    assert named == [[{"item_id": f"item-{r.code}", "drop": r.drop} for r in item.reasons] for item in explained]
    assert any(named)


def test_everything_may_have_been_seen(runtimes):
    assert explain(runtimes["exclude"], np.arange(1, ITEMS + 1, dtype=np.int32), 5) == ()


def test_explaining_needs_no_torch(folders):
    program = """
import json, sys
from pathlib import Path
from recsys.explanation import reasons_by_id
from recsys.runtime import Runtime
named = reasons_by_id(Runtime.open(Path(sys.argv[1])), ["item-4", "item-6"], 1)
print(json.dumps([len(named), [name for name in ("torch", "pandas", "scipy", "mlflow") if name in sys.modules]]))
"""
    command = [sys.executable, "-c", program, str(folders["exclude"])]
    assert json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) == [1, []]
