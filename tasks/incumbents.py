"""What holds the field tonight: the champion to compare with, and the student a search may start from."""

import json
from collections.abc import Mapping

from recsys import wording
from recsys.artifact import CARD, Card
from recsys.dataset import Build
from recsys.errors import StoreError
from recsys.student import Student
from tasks.adapters.registry import DIGEST, STUDENT, TEACHER, Version
from tasks.night import Step
from tasks.opening import open_build
from tasks.refs import DatasetRef, Standing
from tasks.settle_alias import settle_alias


def standing_champion(at: Step, dataset: DatasetRef) -> Standing:
    """Where the ledger stands now, and the champion's files, to be scored again on tonight's users.

    A champion that knows what tonight must not, as in a backfill, is not scored; nor is such a champion teacher.
    """
    settled = settle_alias(at.workshop)
    if settled is not None:
        at.tell(settled.sentence)
    chain = at.ledger.chain().require_intact()
    tonight = open_build(at.store, dataset.digest)
    teacher = at.registry.alias(TEACHER, "champion")
    teacher_ahead = _teacher_ahead(at, teacher, tonight) if teacher else ""
    if chain.champion is None:
        return Standing(record=chain.last, teacher_ahead=teacher_ahead)
    champion = _champion(at, chain.champion, chain.champion_digest)
    ahead = _champion_ahead(at, champion, tonight)
    for sentence in filter(None, (ahead, teacher_ahead)):
        at.tell(f"{sentence}: it is not compared with")
    return Standing(
        record=chain.last, version=champion.number, digest=champion.digest, ahead=ahead, teacher_ahead=teacher_ahead
    )


def _champion(at: Step, number: int, digest: str) -> Version:
    """The champion's version. Where it was deleted in MLflow, what its files in the store say of themselves."""
    found = next((version for version in at.registry.versions(STUDENT) if version.number == number), None)
    if found is not None:
        return found
    card = Card.from_bytes((at.store.open("artifact", digest) / CARD).read_bytes())
    return Version(STUDENT, number, {DIGEST: digest, **{f"recsys.{n}": d for n, d in card.lineage.items()}}, "", "")


def _champion_ahead(at: Step, champion: Version, tonight: Build) -> str:
    try:
        made_from = open_build(at.store, champion.tags["recsys.dataset"])
    except (KeyError, StoreError):  # registered by hand, or elsewhere: nothing says what it knows
        return ""
    return ahead(f"champion, version {champion.number}", made_from.as_of, made_from.validation_start, tonight)


def _teacher_ahead(at: Step, teacher: Version, tonight: Build) -> str:
    try:
        about = json.loads((at.store.open("teach", teacher.digest) / "about.json").read_text())
    except StoreError:
        return ""
    return ahead(f"champion teacher, version {teacher.number}", about["as_of"], about["cut"], tonight)


def ahead(who: str, as_of: int, cut: int | None, tonight: Build) -> str:
    """Why a model may not be compared with tonight's on tonight's test users; empty when it may.

    It must not be of a later as-of (its epochs were chosen on later days), nor have learnt from tonight's test days.
    `as_of` and `cut` are its own, seconds UTC.
    """
    if as_of > tonight.as_of:
        times = f"as of {wording.moment(tonight.as_of)} against {wording.moment(as_of)}"
        return f"Older than the {who}: {times}"
    if cut is not None and tonight.test_start is not None and cut > tonight.test_start:
        return f"Not comparable with the {who}, which has learnt from days that tonight's models are tested on"
    return ""


def teacher_for(dataset: DatasetRef) -> str:
    """Name of the head that says which earlier teacher labels a dataset, decided once."""
    return f"teacher-for-{dataset.digest}"


def decide_teacher(at: Step, dataset: DatasetRef, digest: str) -> None:
    """Whatever was decided before: from now on this teacher labels the dataset."""
    at.store.set_head(teacher_for(dataset), {"digest": digest})


def student_to_start_from(at: Step, dataset: DatasetRef) -> str | None:
    """Digest of the float student that tonight's search starts from, if there is one. Decided once per dataset.

    It may have had another teacher: what it learnt from that one is a better start than none (decision 0013).
    """
    decided = at.decide_once(f"student-parent-for-{dataset.digest}", lambda: _parent(at, dataset))
    digest: str | None = decided["digest"]
    return digest if digest and at.has("distil", digest) else None


def _parent(at: Step, dataset: DatasetRef) -> Mapping[str, str | None]:
    """The champion's student or, while nothing was promoted, the challenger's: the newest that lacked evidence only."""
    chain = at.ledger.chain()
    if chain.champion is not None:
        earlier: Version | None = _champion(at, chain.champion, chain.champion_digest)
    else:
        earlier = at.registry.alias(STUDENT, "challenger")
    if earlier is None or not at.night.config.refresh.warm_start:
        return {"digest": None}
    reason = _why_not(at, earlier, dataset)
    at.tell(f"students start cold: {reason}" if reason else f"students start from version {earlier.number}")
    return {"digest": None if reason else earlier.tags["recsys.student"]}


def _why_not(at: Step, earlier: Version, dataset: DatasetRef) -> str:
    """Why tonight's search may not start from an earlier version; empty when it may."""
    try:
        learnt_from, tonight = (open_build(at.store, d) for d in (earlier.tags["recsys.dataset"], dataset.digest))
        student = Student.load(at.store.open("distil", earlier.tags["recsys.student"]))
    except (KeyError, StoreError):
        return f"the student of version {earlier.number} is not in this store"
    if student.length != at.night.config.data.history_length:
        return f"version {earlier.number} reads another length of history"
    if learnt_from.as_of > tonight.as_of:
        return f"version {earlier.number} is of a later as-of"
    trained_to, cut = learnt_from.validation_start, tonight.validation_start
    if trained_to is None or cut is None or trained_to > cut:
        return f"version {earlier.number} has seen events from after tonight's cut"
    return ""
