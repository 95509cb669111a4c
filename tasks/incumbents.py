"""What holds the field tonight: the champion to compare with, and the student a search may start from."""

from collections.abc import Mapping

from recsys.errors import StoreError
from recsys.student import Student
from tasks.adapters.registry import STUDENT, Version
from tasks.night import Step
from tasks.opening import open_build
from tasks.refs import DatasetRef, LabelsRef, Standing


def standing_champion(at: Step) -> Standing:
    """Where the ledger stands now, and the champion's files, to be scored again on tonight's users."""
    chain = at.ledger.chain().require_intact()
    if chain.champion is None:
        return Standing(record=chain.last)
    champion = at.registry.version(STUDENT, chain.champion)
    return Standing(record=chain.last, version=champion.number, digest=champion.digest)


def student_to_start_from(at: Step, dataset: DatasetRef, labels: LabelsRef) -> str | None:
    """Digest of the float student that tonight's search starts from, if there is one. Decided once per dataset."""
    decided = at.decide_once(f"student-parent-for-{dataset.digest}", lambda: _parent(at, dataset, labels))
    digest: str | None = decided["digest"]
    return digest if digest and at.has("distil", digest) else None


def _parent(at: Step, dataset: DatasetRef, labels: LabelsRef) -> Mapping[str, str | None]:
    """The champion's student or, while nothing was promoted, the challenger's: the newest that lacked evidence only."""
    champion = at.ledger.chain().champion
    earlier = at.registry.version(STUDENT, champion) if champion else at.registry.alias(STUDENT, "challenger")
    if earlier is None or not at.night.config.refresh.warm_start:
        return {"digest": None}
    reason = _why_not(at, earlier, dataset, labels)
    at.tell(f"students start cold: {reason}" if reason else f"students start from version {earlier.number}")
    return {"digest": None if reason else earlier.tags["recsys.student"]}


def _why_not(at: Step, earlier: Version, dataset: DatasetRef, labels: LabelsRef) -> str:
    """Why tonight's search may not start from an earlier version; empty when it may."""
    if earlier.tags.get("recsys.teacher") != labels.teacher.digest:
        return f"version {earlier.number} had another teacher"
    try:
        trained_to, tonight = _cut(at, earlier.tags["recsys.dataset"]), _cut(at, dataset.digest)
        student = Student.load(at.store.open("distil", earlier.tags["recsys.student"]))
    except (KeyError, StoreError):
        return f"the student of version {earlier.number} is not in this store"
    if student.length != at.night.config.data.history_length:
        return f"version {earlier.number} reads another length of history"
    if trained_to is None or tonight is None or trained_to > tonight:
        return f"version {earlier.number} has seen events from after tonight's cut"
    return ""


def _cut(at: Step, digest: str) -> int | None:
    """Seconds UTC from which on a model of this dataset has learnt nothing; None where no time says it."""
    return open_build(at.store, digest).validation_start
