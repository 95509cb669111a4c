"""Served lists against what came later, computed by hand; no look-ahead; decay must be proven."""

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import MonitorConfig
from recsys.event_log import EventLog
from recsys.prequential import Aftermath, AtGate, ServedLists, decay_of, look_back
from recsys.split import DAY

SERVED_AT = 100 * DAY


def log_of(events: list[tuple[str, str, int]], as_of: int | None = None, repeats: str = "allow") -> EventLog:
    """Events as (user, item, seconds before or after the lists were made)."""
    events = sorted(events, key=lambda event: event[2])
    users = list(dict.fromkeys(user for user, _, _ in events))
    items = list(dict.fromkeys(item for _, item, _ in events))
    times = np.array([SERVED_AT + at for _, _, at in events])
    return EventLog(
        tokens=np.array(users, "S32"),
        item_ids=pa.array(items, pa.string()),
        categories=pa.nulls(len(items), pa.string()),
        users=np.array([users.index(user) for user, _, _ in events], np.int64),
        codes=np.array([items.index(item) + 1 for _, item, _ in events], np.int32),
        times=times,
        kinds=pa.nulls(len(events), pa.string()),
        as_of=int(times[-1]) + 1 if as_of is None else as_of,
        repeats=repeats,
    )


def lists(**served: list[str]) -> ServedLists:
    rows = [(user, item, rank) for user, items in served.items() for rank, item in enumerate(items, start=1)]
    tokens, item_ids, ranks = zip(*reversed(rows), strict=True)  # in any order
    return ServedLists.of(SERVED_AT, 7, pa.table({"token": tokens, "item_id": item_ids, "rank": ranks}))


PAST = [
    ("ann", "pen", -400), ("ann", "ink", -390), ("bob", "pen", -380), ("bob", "ink", -370), ("bob", "pad", -360),
    ("cat", "mug", -350), ("dan", "mug", -340), ("eve", "mug", -330),
]  # fmt: skip


def test_hits_by_hand():
    """ann gets pad, as served and as her neighbour bob has it; cat gets tea at rank 2, which no peer could know."""
    log = log_of([*PAST, ("ann", "pad", 0), ("cat", "tea", 10), ("cat", "pen", 11), ("dan", "pen", 12)])
    seen = look_back(lists(ann=["cup", "pad"], cat=["bowl", "tea"], bob=["mug"]), log, "exclude", 7)
    assert (seen.version, seen.served, seen.users, seen.unserved) == (7, 3, 2, 1), (
        "dan came and had been served nothing"
    )
    assert seen.hits["champion"].tolist() == [1, 1]
    assert seen.ndcg["champion"] == pytest.approx([1 / np.log2(3), (1 / np.log2(3)) / (1 + 1 / np.log2(3))])
    # popular: mug 3, pen 2, ink 2, pad 1. ann may not be shown pen and ink: mug, pad. cat not mug: pen, ink, pad.
    assert seen.hits["most_popular"].tolist() == [1, 1]
    assert seen.ndcg["most_popular"] == pytest.approx([1 / np.log2(3), 1 / (1 + 1 / np.log2(3))])
    # neighbours: pad is bob's, who has pen and ink, as ann; nobody who has mug has anything else, so cat gets by code
    assert seen.ndcg["neighbours"][0] == 1
    assert seen.hit_rate("champion") == 1
    assert seen.against("most_popular").value == 0


def test_events_of_before_never_count_and_those_of_the_moment_do():
    log = log_of([*PAST, ("ann", "pad", -1), ("bob", "mug", 0)])
    seen = look_back(lists(ann=["pad"], bob=["mug"]), log, "exclude", 7)
    assert seen.users == 1, "what ann did before is no answer to her list"
    assert seen.hits["champion"].tolist() == [1]


def test_what_comes_later_never_trains_the_peers():
    """tea floods in after the lists were made; with it in their past the peers would recommend it to everybody."""
    flood = [(f"user{n}", "tea", 100 + n) for n in range(50)]
    answer = [("ann", "tea", 200), ("bob", "tea", 201)]
    served = lists(ann=["cup"], bob=["cup"])
    seen = look_back(served, log_of([*PAST, *flood, *answer]), "exclude", 7)
    assert seen.hits["most_popular"].tolist() == [0, 0]
    assert seen.hits["neighbours"].tolist() == [0, 0]
    alone = look_back(served, log_of([*PAST, ("ann", "pad", 200), ("bob", "mug", 201)]), "exclude", 7)
    crowded = look_back(served, log_of([*PAST, *flood, ("ann", "pad", 200), ("bob", "mug", 201)]), "exclude", 7)
    for peer in ("most_popular", "neighbours"):
        np.testing.assert_array_equal(alone.ndcg[peer], crowded.ndcg[peer])


def test_the_window_ends_after_its_days_and_at_as_of():
    events = [*PAST, ("ann", "pad", 7 * DAY - 1), ("bob", "mug", 7 * DAY)]
    served = lists(ann=["pad"], bob=["mug"])
    seen = look_back(served, log_of(events), "exclude", 7)
    assert (seen.users, seen.until) == (1, SERVED_AT + 7 * DAY)
    assert look_back(served, log_of(events), "exclude", 8).users == 2
    early = log_of(events).until(SERVED_AT + 100)
    assert look_back(served, early, "exclude", 7).users == 0


