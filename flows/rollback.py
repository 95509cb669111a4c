"""Roll back: an earlier champion serves again, with the catalog and the item vectors that are part of it."""

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow, task
from prefect.runtime import flow_run
from pydantic import Field

from tasks.change_champion import Move, Moved, change_champion
from tasks.night import TASK_OPTIONS, sentences_instead_of_tracebacks
from tasks.tell_move import tell_move
from tasks.workshop import Workshop


def run_name() -> str:
    """Where it goes back to, as people look for it."""
    to = flow_run.parameters.get("to")
    return f"roll back to version {to}" if to else "roll back to the champion before"


@flow(name="rollback", flow_run_name=run_name, persist_result=False)
def rollback(
    name: Annotated[str, Field(min_length=1, max_length=80)],
    reason: Annotated[str, Field(min_length=1, max_length=500)],
    to: Annotated[int | None, Field(ge=1)] = None,
) -> Moved:
    """Make an earlier champion the champion again.

    Args:
        name: Who you are. Is kept in the ledger.
        reason: Why. Is kept in the ledger.
        to: The version of an earlier champion. Empty: the one before this one.
    """
    sentences_instead_of_tracebacks()
    return tell(move(name, reason, to))


@task(name="change-champion", **TASK_OPTIONS)
def move(name: str, reason: str, to: int | None) -> Moved:
    """The rollback itself."""
    wanted = Move(op="rollback", to=to, actor=name, reason=reason, at=datetime.now(UTC))
    return change_champion(Workshop.here(), wanted)


@task(name="tell", **TASK_OPTIONS)
def tell(moved: Moved) -> Moved:
    """Says on the run's page what came of it."""
    return tell_move(moved)
