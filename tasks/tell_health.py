"""tell: a look of the monitor as a page, as Prefect artifacts, as MLflow metrics; and as announcements."""

import os
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import BaseModel, ConfigDict

from recsys.config import MonitorConfig
from recsys.health import Health, Kind
from recsys.health_page import render
from recsys.wording import decimal, literal, percent, plain
from tasks.announce import Happening, announce
from tasks.night import TASK_OPTIONS, Night, Step, step


class Looked(BaseModel):
    """What a look of the monitor came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alarms: tuple[Kind, ...]  # the most pressing first; empty: all is well
    sentence: str
    champion: int | None
    report: str  # path of the HTML page; its JSON lies beside it
    announced: tuple[Happening, ...]  # not what was announced before on the same day


@task(name="tell", **TASK_OPTIONS)
def tell_health(night: Night, health: Health, monitor: MonitorConfig) -> Looked:
    """Writes and records a look, and announces what somebody, or an automation, should act on."""
    with step(night, "tell", "Writing what was seen") as at:
        page = _write(at, health)
        at.tracking.log_artifacts(night.run_id, page, "monitor")
        at.tracking.log_metrics(night.run_id, health.metrics(), step=0)
        alarms = tuple(alarm.kind for alarm in health.alarms)
        at.tracking.log_tags(
            night.run_id, {"recsys.alarms": ", ".join(alarms) or "none", "recsys.sentence": health.sentence}
        )
        _show_in_prefect(night, health, page)
        announced = _announce(at, health, monitor)
        at.tell(health.sentence)
        return Looked(
            alarms=alarms, sentence=health.sentence, champion=health.champion, report=str(page), announced=announced
        )


def _write(at: Step, health: Health) -> Path:
    """reports/monitor-<moment>-<run>.html and its JSON, each whole or absent."""
    folder = at.settings.home / "reports"
    folder.mkdir(exist_ok=True)
    name = f"monitor-{datetime.fromtimestamp(health.now, UTC):%Y%m%dT%H%M%SZ}-{at.night.run_id[:8]}"
    for suffix, text in ((".json", health.to_json()), (".html", render(health))):
        draft = folder / f".{name}{suffix}"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / f"{name}{suffix}")
    return folder / f"{name}.html"


def _show_in_prefect(night: Night, health: Health, page: Path) -> None:
    """Hit rates and drift as tables, the look as a few lines."""
    if health.follow_up and health.follow_up.users:
        rows = [
            {"list": name.replace("_", "-"), "hit rate@10": percent(rate.value), "users": health.follow_up.users}
            for name, rate in health.follow_up.hit_rate.items()
        ]
        create_table_artifact(rows, key="monitor-served", description=health.decay.sentence)
    if health.drift:
        fields = [
            {
                "field": field.field,
                "PSI": decimal(field.psi, 3),
                "by chance up to": decimal(field.by_chance, 3),
                "drifted": "yes" if field.drifted else "no",
            }
            for field in health.drift.fields
        ]
        create_table_artifact(
            fields, key="monitor-drift", description="New events against the champion's training data"
        )
    lines = [f"# {health.sentence}", ""]
    lines += [f"- **{alarm.kind}**: {alarm.advice}" for alarm in health.alarms]
    lines += [f"- {age.sentence}" for age in health.ages] + [f"- {literal(plain(note, 300))}" for note in health.notes]
    lines += [f"- MLflow run: `{night.run_id}`", f"- Page: `{page}`"]
    create_markdown_artifact("\n".join(lines), key="monitor", description="What the monitor saw")


def _announce(at: Step, health: Health, monitor: MonitorConfig) -> tuple[Happening, ...]:
    """Decay and missed nights, each at most once a day (UTC) for one champion, however often the monitor looks."""
    announced: list[Happening] = []
    for alarm in health.alarms:
        if alarm.kind == "decayed" and _first_today(at, f"decayed-{health.champion}"):
            change = health.decay.change
            announce(
                "recsys.model.decayed",
                f"{alarm.sentence}. {alarm.advice}",
                {
                    "champion": health.champion,
                    "on_decay": monitor.on_decay,
                    "change": change.value if change else None,
                    "at_most": change.high if change else None,
                },
            )
            announced.append("recsys.model.decayed")
        if alarm.kind == "missed" and _first_today(at, f"missed-{max(health.missed)}"):
            announce("recsys.night.missed", alarm.sentence, {"missed": len(health.missed)})
            announced.append("recsys.night.missed")
    return tuple(announced)


def _first_today(at: Step, what: str) -> bool:
    """Whether nobody has announced this today; from now on somebody has."""
    name = f"announced-{what}-{datetime.now(UTC):%Y%m%d}"
    first: str = at.store.once(name, {"run_id": at.night.run_id})["run_id"]
    return first == at.night.run_id
