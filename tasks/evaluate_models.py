"""evaluate: artifact, float student, teacher, champion and both baselines, full ranking on the same test users."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from prefect import task

from recsys.artifact import verify
from recsys.baselines import MostPopular, Neighbours
from recsys.dataset import Dataset
from recsys.evaluate import ModelReport, OnCatalog, evaluate, latency
from recsys.membership import Suspects, attack
from recsys.neighbourhood import Opinion
from recsys.recommender import Recommender
from recsys.runtime import Runtime
from recsys.sequence_model import Scorer
from recsys.small_cells import FEWEST
from recsys.student import Student
from recsys.teachers import load_teacher
from tasks import computing
from tasks.adapters.registry import TEACHER
from tasks.adapters.store import Recipe, canonical
from tasks.incumbents import standing_champion
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_dataset
from tasks.refs import (
    ArtifactRef,
    DatasetRef,
    ReportRef,
    ReportsRef,
    Standing,
    StudentRef,
    TeacherRef,
    TeacherReportsRef,
)

VERSION = 4
_ATTACKED = ("teacher", "student", "artifact")  # by the membership attack: what was made from tonight's events
_SCORED_WITH = ("teacher.safetensors", "student.safetensors", "neighbours.safetensors")


@task(name="evaluate", **TASK_OPTIONS)
def evaluate_models(
    night: Night, dataset: DatasetRef, teacher: TeacherRef, student: StudentRef, artifact: ArtifactRef
) -> ReportsRef:
    """One report a model and dataset. The artifact is measured as it is served: its files, by the runtime."""
    with step(night, "evaluate", "Evaluating on the test users") as at:
        computing.use(at.settings)
        lab = _Laboratory(at, dataset)
        standing = standing_champion(at, dataset)
        reports = {
            **lab.teacher_and_baselines(teacher),
            "student": lab.report("student", student.digest, lambda d: _student(at, student)),
            "artifact": lab.report("artifact", artifact.digest, lambda d: _artifact(at, artifact.digest, "artifact")),
        }
        if standing.digest and standing.digest != artifact.digest and not standing.ahead:
            champion = standing.digest
            reports["champion"] = lab.report("champion", champion, lambda d: _artifact(at, champion, "champion"))
        reports |= lab.previous_teacher(teacher, standing)
        _record(at, lab.opened)
        return ReportsRef(**reports, standing=standing)


@task(name="evaluate", **TASK_OPTIONS)
def evaluate_teacher(night: Night, dataset: DatasetRef, teacher: TeacherRef) -> TeacherReportsRef:
    """A new teacher, the one before it and both baselines, on the same test users."""
    with step(night, "evaluate", "Evaluating on the test users") as at:
        computing.use(at.settings)
        lab = _Laboratory(at, dataset)
        standing = standing_champion(at, dataset)
        reports = {**lab.teacher_and_baselines(teacher), **lab.previous_teacher(teacher, standing)}
        _record(at, lab.opened)
        return TeacherReportsRef(**reports, standing=standing)


def _record(at: Step, reports: Mapping[str, ModelReport]) -> None:
    for name, report in reports.items():
        metrics = {f"{name}/ndcg_at_10": report.mean("ndcg_at_10")} if len(report.users) >= FEWEST else {}
        if report.membership:
            metrics[f"{name}/membership_auc"] = report.membership.auc.value
            metrics[f"{name}/membership_advantage"] = report.membership.advantage.value
        at.tracking.log_metrics(at.night.run_id, metrics, step=0)


class _Laboratory:
    """Makes reports on one dataset, opening it only when one is missing."""

    def __init__(self, at: Step, ref: DatasetRef) -> None:
        self.at, self.ref = at, ref
        self.done = 0
        self.opened: dict[str, ModelReport] = {}  # by role
        self._suspects: dict[int | None, Suspects] = {}  # by the end of what was learnt from

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.at.store, self.ref)

    def teacher_and_baselines(self, teacher: TeacherRef) -> dict[str, ReportRef]:
        """By role."""
        at, digest = self.at, teacher.digest
        return {
            "most_popular": self.report(
                "most_popular", "most_popular", lambda d: (MostPopular(d.training_counts()), 0)
            ),
            "neighbours": self.report(
                "neighbours", "neighbours", lambda d: (Neighbours(d.histories, d.catalog.items), 0)
            ),
            "teacher": self.report("teacher", digest, lambda d: _teacher(at, digest, "teacher")),
        }

    def previous_teacher(self, teacher: TeacherRef, standing: Standing) -> dict[str, ReportRef]:
        """The champion teacher, unless this is the one or it may not be compared with it."""
        previous = self.at.registry.alias(TEACHER, "champion")
        if previous is None or previous.digest == teacher.digest or standing.teacher_ahead:
            return {}
        if not self.at.has("teach", previous.digest):
            return {}
        at, role = self.at, "previous_teacher"
        return {role: self.report(role, previous.digest, lambda d: _teacher(at, previous.digest, role))}

    def report(self, role: str, digest: str, open_model: Callable[[Dataset], tuple[Recommender, int]]) -> ReportRef:
        """The report of the model `digest`, named by its role tonight."""
        recipe = Recipe("evaluate", VERSION, {"role": role}, (digest, self.ref.digest))
        self.done += 1
        stored = self.at.make(recipe, lambda out: self._evaluate(role, digest, open_model, out))
        report = self.opened[role] = ModelReport.load(self.at.store.open("evaluate", stored.digest))
        return ReportRef.of(stored, model=role, ndcg_at_10=report.mean("ndcg_at_10"))

    def _evaluate(
        self, role: str, digest: str, open_model: Callable[[Dataset], tuple[Recommender, int]], out: Path
    ) -> None:
        model, size = open_model(self.dataset)
        cases = self.dataset.test_cases()

        def on_progress(done: int, total: int) -> None:
            self.at.progress((self.done - 1 + done / total) / 6, f"{role}: {done:,} of {total:,} users")

        report = evaluate(model, cases, self.dataset, size, on_progress, executor=computing.executor(self.at))
        if role in _ATTACKED:
            whole = OnCatalog(model, self.dataset.catalog)
            report = replace(report, membership=attack(whole, self._asked(role, digest)))
        report.save(out)
        taken = latency(model, cases)
        (out / "measured.json").write_bytes(canonical({"p50_ms": taken.p50_ms, "p99_ms": taken.p99_ms}))

    def _asked(self, role: str, digest: str) -> Suspects:
        """Whom to ask about: a teacher of an earlier night has learnt less than tonight's student."""
        until = None
        if role == "teacher":
            until = json.loads((self.at.store.open("teach", digest) / "about.json").read_text())["cut"]
        if until not in self._suspects:
            self._suspects[until] = Suspects.of(self.dataset, until)
        return self._suspects[until]


def _teacher(at: Step, digest: str, role: str) -> tuple[Recommender, int]:
    teacher = load_teacher(at.store.open("teach", digest))
    return teacher.scorer(role), _weights_bytes(at, "teach", digest)


def _student(at: Step, ref: StudentRef) -> tuple[Recommender, int]:
    folder = at.store.open("distil", ref.digest)
    student = Student.load(folder)
    return Scorer(student, student.length, "student", opinion=Opinion.load(folder)), _weights_bytes(
        at, "distil", ref.digest
    )


def _artifact(at: Step, digest: str, role: str) -> tuple[Recommender, int]:
    folder = at.store.open("artifact", digest)
    return Runtime.open(folder, role), verify(folder).model_bytes


def _weights_bytes(at: Step, step_name: str, digest: str) -> int:
    """Of what it scores with: not of the map that reads texts, nor of the undistilled student beside it."""
    files = at.store.manifest(step_name, digest).files
    return sum(file.bytes for file in files if file.name in _SCORED_WITH)
