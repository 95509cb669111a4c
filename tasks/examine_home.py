"""examine: the doctor's checkup as a task, which lets the world know when it sees red."""

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from recsys.config import MonitorConfig
from recsys.wording import literal
from tasks.adapters.settings import Settings
from tasks.announce import announce
from tasks.checkup import check
from tasks.finding import Tone, several
from tasks.night import TASK_OPTIONS


class Health(BaseModel):
    """What the doctor found, for a flow's result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worst: Tone
    red: tuple[str, ...]  # "name: sentence" of each red line
    yellow: tuple[str, ...]


@task(name="examine", **TASK_OPTIONS)
def examine_home(monitor: MonitorConfig) -> Health:
    """Examines the home that the environment names. Announces `recsys.home.unwell` when a line is red."""
    found = check(Settings.from_environment(), monitor)
    red, yellow = ([f"{line.name}: {line.sentence}" for line in found.of(tone)] for tone in ("red", "yellow"))
    rows = [
        {"": line.tone, "check": line.name, "found": literal(line.sentence), "mend": literal(line.mend)}
        for line in found.lines
    ]
    create_table_artifact(rows, key="health", description=f"The home is {found.worst}")
    for sentence in red:
        get_run_logger().warning("%s", sentence)
    if red:
        announce("recsys.home.unwell", several(red), {"red": len(red), "yellow": len(yellow)})
    return Health(worst=found.worst, red=tuple(red), yellow=tuple(yellow))
