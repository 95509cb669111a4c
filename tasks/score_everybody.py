"""score-everybody: the champion's best items for every user, as the home's newest batch scores."""

import time
from typing import cast
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.batch_scores import Published, publish
from tasks.last_night import LastNight
from tasks.night import TASK_OPTIONS, TOLD_EVERY
from tasks.opening import open_build
from tasks.show_workers import show_workers
from tasks.workshop import Workshop


@task(name="score-everybody", **TASK_OPTIONS)
def score_everybody(k: int) -> Published:
    """Makes them, or finds them made; says in the log how far it is."""
    workshop, logger = Workshop.here(), get_run_logger()
    users = open_build(workshop.store, LastNight.of(workshop.store).dataset).users
    progress = _Progress(users)
    published = publish(workshop, k, progress.tell, show_workers)
    progress.end()
    for note in published.notes:
        logger.warning("%s", note)
    found = "were there" if published.reused else "are written"
    logger.info("%s", f"batch scores {published.scores.name} {found}: {published.scores.users:,} users")
    return published


class _Progress:
    """A progress bar on the run's page, moved at most every two seconds."""

    def __init__(self, users: int) -> None:
        self.users, self._told = users, time.monotonic()
        self._artifact = cast(UUID, create_progress_artifact(0.0, key="progress-score", description="Scoring"))

    def tell(self, done: int) -> None:
        """So many users are done."""
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._told = time.monotonic()
            share = min(99.0, round(100 * done / max(self.users, 1), 1))
            update_progress_artifact(self._artifact, share, description=f"Scoring: {done:,} of {self.users:,} users")

    def end(self) -> None:
        """All are."""
        update_progress_artifact(self._artifact, 100.0, description="Scoring")
