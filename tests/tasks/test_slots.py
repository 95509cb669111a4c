"""Who works when nights were missed: as the policy says, and never nobody."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from tasks.slots import Slot, nights_missed, period, whose_turn

DAY = timedelta(days=1)
FIRST = datetime(2026, 11, 14, 2, tzinfo=UTC)
NOW = FIRST + timedelta(days=8, hours=7)


def late(count: int = 9) -> list[Slot]:
    """Slots of so many days, none begun."""
    return [Slot(run_id=str(day), run=f"nightly {day}", at=FIRST + day * DAY) for day in range(count)]


def played(policy: str, order: list[Slot], cancelled: frozenset[str] = frozenset()) -> dict[str, datetime]:
    """What each run that works may know, when a worker starts one run after the other; the cancelled never start."""
    slots = {slot.run_id: slot for slot in order}
    worked = {}
    for number, slot in enumerate(order):
        if slot.run_id in cancelled:
            continue
        now = NOW + timedelta(minutes=number)
        mine = replace(slots[slot.run_id], began=now)
        turn = whose_turn(policy, mine, [s for s in slots.values() if s.run_id != slot.run_id], now)
        slots[slot.run_id] = replace(mine, done=turn.works)
        if turn.works:
            worked[slot.run_id] = turn.until
    return worked


@pytest.mark.parametrize("order", [late(), late()[::-1], [late()[i] for i in (4, 8, 0, 1, 2, 3, 5, 6, 7)]])
def test_of_nine_missed_nights_one_works_and_knows_what_the_newest_may(order):
    assert list(played("latest", order).values()) == [late()[-1].at]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_it_works_also_when_the_server_cancels_all_but_the_first(order):
    slots = [late(3)[i] for i in order]
    gone = frozenset(slot.run_id for slot in slots[1:])
    assert list(played("latest", slots, gone).values()) == [late(3)[-1].at], "or the newest night would be lost"


def test_all_does_each_with_its_own_bound():
    assert list(played("all", late()).values()) == [slot.at for slot in late()]


def test_none_does_only_what_is_not_late():
    tonight = Slot("now", "nightly now", at=NOW - timedelta(minutes=5))
    assert played("none", [*late(8), tonight]) == {"now": tonight.at}
    alone = whose_turn("none", tonight, [], NOW)
    assert alone.works, "without a second slot nothing says what late is"


def test_a_night_in_time_works_with_its_own_bound_and_makes_up_for_nothing():
    done = [replace(slot, began=slot.at, done=True) for slot in late(8)]
    turn = whose_turn("latest", late()[-1], done, late()[-1].at + timedelta(seconds=20))
    assert (turn.works, turn.until, turn.made_up, turn.sentence) == (True, late()[-1].at, (), "")


def test_who_makes_up_says_for_how_many():
    turn = whose_turn("latest", late()[0], late()[1:], NOW)
    assert turn.made_up == tuple(slot.at for slot in late()[:-1])
    assert turn.sentence == "this night makes up for 8 missed nights since 2026-11-14 02:00"
    knew = replace(late()[0], began=late()[7].at, done=True)
    again = whose_turn("latest", late()[8], [knew, *late()[1:8]], NOW)
    assert again.made_up == (), "they were made up for by the first, which began after all of them"


def test_a_run_steps_aside_for_one_at_work_and_says_which():
    at_work = replace(late()[0], began=NOW, works=True)
    turn = whose_turn("latest", late()[3], [at_work], NOW + timedelta(minutes=1))
    assert not turn.works
    assert turn.sentence.startswith("nightly 0, begun 2026-11-22 09:00, is at work")


def test_one_that_runs_in_prefect_only_makes_up_for_nothing():
    dead = replace(late()[0], began=NOW, works=False)
    assert whose_turn("latest", late()[3], [dead], NOW).works, "its process was killed: it holds no lock"


def test_one_that_began_before_the_slot_does_not_know_enough():
    old = replace(late()[0], began=FIRST, done=True)
    assert whose_turn("latest", late()[1], [old], NOW).works


def test_slots_to_come_are_nobodys():
    tomorrow = Slot("t", "nightly t", at=NOW + DAY)
    assert whose_turn("latest", late()[-1], [tomorrow], NOW).until == late()[-1].at


def test_a_night_is_missed_when_the_next_is_due_and_a_while_has_passed():
    due = [slot.at for slot in late()]
    hours = timedelta(hours=2)
    assert nights_missed(None, due[:1], due[0] + hours, DAY, hours) == ()
    assert nights_missed(None, due[:1], due[0] + DAY + hours + hours, DAY, hours) == (due[0],)
    assert nights_missed(due[6], due, NOW, DAY, hours) == (due[7],), "the last is not late enough"
    assert nights_missed(due[8], due, NOW, DAY, hours) == ()
    assert nights_missed(due[6], due, NOW, None, hours) == (due[7], due[8])


def test_the_period_is_the_shortest_gap():
    assert period([FIRST, FIRST + DAY, FIRST + DAY + timedelta(hours=23)]) == timedelta(hours=23)
    assert period([FIRST]) is None
