"""The promotion ledger: who made which version the champion, after which one, and on what evidence.

MLflow's aliases have neither history nor compare-and-set, so promotion is a record in an append-only chain. A record
is a version of the registered model <model>-ledger, whose numbers the server hands out one by one. It is valid only
if the record it expected is still the last valid one; of two that raced one wins and the other is told. The aliases
champion and previous are set after the chain and mended from it. Each record is mirrored in the home.
"""

import contextlib
import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from recsys.errors import RegistryError
from tasks.adapters.disk import put_if_absent
from tasks.adapters.manifest import canonical
from tasks.adapters.registry import INTENT, STUDENT, Registry, Version
from tasks.adapters.settings import Settings

Op = Literal["promote", "rollback", "manual"]

_RECORD = "recsys.record"
_APPLIED = "recsys.applied"
_SETTLE_SECONDS = 1.0  # in which another host sets the alias of the record it has just written


@dataclass(frozen=True)
class Entry:
    """What is to be recorded: `to` becomes the champion if record `expected` (0: none) is still the last valid one."""

    op: Op
    to: int
    expected: int
    evidence: str  # digest of the verdict, empty where there is none
    actor: str
    reason: str

    @property
    def intent(self) -> str:
        """The same entry is recorded once, however often it is sent."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()


@dataclass(frozen=True)
class Record:
    """One line of the ledger. `digest` is of the files of version `to`, `previous` of the valid record before."""

    number: int
    intent: str
    op: Op
    to: int
    came_from: int | None  # the champion that `to` replaces
    expected: int
    evidence: str
    digest: str
    actor: str
    reason: str
    previous: str
    at: str  # ISO 8601, UTC

    @classmethod
    def read(cls, number: int, text: str) -> Self:
        """A record from its tag. ValueError, KeyError or TypeError when it is not one."""
        fields: dict[str, Any] = json.loads(text)
        return cls(number=number, came_from=fields.pop("from"), **fields)

    def text(self) -> str:
        """The tag: canonical JSON without the number, which the server gives."""
        fields = asdict(self)
        del fields["number"]
        fields["from"] = fields.pop("came_from")
        return canonical(fields).decode("ascii")

    @property
    def seal(self) -> str:
        """What the next valid record refers to."""
        return hashlib.sha256(f"{self.number} {self.text()}".encode("ascii")).hexdigest()

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.op} {self.came_from or 'nothing'} -> {self.to} by {self.actor}: {self.reason}"


@dataclass(frozen=True)
class Chain:
    """The valid records in order. `broken` says what contradicts them, if anything does."""

    records: tuple[Record, ...]
    broken: str = ""
    applied: bool = True  # whether the aliases were set after the last valid record

    @property
    def last(self) -> int:
        """Number of the last valid record; 0 when there is none."""
        return self.records[-1].number if self.records else 0

    @property
    def champion(self) -> int | None:
        """The version that serves."""
        return self._standing()[-1]

    @property
    def previous(self) -> int | None:
        """The version that a rollback goes to."""
        return self._standing()[-2]

    def require_intact(self) -> Self:
        """RegistryError when the chain is broken."""
        if self.broken:
            raise RegistryError(
                f"the ledger contradicts itself: {self.broken}",
                mend="Compare it with its mirror in the home's ledger folder; nothing is promoted until they agree.",
            )
        return self

    def _standing(self) -> list[int | None]:
        """Champions one above the other: a promotion adds one, a rollback uncovers one."""
        standing: list[int | None] = [None, None]
        for record in self.records:
            if record.op == "rollback" and record.to in standing:
                while standing[-1] != record.to:
                    standing.pop()
            else:
                standing.append(record.to)
        return standing


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


@dataclass(frozen=True)
class Settled:
    """What became of a drift: the hand-moved alias was adopted as a record, or put back."""

    drift: Drift
    adopted: bool
    sentence: str


def fold(texts: Sequence[tuple[int, str]]) -> Chain:
    """The chain in (number, text) of every record, lowest number first.

    A repeated intent is a response that was lost, a stale `expected` one that lost a race: both are passed over.
    """
    valid: list[Record] = []
    seen: set[str] = set()
    for count, (number, text) in enumerate(texts, start=1):
        if number != count:
            return Chain(tuple(valid), broken=f"record {count} is missing")
        try:
            record = Record.read(number, text)
        except (ValueError, KeyError, TypeError):
            return Chain(tuple(valid), broken=f"record {number} cannot be read")
        if record.intent in seen or record.expected != (valid[-1].number if valid else 0):
            seen.add(record.intent)
            continue
        seen.add(record.intent)
        if record.previous != (valid[-1].seal if valid else ""):
            return Chain(tuple(valid), broken=f"record {record.expected} was changed after record {number}")
        valid.append(record)
    return Chain(tuple(valid))


class Ledger:
    """The ledger of one registered model."""

    def __init__(self, settings: Settings, registry: Registry, model: str = STUDENT) -> None:
        self.settings, self.registry, self.model = settings, registry, model
        self.name = f"{model}-ledger"

    def chain(self) -> Chain:
        """The valid records, compared with their mirror."""
        versions = self.registry.all_versions(self.name)
        texts = [(version.number, version.tags.get(_RECORD, "")) for version in versions]
        chain = fold(texts)
        tags = {version.number: version.tags for version in versions}
        applied = not chain.records or _APPLIED in tags[chain.last]
        return Chain(chain.records, chain.broken or self._mirror(texts), applied)

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
        """Sets the aliases champion and previous to what the chain says, until both agree."""
        with self._alone():
            self._mend()

    def drift(self) -> Drift | None:
        """Where the alias champion was moved by hand. One that a killed promotion has not set yet is set here."""
        with self._alone():
            chain = self.chain().require_intact()
            if not chain.applied:
                self._mend()
                return None
            if self._drift(chain) is None:
                return None
            time.sleep(_SETTLE_SECONDS)
            return self._drift(self.chain())

    def settle(self, load_check: Callable[[int], None]) -> Settled | None:
        """Adopts a hand-moved alias as a manual record if `load_check(version)` passes, else puts it back."""
        drift = self.drift()
        if drift is None:
            return None
        moved = f"the alias champion was moved by hand from {drift.champion or 'nothing'} to {drift.alias or 'nothing'}"
        refusal = "an alias cannot be taken away"
        if drift.alias is not None:
            try:
                load_check(drift.alias)
            except RegistryError as error:
                refusal = str(error)
            else:
                entry = Entry("manual", drift.alias, self.chain().last, "", "MLflow", moved)
                outcome = self.append(entry)
                return Settled(drift, outcome.won, f"{moved}: {'adopted' if outcome.won else outcome.sentence}")
        self.mend()
        return Settled(drift, False, f"{moved}: put back, {refusal}")

    # -- inside

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
            actor=entry.actor,
            reason=entry.reason,
            previous=before.records[-1].seal if before.records else "",
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.registry.require(self.name)
        tags = {INTENT: entry.intent, _RECORD: record.text(), "op": entry.op, "to": str(entry.to)}
        self.registry.create(self.name, f"models:/{self.model}/{entry.to}", tags, record.sentence)

    def _mend(self) -> None:
        while True:
            chain = self.chain().require_intact()
            aliases = self.registry.aliases(self.model)
            for alias, number in (("champion", chain.champion), ("previous", chain.previous)):
                if aliases.get(alias) != number:
                    self.registry.set_alias(self.model, alias, number)
            if not chain.applied:
                self.registry.set_tags(self.name, chain.last, {_APPLIED: "true"})
            if self.chain().last == chain.last:
                return

    def _drift(self, chain: Chain) -> Drift | None:
        alias = self.registry.aliases(self.model).get("champion")
        return None if alias == chain.champion else Drift(alias, chain.champion)

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
            elif path.read_text() != text:
                return f"record {number} was changed after it was written"
        if (folder / f"{len(texts) + 1:06}.json").exists():
            return f"record {len(texts) + 1} is missing"
        return ""

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this home at a time moves aliases, so that none takes another's for a person's."""
        with (self.settings.home / "run" / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _holds(chain: Chain, entry: Entry) -> bool:
    return any(record.intent == entry.intent for record in chain.records)


def _overtaken(entry: Entry, chain: Chain) -> str:
    then = next((r.to for r in chain.records if r.number == entry.expected), None)
    return f"the champion changed from {then or 'nothing'} to {chain.champion} meanwhile; evaluate against it again"


def _place(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
