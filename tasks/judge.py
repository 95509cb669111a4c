"""judge: the gate over the reports. Numbers in, a verdict out; nothing is moved here."""

from pathlib import Path

from prefect import task

from recsys.evaluate import ModelReport
from recsys.gate import Evidence, Verdict, judge_teacher
from recsys.gate import judge as judged
from tasks.adapters.registry import STUDENT
from tasks.adapters.store import Recipe
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.refs import ArtifactRef, ReportRef, ReportsRef, VerdictRef

VERSION = 1


@task(name="judge", **TASK_OPTIONS)
def judge(night: Night, artifact: ArtifactRef, reports: ReportsRef) -> VerdictRef:
    """The verdict on the artifact, and beside it the verdict on the teacher."""
    with step(night, "judge", "Judging") as at:
        if reports.standing.digest == artifact.digest:
            return _judged_before(at, reports)
        recipe = Recipe(
            "judge",
            VERSION,
            {"gate": night.config.gate.model_dump(mode="json"), "limits": night.config.limits.model_dump(mode="json")},
            tuple(f"{role} {report.digest}" for role, report in reports.by_role().items()),
        )

        def build(out: Path) -> None:
            (out / "verdict.json").write_text(_student(at, reports).to_json())
            (out / "teacher.json").write_text(_teacher(at, reports).to_json())

        stored = at.make(recipe, build)
        verdict = Verdict.from_json((at.store.open("judge", stored.digest) / "verdict.json").read_text())
        at.tell(f"{verdict.decision}: {verdict.sentence}")
        return VerdictRef.of(stored, decision=verdict.decision, sentence=verdict.sentence)


def _judged_before(at: Step, reports: ReportsRef) -> VerdictRef:
    """The candidate is the champion, byte by byte: nothing is judged, and the verdict that made it stands."""
    assert reports.standing.version is not None
    champion = at.registry.version(STUDENT, reports.standing.version)
    stored = at.reuse("judge", champion.tags["recsys.verdict"])
    sentence = f"the candidate is the champion, version {champion.number}, byte by byte"
    at.tell(f"NO CHANGE: {sentence}")
    return VerdictRef.of(stored, decision="NO CHANGE", sentence=sentence)


def _student(at: Step, reports: ReportsRef) -> Verdict:
    evidence = Evidence(
        artifact=_report(at, reports.artifact),
        student=_report(at, reports.student),
        teacher=_report(at, reports.teacher),
        most_popular=_report(at, reports.most_popular),
        neighbours=_report(at, reports.neighbours),
        champion=_report(at, reports.champion) if reports.champion else None,
        latency_p99_ms=at.store.measured("evaluate", reports.artifact.digest)["p99_ms"],
    )
    return judged(evidence, at.night.config.gate, at.night.config.limits)


def _teacher(at: Step, reports: ReportsRef) -> Verdict:
    return judge_teacher(
        _report(at, reports.teacher),
        _report(at, reports.most_popular),
        _report(at, reports.neighbours),
        _report(at, reports.previous_teacher) if reports.previous_teacher else None,
        at.night.config.gate,
    )


def _report(at: Step, ref: ReportRef) -> ModelReport:
    return ModelReport.load(at.store.open("evaluate", ref.digest))
