"""The checker of histories: a true history passes, and each planted lie is caught."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.register import Call, Read, Swap, linearized, newest


def swap(began, ended, expected, value, won=True):
    return Swap("s", began, ended, expected, value, won)


def read(began, ended, seen):
    return Read("r", began, ended, seen)


HONEST = [
    swap(0, 2, "", "a"),
    read(1, 3, "a"),
    swap(4, 9, "a", "b"),
    swap(5, 9, "a", "c", False),
    read(4, 6, "a"),
    read(6, 8, "b"),
    swap(10, 11, "a", "b"),  # sent again
    swap(12, math.inf, "b", "d", None),  # killed, and it took effect
    swap(12, math.inf, "b", "e", None),  # killed, and it did not
    read(14, 15, "d"),
]


def test_a_true_history_is_explained():
    assert linearized(HONEST).held == ("a", "b", "d")
    assert linearized([]).held == ()


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        ([swap(0, 1, "", "a"), swap(0, 1, "", "b")], "value='"),  # two winners over one champion
        ([swap(0, 1, "", "a"), swap(2, 3, "", "b")], "value='b'"),
        ([swap(0, 1, "", "a"), swap(2, 3, "", "b", False), read(4, 5, "b")], "seen='b'"),  # told lost, and won
        ([swap(0, 1, "", "a"), read(2, 3, "")], "seen=''"),  # a stale read
        ([swap(0, 1, "", "a"), swap(2, 3, "a", "b"), read(4, 5, "b"), read(6, 7, "a")], "seen='a'"),  # back in time
        ([swap(0, 1, "", "a"), swap(2, 3, "a", "b", False)], "value='b'"),  # lost, though nobody was in the way
        ([swap(0, 1, "", "a"), swap(2, 3, "nothing", "b")], "value='b'"),  # after a value that never was
        ([swap(5, 6, "", "a"), swap(1, 2, "a", "b")], "value='b'"),  # before the one it replaced
        ([swap(0, math.inf, "", "a", None), read(1, 2, "b")], "seen='b'"),  # out of nowhere
        ([swap(3, math.inf, "", "a", None), read(1, 2, "a")], "seen='a'"),  # before it was asked
        ([*HONEST, read(16, 17, "e")], "seen='e'"),  # both killed calls cannot have won
    ],
)
def test_a_planted_lie_is_caught_and_named(lie, named):
    found = linearized(lie)
    assert found.held is None
    assert named in found.why


@st.composite
def histories(draw) -> list[Call]:
    """Up to six calls with any answers at all, true or not."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    values, calls = ["", "a", "b", "c"], []
    for number in range(rng.randint(1, 6)):
        began = rng.randint(0, 8)
        ended = began + rng.randint(0, 6)
        if rng.random() < 0.4:
            calls.append(Read(str(number), began, ended, rng.choice(values)))
        else:
            won = rng.choice([True, True, False, None])
            until = math.inf if won is None else ended
            calls.append(Swap(str(number), began, until, rng.choice(values), rng.choice(values[1:]), won))
    return calls


def by_every_order(calls: list[Call]) -> bool:
    """The definition, by trying all orders of all answered calls and of any of the others."""
    lost = [call for call in calls if call.ended == math.inf]
    for count in range(len(lost) + 1):
        for some in itertools.combinations(lost, count):
            chosen = [call for call in calls if call.ended != math.inf] + list(some)
            if any(_possible(order) for order in itertools.permutations(chosen)):
                return True
    return False


def _possible(order: tuple[Call, ...]) -> bool:
    held: tuple[str, ...] = ()
    for place, call in enumerate(order):
        if any(later.ended < call.began for later in order[place + 1 :]):
            return False
        if isinstance(call, Read):
            if call.seen != newest(held):
                return False
            continue
        assert isinstance(call, Swap)
        won = call.value in held
        if not won and newest(held) == call.expected:
            held, won = (*held, call.value), True
        if call.won not in (None, won):
            return False
    return True


@given(calls=histories())
@settings(max_examples=400, deadline=None)
def test_the_search_agrees_with_the_definition(calls):
    assert (linearized(calls).held is not None) == by_every_order(calls)


def test_a_long_history_is_read_in_one_go():
    draw, calls, now, last = random.Random(1), [], 0.0, ""
    for number in range(1000):
        value = f"v{number}"
        calls.append(swap(now, now + 5, last, value))
        calls += [swap(now + draw.random(), now + 9, last, f"lost {number} {n}", False) for n in range(7)]
        calls += [read(now + 5.5, now + 12, value)]
        now, last = now + 10, value
    assert len(linearized(calls).held) == 1000
