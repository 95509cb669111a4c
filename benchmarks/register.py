"""A compare-and-set register, and whether a history of calls is one that it can have had (Wing and Gong 1993).

The register holds the values it was given, the newest last, each at most once: to give it a value that it holds is to
ask again, and harmless. A history is linearizable if every call can be put at one moment between its beginning and its
end so that the register, asked in that order, answers what was answered.

A call that changes nothing may be put as early as it fits: whatever follows is the same. Every value names the one it
expected before it, so that calls which change something rarely compete, and the search seldom has to turn back.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

EMPTY = ""
"""The value of a register that was never given one."""

Held = tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One call of somebody, in nanoseconds of a clock that all share. `ended`: math.inf when no answer was seen."""

    who: str
    began: float
    ended: float

    def fits(self, held: Held) -> bool:
        """Whether a register that holds these values answers so, and holds the same afterwards."""
        raise NotImplementedError

    def changes(self, held: Held) -> Held | None:
        """What a register holds after answering so; None where it answers otherwise, or nothing would change."""
        return None


@dataclass(frozen=True)
class Read(Call):
    """Somebody read the newest value."""

    seen: str

    def fits(self, held: Held) -> bool:
        return self.seen == newest(held)


@dataclass(frozen=True)
class Swap(Call):
    """Somebody gave a value if `expected` was still the newest. `won`: None when no answer was seen."""

    expected: str
    value: str
    won: bool | None

    def fits(self, held: Held) -> bool:
        there = self.value in held
        return there if self.won else self.won is False and not there and newest(held) != self.expected

    def changes(self, held: Held) -> Held | None:
        free = self.won is not False and self.value not in held and newest(held) == self.expected
        return (*held, self.value) if free else None


@dataclass(frozen=True)
class Found:
    """`held`: the values in the order that explains every call; None when there is no such order, and `why` says so."""

    held: Held | None
    why: str = ""


class _Place(NamedTuple):
    """How far an order has come: which calls are in it, and what the register holds then."""

    done: int  # a bit a call
    first: int  # all calls before this one are done
    held: Held


def newest(held: Held) -> str:
    """The value that a read sees."""
    return held[-1] if held else EMPTY


def linearized(calls: Sequence[Call]) -> Found:
    """An order of all answered calls, in which those without an answer may have taken effect or not."""
    calls = sorted(calls, key=lambda call: call.began)
    waiting, seen, furthest = [_Place(0, 0, ())], set(), _Place(0, 0, ())
    while waiting:
        place = _settle(calls, waiting.pop())
        if place.done.bit_count() > furthest.done.bit_count():
            furthest = place
        choices = list(_open(calls, place))
        if all(calls[number].ended == math.inf for number in choices):
            return Found(place.held)
        if place in seen:
            continue
        seen.add(place)
        for number in choices:
            held = calls[number].changes(place.held)
            if held is not None:
                waiting.append(_Place(place.done | 1 << number, place.first, held))
    stuck = min((calls[number] for number in _open(calls, furthest)), key=lambda call: call.ended)
    return Found(None, f"nothing explains {stuck}, after {len(furthest.held)} values, the newest {furthest.held[-1:]}")


def _settle(calls: Sequence[Call], place: _Place) -> _Place:
    """With every call put that may be next and changes nothing."""
    done, first, held = place
    fitting = True
    while fitting:
        fitting = False
        for number in _open(calls, _Place(done, first, held)):
            if calls[number].fits(held):
                done, fitting = done | 1 << number, True
        while first < len(calls) and done >> first & 1:
            first += 1
    return _Place(done, first, held)


def _open(calls: Sequence[Call], place: _Place) -> Iterator[int]:
    """Calls that may be next: none that is still out had ended when they began."""
    horizon = math.inf
    for number in range(place.first, len(calls)):
        if calls[number].began > horizon:
            return
        if not place.done >> number & 1:
            horizon = min(horizon, calls[number].ended)
            yield number
