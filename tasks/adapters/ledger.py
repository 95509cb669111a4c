"""The promotion ledger: who made which version the champion, after which one, and on what evidence.

MLflow's aliases have neither history nor compare-and-set, so promotion is a record in an append-only chain. A record
is a version of the registered model <model>-ledger, whose numbers the server hands out one by one. It is valid only
if the record it expected is still the last valid one; of two that raced one wins and the other is told. The aliases
champion and previous are set after the chain and mended from it. Who sets them says so in a tag of the record before, and
takes it away when both have been read back: an alias on the version of an older record that is tagged was set late, by a
slow host or a killed one, and not by a person. Each record is mirrored in the home.
"""

import contextlib
import fcntl
import hashlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from recsys import wording
from recsys.errors import RegistryError
from tasks.adapters.chain import Chain, Entry, Op, Record, fold
from tasks.adapters.disk import put_if_absent
from tasks.adapters.registry import INTENT, STUDENT, Registry, Version
from tasks.adapters.settings import Settings

__all__ = ["Chain", "Drift", "Entry", "Ledger", "Op", "Outcome", "Record", "Settled", "fold"]

_RECORD = "recsys.record"
_APPLIED = "recsys.applied"
_MOVING = "recsys.moving."
"""Tag of a record, a host's own: since when (seconds UTC) it has been setting the aliases by this record."""
_MOVING_SECONDS = 300  # after which a host that never said it was done is taken for dead, and for late no longer
_READ_BACK = 20  # times the aliases are set again when somebody else moves them meanwhile
_LONGEST_REASON = 500  # characters; MLflow cuts a tag at 8,000 without a word, and a cut record is a broken chain
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Outcome:
    """Whether an entry was recorded as valid, and in words."""

    won: bool
    sentence: str
    chain: Chain


@dataclass(frozen=True)
class Drift:
    """The alias champion stands elsewhere than the chain says; None: on nothing."""

    alias: int | None
    champion: int | None
    record: int  # the last valid one when this was seen
    gone: bool  # the champion's version was deleted in MLflow, and the alias with it


@dataclass(frozen=True)
class Settled:
    """What became of a drift: the hand-moved alias was adopted as a record or put back, or its version is gone."""

    drift: Drift
    outcome: Literal["adopted", "put back", "gone"]
    sentence: str

    @property
    def adopted(self) -> bool:
        """Whether the hand-moved alias stays."""
        return self.outcome == "adopted"


