"""tell: the night as a report, as Prefect artifacts, and as MLflow metrics and files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from recsys.report import render
from recsys.story import Story
from recsys.wording import literal, measured
from tasks.adapters.registry import STUDENT
from tasks.bill import bill
from tasks.last_night import HEAD
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.refs import AcceptedRef, ArtifactRef, DatasetRef, Outcome, ReportsRef
from tasks.storyteller import story_of


@task(name="tell", **TASK_OPTIONS)
def tell(
    night: Night,
    accepted: AcceptedRef,
    dataset: DatasetRef,
    artifact: ArtifactRef,
    reports: ReportsRef,
    outcome: Outcome,
) -> Outcome:
    """Writes the report and links it wherever somebody may look."""
    with step(night, "tell", "Writing the report") as at:
        outcome = outcome.model_copy(update={"cut_short": _in_words(artifact.cut_short)})
        story = story_of(at, accepted, dataset, artifact, reports, outcome)
        page = _write_report(at, story)
        at.tracking.log_artifacts(night.run_id, page, "report")
        at.tracking.log_artifacts(night.run_id, at.store.open("judge", outcome.verdict.digest), "verdict")
        at.tracking.log_tags(
            night.run_id,
            {
                "recsys.decision": outcome.decision,
                "recsys.sentence": outcome.sentence,
                "recsys.dataset": dataset.digest,
                "recsys.teacher": artifact.teacher,
                "recsys.student": artifact.student,
                "recsys.artifact": artifact.digest,
                "recsys.verdict": outcome.verdict.digest,
                **({"recsys.cut_short": outcome.cut_short} if outcome.cut_short else {}),
            },
        )
        at.tracking.log_metrics(night.run_id, _metrics(story), step=0)
        told = outcome.model_copy(update={"report": str(page)})
        _show_in_prefect(at, story, told)
        if not _is_made_up_for(at, dataset):
            at.store.set_head(
                HEAD,
                {
                    **told.model_dump(mode="json", include={"decision", "sentence", "advice", "version", "report"}),
                    "dataset": dataset.digest,
                    "artifact": artifact.digest,
                    "as_of": dataset.as_of,
                    "run_id": night.run_id,
                    "source": night.source.model_dump(mode="json"),
                },
            )
        return told


def _in_words(cut_short: Sequence[str]) -> str:
    return f"Cut short by the time budget: {'; '.join(cut_short)}." if cut_short else ""


def _is_made_up_for(at: Step, dataset: DatasetRef) -> bool:
    """Whether this is a night of the past, made after a later one: what is scored and shown stays the later one's."""
    last = at.store.head(HEAD)
    return bool(at.night.source.until and last and last["as_of"] > dataset.as_of)


def _write_report(at: Step, story: Story) -> Path:
    """reports/<as-of>-<run>.html and its story beside it, each whole or absent."""
    folder = at.settings.home / "reports"
    folder.mkdir(exist_ok=True)
    name = f"{datetime.fromtimestamp(story.as_of, UTC):%Y%m%dT%H%M%SZ}-{at.night.run_id[:8]}"
    for suffix, text in ((".json", story.to_json()), (".html", render(story))):
        draft = folder / f".{name}{suffix}"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / f"{name}{suffix}")
    return folder / f"{name}.html"


def _metrics(story: Story) -> dict[str, float]:
    """Every metric of every model, every interval of the gate, and what the night cost."""
    metrics = {
        f"{model.name.replace('-', '_')}/{name}": estimate.value
        for model in story.models
        for name, estimate in {**model.metrics, "unseen_hr_at_10": model.unseen}.items()
        if estimate.value is not None
    }
    for row in story.criteria:
        bounds = {"value": row.value, "low": row.low, "high": row.high}
        metrics |= {f"gate/{row.name}/{kind}": value for kind, value in bounds.items() if value is not None}
    return metrics | bill(story)


def _show_in_prefect(at: Step, story: Story, outcome: Outcome) -> None:
    """The verdict as a table, the night as a few lines, the report and the registry as links."""
    rows = [
        {
            "criterion": row.name,
            "kind": row.kind,
            "value": measured(row.value, row.unit),
            "asked": measured(row.threshold, row.unit),
            "outcome": row.outcome,
            "why": literal(row.sentence),
        }
        for row in story.criteria
    ]
    sentence = literal(outcome.sentence)
    if rows:
        create_table_artifact(rows, key="verdict", description=f"{outcome.decision}: {sentence}")
    version = f"version {outcome.version} of {STUDENT}" if outcome.version else "no version"
    places = _places(at, outcome)
    create_markdown_artifact(
        f"# {outcome.decision}\n\n{sentence}\n\n{literal(outcome.advice)}\n\n{outcome.cut_short}\n\n"
        f"- Registry: {version}; champion: {outcome.champion or 'none'}\n"
        f"- MLflow run: {_linked(at.night.run_id, places.run)}\n"
        f"- Report: {_linked(outcome.report, places.report)}\n",
        key="night",
        description="What the night came to",
    )
    create_link_artifact(
        places.report or Path(outcome.report).as_uri(),
        link_text="The night's report",
        key="report",
        description="The whole story, with tables and curves",
    )
    if places.run:
        create_link_artifact(
            places.run, link_text="The night in MLflow", key="mlflow", description="Parameters, metrics and files"
        )


@dataclass(frozen=True)
class _Places:
    """Where a browser finds the night. None while no MLflow server runs; a page of Prefect's may not link to a file."""

    run: str | None
    report: str | None


def _places(at: Step, outcome: Outcome) -> _Places:
    server = at.settings.running().get("mlflow")
    if server is None:
        return _Places(None, None)
    run = f"{server}/#/experiments/{at.tracking.experiment_id}/runs/{at.night.run_id}"
    return _Places(run, f"{run}/artifacts/report/{Path(outcome.report).name}")


def _linked(text: str, place: str | None) -> str:
    return f"[{text}]({place})" if place else f"`{text}`"
