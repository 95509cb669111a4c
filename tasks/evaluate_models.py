"""evaluate: artifact, float student, teacher, champion and both baselines, full ranking on the same test users."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from prefect import task

from recsys.artifact import verify
from recsys.baselines import MostPopular, Neighbours
from recsys.dataset import Dataset
from recsys.evaluate import ModelReport, evaluate, latency
from recsys.recommender import Recommender
from recsys.runtime import Runtime
from recsys.sequence_model import Scorer
from recsys.student import Student
from recsys.teachers import load_teacher
from tasks import computing
from tasks.adapters.registry import TEACHER
from tasks.adapters.store import Recipe, canonical
from tasks.incumbents import standing_champion
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_dataset
from tasks.refs import ArtifactRef, DatasetRef, ReportRef, ReportsRef, StudentRef, TeacherRef

VERSION = 2


@task(name="evaluate", **TASK_OPTIONS)
def evaluate_models(
    night: Night, dataset: DatasetRef, teacher: TeacherRef, student: StudentRef, artifact: ArtifactRef
) -> ReportsRef:
    """One report a model and dataset. The artifact is measured as it is served: its files, by the runtime."""
    with step(night, "evaluate", "Evaluating on the test users") as at:
        computing.use(at.settings)
        lab = _Laboratory(at, dataset)
        standing = standing_champion(at)
        reports = {
            "most_popular": lab.report("most_popular", "most_popular", lambda d: (MostPopular(d.training_counts()), 0)),
            "neighbours": lab.report(
                "neighbours", "neighbours", lambda d: (Neighbours(d.histories, d.catalog.items), 0)
            ),
            "teacher": lab.report("teacher", teacher.digest, lambda d: _teacher(at, teacher.digest, "teacher")),
            "student": lab.report("student", student.digest, lambda d: _student(at, student)),
            "artifact": lab.report("artifact", artifact.digest, lambda d: _artifact(at, artifact.digest, "artifact")),
        }
        if standing.digest and standing.digest != artifact.digest:
            champion = standing.digest
            reports["champion"] = lab.report("champion", champion, lambda d: _artifact(at, champion, "champion"))
        previous = at.registry.alias(TEACHER, "champion")
        if previous and previous.digest != teacher.digest:
            reports["previous_teacher"] = lab.report(
                "previous_teacher", previous.digest, lambda d: _teacher(at, previous.digest, "previous_teacher")
            )
        for name, report in reports.items():
            at.tracking.log_metrics(night.run_id, {f"{name}/ndcg_at_10": report.ndcg_at_10}, step=0)
        return ReportsRef(**reports, standing=standing)


class _Laboratory:
    """Makes reports on one dataset, opening it only when one is missing."""

    def __init__(self, at: Step, ref: DatasetRef) -> None:
        self.at, self.ref = at, ref
        self.done = 0

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.at.store, self.ref)

    def report(self, role: str, digest: str, open_model: Callable[[Dataset], tuple[Recommender, int]]) -> ReportRef:
        """The report of the model `digest`, named by its role tonight."""
        recipe = Recipe("evaluate", VERSION, {"role": role}, (digest, self.ref.digest))
        self.done += 1
        stored = self.at.make(recipe, lambda out: self._evaluate(role, open_model, out))
        report = ModelReport.load(self.at.store.open("evaluate", stored.digest))
        return ReportRef.of(stored, model=role, ndcg_at_10=report.mean("ndcg_at_10"))

    def _evaluate(self, role: str, open_model: Callable[[Dataset], tuple[Recommender, int]], out: Path) -> None:
        model, size = open_model(self.dataset)
        cases = self.dataset.test_cases()

        def on_progress(done: int, total: int) -> None:
            self.at.progress((self.done - 1 + done / total) / 6, f"{role}: {done:,} of {total:,} users")

        evaluate(model, cases, self.dataset, size, on_progress).save(out)
        taken = latency(model, cases)
        (out / "measured.json").write_bytes(canonical({"p50_ms": taken.p50_ms, "p99_ms": taken.p99_ms}))


def _teacher(at: Step, digest: str, role: str) -> tuple[Recommender, int]:
    teacher = load_teacher(at.store.open("teach", digest))
    return teacher.scorer(role), _weights_bytes(at, "teach", digest)


def _student(at: Step, ref: StudentRef) -> tuple[Recommender, int]:
    student = Student.load(at.store.open("distil", ref.digest))
    return Scorer(student, student.length, "student"), _weights_bytes(at, "distil", ref.digest)


def _artifact(at: Step, digest: str, role: str) -> tuple[Recommender, int]:
    folder = at.store.open("artifact", digest)
    return Runtime.open(folder, role), verify(folder).model_bytes


def _weights_bytes(at: Step, step_name: str, digest: str) -> int:
    files = at.store.manifest(step_name, digest).files
    return sum(file.bytes for file in files if file.name.endswith(".safetensors"))
