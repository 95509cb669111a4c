"""Promote a version: by its verdict, or because a person answers for it; waits for the person where one must be asked.

A run that waits is suspended: no process, no worker and no slot is held. It goes on when somebody answers in Prefect,
when `recsys promote --approve` has answered, or when the monitor finds that the time is over; then it ends in order.
"""

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow, task
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from tasks.answer_approval import Asked, answer_approval, look_up
from tasks.approval import Answer
from tasks.change_champion import Move, Moved, change_champion
from tasks.night import TASK_OPTIONS, sentences_instead_of_tracebacks
from tasks.tell_move import tell_move
from tasks.workshop import Workshop

SUSPENSION = "approval"
"""Name of the suspension: a run that goes on finds its answer under it."""


class Approval(RunInput, Answer):
    """May this version become the champion?"""


def run_name() -> str:
    """The version, as people look for it."""
    version = flow_run.parameters.get("version")
    return f"promote version {version}" if version else "promote the challenger"


@flow(name="promote", flow_run_name=run_name, persist_result=False)
def promote(
    version: Annotated[int | None, Field(ge=1)] = None,
    approver: Annotated[str, Field(max_length=80)] = "",
    reason: Annotated[str, Field(max_length=500)] = "",
) -> Moved:
    """Make a version the champion. One that waits for approval, without an approver, suspends until it is answered.

    Args:
        version: Of recsys-student. Empty: the challenger.
        approver: Who answers for it by name, where the gate's word is not enough. Empty: nobody needs to, or is asked.
        reason: Why. Is kept in the ledger.
    """
    sentences_instead_of_tracebacks()
    asked = look(version, approver)
    if asked.state == "answered":
        return tell(asked.as_answered())
    if asked.state == "free":
        return tell(move(asked.version, approver, reason))
    question = Approval.with_initial_data(description=asked.sentence)
    said = suspend_flow_run(wait_for_input=question, timeout=asked.patience, key=SUSPENSION)
    return tell(answer(asked, Answer(answer=said.answer, name=said.name, reason=said.reason)))


@task(name="look-up", **TASK_OPTIONS)
def look(version: int | None, approver: str) -> Asked:
    """Which version is meant, and whether somebody is to be waited for. Only a deployment's run can wait."""
    run = str(flow_run.id) if deployment.id else ""
    return look_up(Workshop.here(), version, approver, datetime.now(UTC), run)


@task(name="change-champion", **TASK_OPTIONS)
def move(version: int, approver: str, reason: str) -> Moved:
    """The promotion itself."""
    now = datetime.now(UTC)
    wanted = Move(op="promote", to=version, actor=approver or "Prefect", reason=reason, approved=bool(approver), at=now)
    return change_champion(Workshop.here(), wanted)


@task(name="answer-approval", **TASK_OPTIONS)
def answer(asked: Asked, said: Answer) -> Moved:
    """What a person said: moves the champion, or closes the question."""
    return answer_approval(Workshop.here(), asked, said, datetime.now(UTC))


@task(name="tell", **TASK_OPTIONS)
def tell(moved: Moved) -> Moved:
    """Says on the run's page what came of it."""
    return tell_move(moved)
