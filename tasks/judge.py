"""judge: the gate over the reports. Numbers in, a verdict out; nothing is moved here."""

from pathlib import Path

from prefect import task

from recsys.evaluate import ModelReport
from recsys.gate import Evidence, Verdict, judge_teacher
from recsys.gate import judge as judged
from tasks.adapters.registry import STUDENT, VERDICT
from tasks.adapters.store import Recipe, Stored
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_item_ids
from tasks.refs import ArtifactRef, ReportRef, ReportsRef, Standing, TeacherReportsRef, VerdictRef

VERSION = 4


@task(name="judge", **TASK_OPTIONS)
def judge(night: Night, artifact: ArtifactRef, reports: ReportsRef) -> VerdictRef:
    """The verdict on the artifact, and beside it the verdict on the teacher."""
    with step(night, "judge", "Judging") as at:
        known = _judged_before(at, artifact, reports.standing)
        if known is not None:
            return known
        held = _held_back(reports.standing)
        recipe = Recipe(
            "judge",
            VERSION,
            {
                "gate": night.config.gate.model_dump(mode="json"),
                "limits": night.config.limits.model_dump(mode="json"),
                **({"held_back": held} if held else {}),
            },
            tuple(f"{role} {report.digest}" for role, report in reports.by_role().items()),
        )

        def build(out: Path) -> None:
            verdicts = {"verdict": _student(at, artifact, reports), "teacher": _teacher(at, reports)}
            for name, verdict in verdicts.items():
                told = verdict.held_back(held[name]) if name in held else verdict
                (out / f"{name}.json").write_text(told.to_json())

        stored = at.make(recipe, build)
        verdict = Verdict.from_json((at.store.open("judge", stored.digest) / "verdict.json").read_text())
        if reports.standing.digest == artifact.digest:
            return _champion_itself(at, stored, reports.standing, verdict)
        at.tell(f"{verdict.decision}: {verdict.sentence}")
        return VerdictRef.of(stored, decision=verdict.decision, sentence=verdict.sentence)


@task(name="judge", **TASK_OPTIONS)
def judge_new_teacher(night: Night, reports: TeacherReportsRef) -> VerdictRef:
    """The verdict on a teacher alone."""
    with step(night, "judge", "Judging") as at:
        held = reports.standing.teacher_ahead
        config = {"gate": night.config.gate.model_dump(mode="json"), "held_back": held}
        parents = tuple(f"{role} {report.digest}" for role, report in reports.by_role().items())

        def build(out: Path) -> None:
            verdict = _teacher(at, reports)
            (out / "teacher.json").write_text((verdict.held_back(held) if held else verdict).to_json())

        stored = at.make(Recipe("judge", VERSION, config, parents), build)
        verdict = Verdict.from_json((at.store.open("judge", stored.digest) / "teacher.json").read_text())
        at.tell(f"{verdict.decision}: {verdict.sentence}")
        return VerdictRef.of(stored, decision=verdict.decision, sentence=verdict.sentence)


def _held_back(standing: Standing) -> dict[str, str]:
    """Why a student or teacher of a night from before its champion may not replace it, by what is judged."""
    reasons = {"verdict": standing.ahead, "teacher": standing.teacher_ahead}
    return {judged: reason for judged, reason in reasons.items() if reason}


def _judged_before(at: Step, artifact: ArtifactRef, standing: Standing) -> VerdictRef | None:
    """The verdict that stands when the candidate is the champion, byte by byte, or is of a night that was done before.

    A night from before the champion is not judged again, lest the champion's later knowledge change what was decided.
    """
    if standing.digest == artifact.digest:
        number, who = standing.version, "is the champion"
    elif standing.ahead:
        numbers = [v.number for v in at.registry.versions(STUDENT) if v.digest == artifact.digest]
        number, who = max(numbers, default=None), "was judged before"
    else:
        return None
    if number is None:
        return None
    tags = next((v.tags for v in at.registry.versions(STUDENT) if v.number == number), {})
    verdict = tags.get(VERDICT)
    if verdict is None or not at.has("judge", verdict):
        return None
    sentence = f"the candidate {who}, version {number}, byte by byte"
    at.tell(f"NO CHANGE: {sentence}")
    stored = at.reuse("judge", verdict)
    return VerdictRef.of(stored, decision="NO CHANGE", sentence=sentence, version=number)


def _champion_itself(at: Step, stored: Stored, standing: Standing, verdict: Verdict) -> VerdictRef:
    """The candidate is a champion that no verdict is known of, for it was adopted by hand: judged now, and left alone."""
    sentence = f"the candidate is the champion, version {standing.version}, byte by byte"
    at.tell(
        f"NO CHANGE: {sentence}. Asked now for the first time, the gate says {verdict.decision}: {verdict.sentence}"
    )
    return VerdictRef.of(stored, decision="NO CHANGE", sentence=sentence, version=standing.version)


def _student(at: Step, artifact: ArtifactRef, reports: ReportsRef) -> Verdict:
    evidence = Evidence(
        artifact=_report(at, reports.artifact),
        student=_report(at, reports.student),
        teacher=_report(at, reports.teacher),
        most_popular=_report(at, reports.most_popular),
        neighbours=_report(at, reports.neighbours),
        champion=_report(at, reports.champion) if reports.champion else None,
        latency_p99_ms=at.store.measured("evaluate", reports.artifact.digest)["p99_ms"],
        item_ids=open_item_ids(at.store, artifact.dataset).to_pylist(),
    )
    return judged(evidence, at.night.config.gate, at.night.config.limits)


def _teacher(at: Step, reports: ReportsRef | TeacherReportsRef) -> Verdict:
    return judge_teacher(
        _report(at, reports.teacher),
        _report(at, reports.most_popular),
        _report(at, reports.neighbours),
        _report(at, reports.previous_teacher) if reports.previous_teacher else None,
        at.night.config.gate,
    )


def _report(at: Step, ref: ReportRef) -> ModelReport:
    return ModelReport.load(at.store.open("evaluate", ref.digest))