def test_repeats_count_where_the_model_may_repeat():
    log = log_of([*PAST, ("ann", "pen", 5), ("ann", "pen", 6)])
    assert look_back(lists(ann=["pen"]), log, "exclude", 7).users == 0, "she had it before"
    seen = look_back(lists(ann=["pen"]), log, "allow", 7)
    assert seen.hits["champion"].tolist() == [1]
    assert seen.hits["most_popular"].tolist() == [1], "the peers may repeat, too"
    with pytest.raises(ValueError, match="repeated items"):
        look_back(lists(ann=["pen"]), log_of(PAST, repeats="exclude"), "allow", 7)


def test_only_ten_of_a_list_are_looked_at():
    served = lists(ann=[*(f"other-{n}" for n in range(10)), "pad"])
    assert len(served.item_ids[0]) == 10
    assert look_back(served, log_of([*PAST, ("ann", "pad", 1)]), "exclude", 7).hits["champion"].tolist() == [0]


def test_a_user_and_an_item_without_a_past():
    log = log_of([*PAST, ("zoe", "tea", 1)])
    seen = look_back(lists(zoe=["tea"]), log, "exclude", 7)
    assert seen.hits["champion"].tolist() == [1]
    assert seen.hits["neighbours"].tolist() == [0]
    nothing = log_of([("zoe", "tea", 1)])
    assert look_back(lists(zoe=["tea"]), nothing, "exclude", 7).hits["most_popular"].tolist() == [0]


# --- decay --------------------------------------------------------------------------------------------------------


def aftermath(champion: np.ndarray, neighbours: np.ndarray) -> Aftermath:
    hits = {"champion": champion, "neighbours": neighbours, "most_popular": neighbours}
    return Aftermath(7, SERVED_AT, SERVED_AT + DAY, len(champion), 0, hits, hits)


def hits(rate: float, users: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(users) < rate).astype(float)


GATE = AtGate(hits(0.5, 2000, 1), hits(0.4, 2000, 2))
CONFIG = MonitorConfig()


def test_a_champion_that_fell_to_half_has_decayed():
    decay = decay_of(aftermath(hits(0.25, 2000, 3), hits(0.4, 2000, 4)), GATE, CONFIG)
    assert decay.decayed
    assert decay.change.value == pytest.approx(-0.5, abs=0.05)
    assert decay.change.low < decay.change.value < decay.change.high < -0.2
    assert "a loss of more than 20% is proven" in decay.sentence


def test_a_season_that_is_harder_for_everybody_is_no_decay():
    decay = decay_of(aftermath(hits(0.25, 2000, 3), hits(0.2, 2000, 4)), GATE, CONFIG)
    assert not decay.decayed
    assert decay.change.value == pytest.approx(0, abs=0.1)


def test_the_same_loss_on_few_users_is_not_proven():
    decay = decay_of(aftermath(hits(0.25, 60, 3), hits(0.4, 60, 4)), GATE, CONFIG)
    assert not decay.decayed
    assert "is not proven" in decay.sentence


def test_a_small_gate_proves_nothing_either():
    """The noise of what it is compared with counts as well."""
    now = aftermath(hits(0.33, 5000, 3), hits(0.4, 5000, 4))
    assert decay_of(now, GATE, CONFIG).decayed
    assert not decay_of(now, AtGate(hits(0.5, 60, 1), hits(0.4, 60, 2)), CONFIG).decayed


def test_without_a_loss_hardly_any_look_alarms():
    """At a true loss of exactly `decay` one in twenty looks alarms, at none practically never."""
    at_the_edge = without = 0
    for seed in range(40):
        gate = AtGate(hits(0.5, 800, 1000 + seed), hits(0.4, 800, 2000 + seed))
        at_the_edge += decay_of(aftermath(hits(0.4, 800, seed), hits(0.4, 800, 500 + seed)), gate, CONFIG).decayed
        without += decay_of(aftermath(hits(0.5, 800, seed), hits(0.4, 800, 500 + seed)), gate, CONFIG).decayed
    assert at_the_edge <= 6
    assert without == 0


@pytest.mark.parametrize(
    ("now", "gate", "said"),
    [
        (aftermath(np.ones(49), np.ones(49)), GATE, "49 of the users served have new events, 50 are needed"),
        (aftermath(np.ones(50), np.ones(50)), None, "what the gate measured is not in this store"),
        (aftermath(np.ones(50), np.zeros(50)), GATE, "nobody was hit"),
        (aftermath(np.ones(50), np.ones(50)), AtGate(np.zeros(9), np.ones(9)), "nobody was hit"),
    ],
)
def test_where_nothing_can_be_concluded_it_says_so(now, gate, said):
    decay = decay_of(now, gate, CONFIG)
    assert not decay.decayed
    assert decay.change is None
    assert said in decay.sentence
    assert decay.sentence.endswith("nothing is concluded")
