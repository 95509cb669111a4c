"""Model cards and tags of what is registered, from the store alone: a verdict leads to all it rests on. No orchestrator."""

import json
from collections.abc import Mapping

from recsys import model_card
from recsys.artifact import CARD, Card
from recsys.dataset import Build
from recsys.evaluate import ModelReport
from recsys.gate import Verdict
from recsys.model_card import Judged, StudentFacts, TeacherFacts
from tasks.adapters.registry import DECISION, FAILED, LONGEST_TEXT, SENTENCE, UNPROVEN
from tasks.adapters.store import Store
from tasks.figures import figures

_STUDENT = ("artifact", "student", "teacher", "champion", "most_popular", "neighbours")
_TEACHER = ("teacher", "previous_teacher", "most_popular", "neighbours")


def student_card(store: Store, artifact: str, verdict: str, shop: str = "") -> str:
    """The card of an artifact, by the digests of it and of its verdict. StoreError when the store has not all of it."""
    card = Card.from_bytes(store.read("artifact", artifact, CARD))
    student = StudentFacts.read(store.open("distil", card.lineage["student"]))
    teacher = TeacherFacts.read(store.open("teach", card.lineage["teacher"]))
    return model_card.student_card(_judged(store, verdict, "verdict.json", _STUDENT, shop), card, student, teacher)


def teacher_card(store: Store, teacher: str, verdict: str, shop: str = "") -> str:
    """The card of a teacher, by the digests of it and of its verdict. StoreError as above."""
    facts = TeacherFacts.read(store.open("teach", teacher))
    return model_card.teacher_card(_judged(store, verdict, "teacher.json", _TEACHER, shop), facts)


def verdict_tags(verdict: Verdict) -> Mapping[str, str]:
    """What lists of versions show: decision, sentence, and the criteria that failed or are unproven, where there are."""
    names = {
        tag: ", ".join(row.name for row in verdict.criteria if row.outcome == outcome)
        for tag, outcome in ((FAILED, "fail"), (UNPROVEN, "unproven"))
    }
    shown = {tag: listed for tag, listed in names.items() if listed}
    return {DECISION: verdict.decision, SENTENCE: verdict.sentence[:LONGEST_TEXT], **shown}


def _judged(store: Store, digest: str, name: str, roles: tuple[str, ...], shop: str) -> Judged:
    """A verdict with its reports and their dataset, whose digests are in the manifests."""
    reports = {role: report for role, _, report in (p.rpartition(" ") for p in store.manifest("judge", digest).parents)}
    dataset = store.manifest("evaluate", reports[roles[0]]).parent_digests[-1]
    return Judged(
        verdict=Verdict.from_json(store.read("judge", digest, name).decode()),
        models=tuple(
            figures(store, role, reports[role], ModelReport.load(store.open("evaluate", reports[role])))
            for role in roles
            if role in reports
        ),
        shop=shop,
        dataset=dataset,
        build=Build.from_json(json.loads(store.read("build", dataset, "build.json"))["build"]),
    )
