"""What holds the field tonight: the champion to compare with, and the student a search may start from."""

from recsys.errors import StoreError
from recsys.student import Student
from tasks.adapters.registry import STUDENT, Version
from tasks.night import Step
from tasks.opening import open_build
from tasks.refs import DatasetRef, LabelsRef, Standing


def champion_version(at: Step) -> Version | None:
    """The registered version that the ledger, not the alias, says is champion."""
    champion = at.ledger.chain().champion
    return None if champion is None else at.registry.version(STUDENT, champion)


def standing_champion(at: Step) -> Standing:
    """Where the ledger stands now, and the champion's files, to be scored again on tonight's users."""
    chain = at.ledger.chain().require_intact()
    if chain.champion is None:
        return Standing(record=chain.last)
    champion = at.registry.version(STUDENT, chain.champion)
    return Standing(record=chain.last, version=champion.number, digest=champion.digest)


def student_to_start_from(at: Step, dataset: DatasetRef, labels: LabelsRef) -> str | None:
    """Digest of the champion's float student, if tonight's search may start from it. Decided once per dataset."""
    decided = at.decide_once(
        f"student-parent-for-{dataset.digest}", lambda: {"digest": _usable_parent(at, dataset, labels)}
    )
    digest: str | None = decided["digest"]
    return digest


def _usable_parent(at: Step, dataset: DatasetRef, labels: LabelsRef) -> str | None:
    champion = champion_version(at)
    if champion is None or not at.night.config.refresh.warm_start:
        return None
    if champion.tags.get("recsys.teacher") != labels.teacher.digest:
        at.tell("the champion had another teacher: students start cold")
        return None
    try:
        trained_to = _cut(at, champion.tags["recsys.dataset"])
        student = Student.load(at.store.open("distil", champion.tags["recsys.student"]))
    except (KeyError, StoreError):
        at.tell("the champion's student is not in this store: students start cold")
        return None
    if student.length != at.night.config.data.history_length:
        at.tell("the champion reads another length of history: students start cold")
        return None
    tonight = _cut(at, dataset.digest)
    if trained_to is None or tonight is None or trained_to > tonight:
        at.tell("the champion has seen events from after tonight's cut: students start cold")
        return None
    at.tell(f"students start from champion version {champion.number}")
    return champion.tags["recsys.student"]


def _cut(at: Step, digest: str) -> int | None:
    """Seconds UTC from which on a model of this dataset has learnt nothing; None where no time says it."""
    return open_build(at.store, digest).validation_start