class Ledger:
    """The ledger of one registered model."""

    def __init__(self, settings: Settings, registry: Registry, model: str = STUDENT) -> None:
        self.settings, self.registry, self.model = settings, registry, model
        self.name = f"{model}-ledger"
        self._mark = _MOVING + _place(f"{socket.gethostname()} {settings.home}")

    def chain(self) -> Chain:
        """The valid records, compared with their mirror."""
        versions, contradiction = self._read()
        while contradiction:  # unless another process wrote a record, and its copy, after they were read
            again, contradiction = self._read()
            if len(again) == len(versions):
                break
            versions = again
        chain = fold(_texts(versions))
        tags = {version.number: version.tags for version in versions}
        applied = not chain.records or _APPLIED in tags[chain.last]
        moving = frozenset(record.to for record in chain.records if _is_moving(tags[record.number]))
        return Chain(chain.records, chain.broken or contradiction, applied, moving)

    def append(self, entry: Entry) -> Outcome:
        """Records an entry and sets the aliases, unless the champion changed meanwhile. Sending it again is harmless.

        RegistryError when there is no version `to` or the ledger is broken.
        """
        before = self.chain().require_intact()
        version = self.registry.version(self.model, entry.to)
        if not _holds(before, entry) and before.last == entry.expected:
            self._write(entry, before, version)
        chain = self.chain().require_intact()
        if not _holds(chain, entry):
            return Outcome(False, _overtaken(entry, chain), chain)
        self.mend()
        return Outcome(True, f"{self.model} version {entry.to} is the champion", chain)

    def mend(self) -> None:
        """Sets the aliases champion and previous to what the chain says, and reads them back until both agree."""
        with self._alone():
            self._mend(self.chain())

    def drift(self) -> Drift | None:
        """Where the alias champion was moved by hand. One that another promotion has not set yet, or too late, is set here."""
        with self._alone():
            while True:
                # in this order: whoever set the alias that is seen had said so before, and if not any more, it moved on
                alias = self._alias()
                chain = self.chain().require_intact()
                if chain.applied and alias == chain.champion:
                    return None
                if not chain.applied or alias in chain.moving:
                    self._mend(chain)
                    return None
                if self._alias() == alias and self.chain() == chain:  # nobody has moved on and come back meanwhile
                    gone = alias is None and chain.champion is not None and chain.champion not in self._numbers()
                    return Drift(alias, chain.champion, chain.last, gone)

    def settle(self, load_check: Callable[[int], None]) -> Settled | None:
        """Adopts a hand-moved alias as a manual record if `load_check(version)` passes, else puts it back.

        A deleted champion cannot be put back: it is told, each time, with the way to have it again.
        """
        drift = self.drift()
        if drift is None:
            return None
        if drift.gone:
            return Settled(drift, "gone", self.gone(drift.champion))
        moved = f"the alias champion was moved by hand from {drift.champion or 'nothing'} to {drift.alias or 'nothing'}"
        refusal = "an alias cannot be taken away"
        if drift.alias is not None:
            try:
                load_check(drift.alias)
            except RegistryError as error:
                refusal = str(error)
            else:
                passed = f"{moved}; it passed the load test and no statistical gate"
                outcome = self.append(Entry("manual", drift.alias, drift.record, "", "MLflow", passed))
                if outcome.won:
                    return Settled(
                        drift, "adopted", f"{moved}: adopted, it passed the load test and no statistical gate"
                    )
                refusal = outcome.sentence
        self.mend()
        return Settled(drift, "put back", f"{moved}: put back, {refusal}")

    def gone(self, number: int | None) -> str:
        """What is said of a champion whose version was deleted."""
        return (
            f"version {number} of {self.model}, the champion, was deleted in MLflow. Its files are in the store: "
            "recsys fsck --repair registers them again; recsys rollback goes to the champion before"
        )

    # -- inside

    def _read(self) -> tuple[list[Version], str]:
        """Every record, valid or not, and what the mirror says against them."""
        versions = self.registry.all_versions(self.name)
        return versions, self._mirror(_texts(versions))

    def _write(self, entry: Entry, before: Chain, version: Version) -> None:
        record = Record(
            number=0,
            intent=entry.intent,
            op=entry.op,
            to=entry.to,
            came_from=before.champion,
            expected=entry.expected,
            evidence=entry.evidence,
            digest=version.digest,
            actor=wording.plain(entry.actor, _LONGEST_NAME),
            reason=wording.plain(entry.reason, _LONGEST_REASON),
            previous=before.records[-1].seal if before.records else "",
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if not before.records:
            self.registry.require(self.name)
        tags = {INTENT: entry.intent, _RECORD: record.text(), "op": entry.op, "to": str(entry.to)}
        self.registry.create(self.name, f"models:/{self.model}/{entry.to}", tags, record.sentence)

    def _mend(self, chain: Chain) -> None:
        """`chain` was read while nobody else of this home moves aliases; what is believed in the end was read after the aliases were set."""
        marked: list[int] = []
        for _ in range(_READ_BACK):
            wrong = self._wrong_aliases(chain.require_intact())
            if not wrong and chain.applied:
                for record in marked:
                    self.registry.drop_tag(self.name, record, self._mark)
                return
            if chain.last and chain.last not in marked:
                self.registry.set_tags(self.name, chain.last, {self._mark: str(int(time.time()))})
                marked.append(chain.last)
            for alias, number in wrong.items():
                self.registry.set_alias(self.model, alias, number)
            if not chain.applied:
                self.registry.set_tags(self.name, chain.last, {_APPLIED: "true"})
            chain = self.chain()
        raise RegistryError(
            f"the aliases of {self.model} do not stay where they are put",
            where=self.registry.client.uri,
            mend="Something else moves them all the time; stop it, then run recsys status.",
        )

    def _wrong_aliases(self, chain: Chain) -> Mapping[str, int | None]:
        """Where an alias must go that stands elsewhere than the chain says; nowhere, if its version was deleted."""
        aliases = self.registry.aliases(self.model)
        wanted = {"champion": chain.champion, "previous": chain.previous}
        if all(aliases.get(alias) == number for alias, number in wanted.items()):
            return {}
        there = self._numbers()
        wanted = {alias: number if number in there else None for alias, number in wanted.items()}
        return {alias: number for alias, number in wanted.items() if aliases.get(alias) != number}

    def _alias(self) -> int | None:
        return self.registry.aliases(self.model).get("champion")

    def _numbers(self) -> set[int]:
        return {version.number for version in self.registry.all_versions(self.model)}

    def _mirror(self, texts: Sequence[tuple[int, str]]) -> str:
        """Copies new records into the home and says what differs from the copies of old ones, if anything."""
        folder = self.settings.ledger / (self.name if self.settings.artifacts else _place(self.registry.client.uri))
        folder.mkdir(parents=True, exist_ok=True)
        for number, text in texts:
            path = folder / f"{number:06}.json"
            if not path.exists():
                with tempfile.NamedTemporaryFile(dir=self.settings.temp) as draft:
                    draft.write(text.encode())
                    draft.flush()
                    put_if_absent(Path(draft.name), path)
            elif path.read_bytes() != text.encode():
                return f"record {number} was changed after it was written, or its copy {path} was"
        if (folder / f"{len(texts) + 1:06}.json").exists():
            return f"record {len(texts) + 1} is missing"
        return ""

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this home at a time moves aliases, so that none takes another's for a person's."""
        with (self.settings.home / "run" / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _texts(versions: Sequence[Version]) -> list[tuple[int, str]]:
    return [(version.number, version.tags.get(_RECORD, "")) for version in versions]


def _is_moving(tags: Mapping[str, str]) -> bool:
    since = (value for name, value in tags.items() if name.startswith(_MOVING))
    return any(value.isdecimal() and time.time() - int(value) < _MOVING_SECONDS for value in since)


def _holds(chain: Chain, entry: Entry) -> bool:
    return any(record.intent == entry.intent for record in chain.records)


def _overtaken(entry: Entry, chain: Chain) -> str:
    then = next((r.to for r in chain.records if r.number == entry.expected), None)
    return f"the champion changed from {then or 'nothing'} to {chain.champion} meanwhile; evaluate against it again"


def _place(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
