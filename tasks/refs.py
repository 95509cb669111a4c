"""What tasks hand each other: frozen names of objects in the store. Small, JSON, without paths or values.

A ref is all that Prefect ever sees of an object. The numbers beside its digest are there to be read in a log
or in the UI; whoever computes with them opens the object.
"""

import hashlib
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from recsys.verdict import Decision
from tasks.adapters.store import Stored, canonical


def digest_of(digests: Sequence[str]) -> str:
    """One sha256 for several, in their order."""
    return hashlib.sha256(canonical(list(digests))).hexdigest()


class Ref(BaseModel):
    """One object: what made it (`step`), what it was made from (`key`) and what it is (`digest`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    key: str
    digest: str

    @classmethod
    def of(cls, stored: Stored, **fields: object) -> Self:
        """The ref of what `Store.make` returned, with the fields its step adds."""
        return cls.model_validate({"step": stored.step, "key": stored.key, "digest": stored.digest, **fields})


class EventsRef(Ref):
    """One validated file of events: lines == accepted + quarantined."""

    file: str
    lines: int
    accepted: int
    quarantined: int


class ItemsRef(Ref):
    """One validated file of items."""

    file: str
    items: int


class AcceptedRef(BaseModel):
    """All that tonight's input came to: its files of events, and its items where there are any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[EventsRef, ...]
    items: ItemsRef | None

    def digests(self) -> tuple[str, ...]:
        """Of the files in order, then of the items."""
        return (*(file.digest for file in self.files), self.items.digest if self.items else "no items")


class DatasetRef(Ref):
    """Coded histories and their catalog, split at `as_of` (seconds UTC, exclusive)."""

    users: int
    items: int
    as_of: int


class TeacherRef(Ref):
    """A trained teacher; `items` is the catalog's prefix it knows, `version` its number in the registry."""

    items: int
    version: int | None = None
    cut_short: str = ""  # how far it got, when the time budget ended its training tonight


class LabelsRef(Ref):
    """Soft labels: the segments in order, base first. The ref itself names the newest segment."""

    segments: tuple[Ref, ...]
    positions: int
    teacher: TeacherRef

    def digests(self) -> tuple[str, ...]:
        """Of the segments, base first."""
        return tuple(segment.digest for segment in self.segments)


class StudentRef(Ref):
    """The best student of a search."""

    width: int
    weight: float  # of the soft labels; 0 when the undistilled student was best
    k: int
    temperature: float
    trials: int
    cut_short: str = ""  # how far the search got, when the time budget ended it


class ArtifactRef(Ref):
    """The published files of a student: what is served."""

    bytes: int  # of the model as it is served
    grid: str  # digests: of the compression it was chosen from, and of what it was made from
    student: str
    teacher: str
    dataset: str
    cut_short: tuple[str, ...] = ()  # what the time budget ended before it was done, and how far it got


class Standing(BaseModel):
    """The last valid record of the ledger (0: none), and the champion's version and digest, where there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: int
    version: int | None = None
    digest: str | None = None
    ahead: str = (
        ""  # why the champion may not be compared with tonight's models: it knows what they must not; else empty
    )
    teacher_ahead: str = ""  # the same of the champion teacher


class ReportRef(Ref):
    """The evaluation of one model on one dataset."""

    model: str
    ndcg_at_10: float


class ReportsRef(BaseModel):
    """The reports of a night, all on the same users, and the champion they were compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: ReportRef
    student: ReportRef
    teacher: ReportRef
    most_popular: ReportRef
    neighbours: ReportRef
    champion: ReportRef | None = None  # None on the first night, and when the artifact is the champion
    previous_teacher: ReportRef | None = None
    standing: Standing

    def by_role(self) -> dict[str, ReportRef]:
        """Those that there are."""
        roles = {name: getattr(self, name) for name in type(self).model_fields if name != "standing"}
        return {name: report for name, report in roles.items() if report is not None}


class TeacherReportsRef(BaseModel):
    """The reports on a new teacher, all on the same users, and the champion teacher it was compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: ReportRef
    most_popular: ReportRef
    neighbours: ReportRef
    previous_teacher: ReportRef | None = None
    standing: Standing

    def by_role(self) -> dict[str, ReportRef]:
        """Those that there are."""
        roles = {name: getattr(self, name) for name in type(self).model_fields if name != "standing"}
        return {name: report for name, report in roles.items() if report is not None}


class VerdictRef(Ref):
    """What the gate decided about an artifact, or about a teacher alone."""

    decision: Decision
    sentence: str
    version: int | None = None  # in the registry, of a candidate that was judged before


class Refreshed(BaseModel):
    """What a new teacher came to: whether it is the champion now, and which version was before and is afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision: Decision
    sentence: str
    advice: str
    verdict: VerdictRef
    teacher: TeacherRef
    version: int  # in the registry, of the new teacher
    champion: int | None  # afterwards
    is_champion: bool


class Outcome(BaseModel):
    """What a night came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision: Decision
    sentence: str
    advice: str
    verdict: VerdictRef
    version: int | None  # in the registry, of tonight's artifact
    champion: int | None  # afterwards
    report: str = ""  # path of the HTML report
    cut_short: str = ""  # what the time budget ended before it was done; empty: nothing
