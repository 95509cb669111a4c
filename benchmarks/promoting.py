"""One of several promoters, in its own process, and what it writes down: every call of the ledger, every move it asked for.

A line is written before a call and one after it, at once: what a killed process had under way is known to have begun.
The clock is the machine's monotonic one, the same for all.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from benchmarks.register import EMPTY, Call, Read, Swap
from recsys.errors import RecsysError, RegistryError
from tasks.adapters.ledger import Chain, Entry, Ledger, Outcome
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.change_champion import Move, change_champion
from tasks.settle_alias import settle_alias
from tasks.workshop import Workshop

REFUSALS = ("the champion changed from", "there is no champion before", "has never been the champion", "load test")
"""What a promoter may be told instead of "promoted". Anything else is a failure."""


@dataclass(frozen=True)
class Turn:
    """A move that was asked for. `told`: promoted, already, refused, failed, or empty when the promoter was killed."""

    reason: str  # names the promoter and its turn
    told: str = ""
    sentence: str = ""
    version: int = 0


class Diary:
    """The lines of one process."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._count = file, 0

    def note(self, **line: Any) -> None:
        """One line, on the disk before the next thing happens."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def began(self, **line: Any) -> int:
        """The line before a call; gives its number."""
        self._count += 1
        self.note(call=self._count, began=time.monotonic_ns(), **line)
        return self._count

    def ended(self, call: int, **line: Any) -> None:
        """The line after it."""
        self.note(call=call, ended=time.monotonic_ns(), **line)


class ToldLedger(Ledger):
    """The ledger, each call of it in a diary."""

    diary: Diary

    def chain(self) -> Chain:
        call = self.diary.began(kind="read")
        chain = super().chain()
        self.diary.ended(call, seen=_newest(chain), broken=chain.broken)
        return chain

    def append(self, entry: Entry) -> Outcome:
        call = self.diary.began(kind="swap", expected=entry.expected, value=entry.intent)
        outcome = super().append(entry)
        self.diary.ended(call, won=outcome.won)
        return outcome


def promoting(
    settings: Settings,
    environment: Mapping[str, str],
    name: str,
    versions: Sequence[int],
    promotions: int,
    folder: Path,
) -> None:
    """Promotes, rolls back and looks until `promotions` moves of any promoter have won.

    `environment` is that of who asks: the process that this one is forked from began before it was set.
    """
    os.environ.update(environment)
    with (folder / f"{name}.jsonl").open("w") as file:
        diary, draw = Diary(file), random.Random(name)
        workshop = watched(settings.export(), diary, bad=versions[-1])
        turn = 0
        while sum(record.op != "manual" for record in workshop.ledger.chain().records) < promotions:
            turn += 1
            op = draw.choices(["promote", "rollback", "look"], [6, 3, 1])[0]
            to = draw.choice(versions) if op == "promote" or draw.random() < 0.5 else None
            asked = Turn(f"{name} turn {turn}")
            diary.note(turn=asked.reason)
            told = _look(workshop, asked) if op == "look" else _asked(workshop, asked, op, to)
            diary.note(turn=told.reason, told=told.told, sentence=told.sentence, version=told.version)


def watched(settings: Settings, diary: Diary, bad: int) -> Workshop:
    """The workshop of a home, its ledger with a diary, and the load test replaced: version `bad` fails it."""

    def load_check(model: str, number: int, runtime: str = "") -> None:
        if number == bad:
            raise RegistryError(f"{model} version {number} fails the load test")

    workshop = Workshop.anew(settings)
    workshop.registry.load_check = load_check  # type: ignore[method-assign]
    ledger = ToldLedger(settings, workshop.registry)
    ledger.diary = diary
    return replace(workshop, ledger=ledger)


def _look(workshop: Workshop, asked: Turn) -> Turn:
    return _told(asked, lambda: replace(asked, told="looked", sentence=str(settle_alias(workshop) or "")))


def _asked(workshop: Workshop, asked: Turn, op: Any, to: int | None) -> Turn:
    def move() -> Turn:
        moved = change_champion(
            workshop, Move(op=op, to=to, actor="promoter", reason=asked.reason, at=datetime.now(UTC))
        )
        told = "promoted" if moved.changed else "already"
        return replace(asked, told=told, sentence=moved.sentence, version=moved.version)

    return _told(asked, move)


def _told(asked: Turn, act: Callable[[], Turn]) -> Turn:
    try:
        return act()
    except RecsysError as error:
        refused = any(words in str(error) for words in REFUSALS)
        return replace(asked, told="refused" if refused else "failed", sentence=str(error))
    except Exception as error:  # of MLflow, its database, the network: a defect of ours that it came so far
        return replace(asked, told="failed", sentence=f"{type(error).__name__}: {error}")


# --- read back ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diaries:
    """What all promoters wrote. Appended values are intents; `expected` is the intent of the record that was expected."""

    calls: tuple[Call, ...]
    turns: tuple[Turn, ...]
    broken: tuple[str, ...]  # what a ledger was said to contradict, though nobody harmed it


def read_back(folder: Path, intent_of: Mapping[int, str]) -> Diaries:
    """`intent_of` gives the intents of the valid records."""
    calls: list[Call] = []
    turns: dict[str, Turn] = {}
    broken = []
    for path in sorted(folder.glob("*.jsonl")):
        under_way: dict[int, dict[str, Any]] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            if "turn" in line:
                reason = line.pop("turn")
                turns[reason] = Turn(reason, **line)
            elif "began" in line:
                under_way[line["call"]] = line
            else:
                broken += [line["broken"]] if line.get("broken") else []
                calls += _call(path.stem, {**under_way.pop(line["call"]), **line}, intent_of)
        for line in under_way.values():
            calls += _call(path.stem, line, intent_of)
    return Diaries(tuple(calls), tuple(turns.values()), tuple(broken))


def has_moved(folder: Path, name: str) -> bool:
    """Whether a promoter has come to the end of a turn."""
    path = folder / f"{name}.jsonl"
    return path.exists() and '"told"' in path.read_text()


def _call(who: str, line: Mapping[str, Any], intent_of: Mapping[int, str]) -> list[Call]:
    """A read without an answer says nothing, and is none."""
    ended = line.get("ended", math.inf)
    if line["kind"] == "swap":
        expected = intent_of.get(line["expected"], f"record {line['expected']}") if line["expected"] else EMPTY
        return [Swap(who, line["began"], ended, expected, line["value"], line.get("won"))]
    return [Read(who, line["began"], ended, line["seen"])] if "seen" in line else []


def _newest(chain: Chain) -> str:
    return chain.records[-1].intent if chain.records else EMPTY


def aliases_of(workshop: Workshop) -> Mapping[str, int]:
    """Champion and previous, as MLflow shows them."""
    shown = workshop.registry.aliases(STUDENT)
    return {alias: shown[alias] for alias in ("champion", "previous") if alias in shown}
