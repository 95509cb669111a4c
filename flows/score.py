"""Batch scores: the champion's recommendations for every user, each morning and after each promotion."""

from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from tasks.batch_scores import BatchScores
from tasks.night import sentences_instead_of_tracebacks
from tasks.score_everybody import score_everybody
from tasks.tell_scores import tell_scores


def run_name() -> str:
    """The time it was scheduled for."""
    return f"score {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="score", flow_run_name=run_name, persist_result=False)
def score(
    k: Annotated[int, Field(ge=1, le=1000, title="Items a user", description="Of the best (count)")] = 10,
) -> BatchScores:
    """Score everybody who has events. The same dataset, champion and number of items again is found, not made."""
    sentences_instead_of_tracebacks()
    published = score_everybody(k)
    return tell_scores(published)
