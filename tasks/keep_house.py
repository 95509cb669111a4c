"""Housekeeping of a home: questions that expired, runs whose process died, garbage of the store, and a check of the rest."""

from datetime import UTC, datetime

from prefect import task
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict

from recsys.retention import RetentionConfig
from recsys.wording import count, literal, plain, size
from tasks.announce import announce
from tasks.approval import expire_waiting
from tasks.check_home import check_home
from tasks.check_store import read_store
from tasks.collect_garbage import collect_garbage
from tasks.forget_runs import Forgotten
from tasks.night import TASK_OPTIONS
from tasks.workshop import Workshop


class Tidied(BaseModel):
    """What housekeeping came to."""

    model_config = ConfigDict(frozen=True)

    expired: int  # candidates that nobody approved in time
    closed: int  # runs of MLflow whose process had died
    freed: int  # bytes of the home, by the store's garbage
    runs: int  # of Prefect's that were forgotten
    faults: tuple[str, ...]  # what fsck finds; empty: all is well


@task(name="expire", **TASK_OPTIONS)
def expire_approvals() -> int:
    """Rejects candidates that wait longer than they may."""
    return len(expire_waiting(Workshop.here(), datetime.now(UTC)))


@task(name="close", **TASK_OPTIONS)
def close_dead_runs() -> int:
    """Closes what killed nights left open in MLflow. Their metrics stay: they are evidence."""
    return Workshop.here().tracking.close_dead()


@task(name="gc", **TASK_OPTIONS)
def free_store(retention: RetentionConfig) -> int:
    """Garbage collection, beside whatever runs; bytes."""
    freed = collect_garbage(Workshop.here(), retention)
    lines = "\n".join(f"| {each.kind} | {count(each.things)} | {size(each.bytes)} |" for each in freed)
    table = f"| What | Files and folders | Size |\n|---|---|---|\n{lines}" if freed else "Nothing was to be freed."
    create_markdown_artifact(table, key="garbage", description="What garbage collection freed")
    return sum(each.bytes for each in freed)


@task(name="check", **TASK_OPTIONS)
def check_the_rest() -> tuple[str, ...]:
    """fsck without repair. What it finds is told to people."""
    workshop = Workshop.here()
    lines = check_home(workshop, read_store(workshop), repair=False)
    faults = tuple(f"{line.fault.part}: {plain(line.fault.what, 300)}. {line.fault.mend}." for line in lines)
    if faults:
        announce("recsys.home.unwell", f"fsck finds {len(faults)} things to be mended: {faults[0]}", {})
    return faults


@task(name="tell", **TASK_OPTIONS)
def tell_tidied(expired: int, closed: int, freed: int, forgotten: Forgotten, faults: tuple[str, ...]) -> Tidied:
    """The week in a few lines."""
    found = "\n".join(f"- {literal(fault)}" for fault in faults) or "- All is well."
    create_markdown_artifact(
        f"- {count(expired)} candidates expired that nobody approved\n"
        f"- {count(closed)} runs in MLflow closed whose process had died\n"
        f"- {size(freed)} freed in the store\n"
        f"- {count(forgotten.runs)} old runs and {count(forgotten.artifacts)} artifacts removed from Prefect, "
        f"{size(forgotten.bytes)}\n\n## fsck\n\n{found}\n",
        key="housekeeping",
        description="What housekeeping came to",
    )
    return Tidied(expired=expired, closed=closed, freed=freed, runs=forgotten.runs, faults=faults)
