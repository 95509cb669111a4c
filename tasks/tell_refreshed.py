"""tell: what a new teacher came to, as Prefect artifacts and in its run in MLflow."""

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from recsys.gate import Verdict
from recsys.wording import decimal
from tasks.adapters.registry import TEACHER
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.refs import DatasetRef, Refreshed, TeacherReportsRef


@task(name="tell", **TASK_OPTIONS)
def tell_refreshed(night: Night, dataset: DatasetRef, reports: TeacherReportsRef, refreshed: Refreshed) -> Refreshed:
    """The verdict's table, a few lines, and the tags that find the run by what it made."""
    with step(night, "tell", "Writing down what it came to") as at:
        folder = at.store.open("judge", refreshed.verdict.digest)
        at.tracking.log_artifacts(night.run_id, folder, "verdict")
        at.tracking.log_tags(
            night.run_id,
            {
                "recsys.teacher_decision": refreshed.decision,
                "recsys.sentence": refreshed.sentence,
                "recsys.dataset": dataset.digest,
                "recsys.teacher": refreshed.teacher.digest,
                "recsys.verdict": refreshed.verdict.digest,
            },
        )
        _show_in_prefect(at, reports, refreshed, Verdict.from_json((folder / "teacher.json").read_text()))
        return refreshed


def _show_in_prefect(at: Step, reports: TeacherReportsRef, refreshed: Refreshed, verdict: Verdict) -> None:
    rows = [{"criterion": c.name, "kind": c.kind, "outcome": c.outcome, "why": c.sentence} for c in verdict.criteria]
    create_table_artifact(rows, key="teacher-verdict", description=f"{refreshed.decision}: {refreshed.sentence}")
    models = "\n".join(f"- {role}: {decimal(report.ndcg_at_10)}" for role, report in reports.by_role().items())
    create_markdown_artifact(
        f"# {refreshed.decision}\n\n{refreshed.sentence}\n\n{refreshed.advice}\n\n"
        f"NDCG@10 on the test users:\n\n{models}\n\n"
        f"- Registry: version {refreshed.version} of {TEACHER}; champion: {refreshed.champion or 'none'}\n"
        f"- MLflow run: `{at.night.run_id}`\n",
        key="teacher",
        description="What the new teacher came to",
    )
