"""Asks a person about a candidate: puts the question, announces it, and starts the flow run that waits for the answer.

The night goes on and ends. Under a deployment a run of `promote` is started and suspends itself, so that nothing holds
a slot while it waits; where no server runs the command line is the only way to answer.
"""

from datetime import datetime
from typing import cast

from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment

from tasks.adapters.registry import STUDENT
from tasks.announce import announce
from tasks.approval import Question, ask, awaited_by, how_to_approve
from tasks.night import Step

DEPLOYMENT = "promote/promote"


def ask_approval(at: Step, version: int, expected: int, until: datetime, known: Question | None) -> Question:
    """The question about a version, put now unless it was before. `expected` is the record it was compared under."""
    question = known or ask(at.workshop, version, expected, until)
    if known is None:
        said = f"{question.sentence}: {how_to_approve(version)}"
        details: dict[str, str | int | float | None] = {
            "version": version,
            "until": question.until.isoformat(timespec="seconds"),
        }
        announce("recsys.model.waiting", f"{STUDENT} {said}", details)
        at.tell(said)
    if question.waits and not question.run and deployment.id:
        return _await_answer(at, question)
    return question


def _await_answer(at: Step, question: Question) -> Question:
    """Starts the run that waits. Started twice, by a night that was killed in between, it is the same run."""
    try:
        run = run_deployment(
            DEPLOYMENT,
            parameters={"version": question.version},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"approval-of-version-{question.version}-{question.until.isoformat()}",
        )
    except ObjectNotFound:
        at.logger.warning("there is no deployment %s: approve with recsys promote", DEPLOYMENT)
        return question
    return awaited_by(at.workshop, question, str(cast(FlowRun, run).id))
