"""Approval: a candidate that the gate found fit waits until a person has approved it, refused it, or let it expire.

The question is kept as tags of the registered version, where everybody sees it: MLflow's page, the command line and
the suspended run of the flow promote. Whoever answers first closes it for all. Knows no orchestrator, except that
a run which waits for the answer is told of it.
"""

import contextlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal, Self, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from recsys import wording
from recsys.errors import RegistryError
from recsys.verdict import Verdict
from tasks.adapters.registry import STUDENT, Registry, Version
from tasks.announce import announce_if_heard
from tasks.workshop import Workshop

State = Literal["waiting", "approved", "refused", "expired", "overtaken"]
Mode = Literal["auto", "manual", "when_strong"]

NOBODY = "nobody"
GRACE = timedelta(days=7)
"""How long after the question has expired Prefect still holds the run that waits, before it calls it failed."""

_STATE = "recsys.approval"
_UNTIL = "recsys.approval_until"
_EXPECTED = "recsys.approval_expected"
_RUN = "recsys.approval_run"
_BY = "recsys.approval_by"
_REASON = "recsys.approval_reason"


class Answer(BaseModel):
    """What a person says to a candidate that waits."""

    model_config = ConfigDict(extra="forbid")

    answer: Literal["approve", "refuse"] = Field(title="Answer", description="approve: it becomes the champion")
    name: str = Field(min_length=1, max_length=80, title="Your name", description="Is kept with the decision")
    reason: str = Field(min_length=1, max_length=500, title="Reason", description="Is kept with the decision")


@dataclass(frozen=True)
class Question:
    """Whether a version may become the champion. Its evidence compares it with the champion of record `expected`."""

    version: int
    state: State
    until: datetime
    expected: int
    run: str = ""  # the Prefect flow run that waits for the answer, if one does
    by: str = ""
    reason: str = ""

    @classmethod
    def of(cls, version: Version) -> Self | None:
        """The question in a version's tags; None where none was asked. RegistryError when they make no sense."""
        if _STATE not in version.tags:
            return None
        tags = version.tags
        try:
            if tags[_STATE] not in get_args(State):
                raise ValueError(tags[_STATE])
            until, expected = datetime.fromisoformat(tags[_UNTIL]).astimezone(UTC), int(tags[_EXPECTED])
        except (KeyError, ValueError) as error:
            raise RegistryError(
                f"the tags {_STATE}* of {STUDENT} version {version.number} were damaged: {error}",
                mend="Mend or delete them in MLflow.",
            ) from error
        others = (tags.get(_RUN, ""), tags.get(_BY, ""), tags.get(_REASON, ""))
        return cls(version.number, tags[_STATE], until, expected, *others)  # type: ignore[arg-type]

    @property
    def waits(self) -> bool:
        """Whether nobody has answered yet."""
        return self.state == "waiting"

    @property
    def sentence(self) -> str:
        """For people."""
        if self.waits:
            return f"version {self.version} waits for approval until {_moment(self.until)}"
        if self.state == "expired":
            return f"version {self.version} is rejected: nobody approved it until {_moment(self.until)}"
        if self.state == "overtaken":
            return f"version {self.version} was overtaken: {self.reason}"
        return f"version {self.version} was {self.state} by {self.by}: {self.reason}"


def needed(mode: Mode, verdict: Verdict) -> bool:
    """Whether a person is asked about a candidate that the gate would promote. when_strong: unless all is proven."""
    return mode == "manual" or (mode == "when_strong" and not all(row.proven for row in verdict.criteria))


def how_to_approve(version: int) -> str:
    """The command."""
    return f"recsys promote --version {version} --approve NAME --reason TEXT"


def ask(workshop: Workshop, version: int, expected: int, until: datetime) -> Question:
    """Puts the question, and the alias challenger on the version."""
    question = Question(version, "waiting", until.astimezone(UTC), expected)
    tags = {_UNTIL: question.until.isoformat(timespec="seconds"), _EXPECTED: str(expected), _STATE: "waiting"}
    workshop.registry.set_tags(STUDENT, version, tags)
    workshop.registry.set_alias(STUDENT, "challenger", version)
    return question


def awaited_by(workshop: Workshop, question: Question, run: str) -> Question:
    """Notes the Prefect flow run that waits for the answer."""
    workshop.registry.set_tags(STUDENT, question.version, {_RUN: run})
    return replace(question, run=run)


def close(workshop: Workshop, question: Question, state: State, by: str, reason: str) -> Question:
    """Records the answer with the version and tells the flow run that waits for it.

    Approving moves no alias: that is tasks/change_champion.py. Every other answer takes the alias challenger away and
    is announced as a rejection.
    """
    by, reason = wording.plain(by, 80), wording.plain(reason, 500)
    closed = replace(question, state=state, by=by, reason=reason)
    workshop.registry.set_tags(STUDENT, question.version, {_BY: by, _REASON: reason, _STATE: state})
    if state != "approved":
        no_longer_challenger(workshop.registry, question.version)
        details: dict[str, str | int | float | None] = {"version": question.version, "actor": by, "approval": state}
        announce_if_heard(workshop.settings, "recsys.model.rejected", closed.sentence, details)
    if question.run and workshop.settings.orchestrator:
        _resume(question.run, state == "approved", by, reason)
    return closed


def expire(workshop: Workshop, question: Question) -> Question:
    """Rejects what nobody approved in time. The ledger is not touched."""
    return close(workshop, question, "expired", NOBODY, "nobody approved it in time")


def expire_waiting(workshop: Workshop, now: datetime) -> tuple[Question, ...]:
    """Rejects every candidate that waits longer than it may, and gives them. For the monitor's schedule."""
    waiting = []
    for version in workshop.registry.versions(STUDENT):
        with contextlib.suppress(RegistryError):  # damaged tags: told to whoever wants to promote that version
            question = Question.of(version)
            waiting += [question] if question and question.waits else []
    late = [question for question in waiting if question.until <= now and not settled_by_ledger(workshop, question)]
    return tuple(expire(workshop, question) for question in late)


def settled_by_ledger(workshop: Workshop, question: Question) -> bool:
    """Whether it was promoted and only its tags do not say so: whoever did it was killed in between. Mends them."""
    records = workshop.ledger.chain().records
    won = next((r for r in records if (r.to, r.expected) == (question.version, question.expected)), None)
    if won is not None:
        close(workshop, question, "approved", won.actor, won.reason)
    return won is not None


def no_longer_challenger(registry: Registry, version: int) -> None:
    """Takes the alias challenger from a version that is none any more."""
    if registry.aliases(STUDENT).get("challenger") == version:
        registry.set_alias(STUDENT, "challenger", None)


def _resume(run: str, approved: bool, by: str, reason: str) -> None:
    """Lets a suspended run of the flow promote end. One that ended or goes on by itself needs no telling."""
    import httpx
    from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
    from prefect.flow_runs import resume_flow_run

    said = Answer(answer="approve" if approved else "refuse", name=by, reason=reason)
    with contextlib.suppress(NotPausedError, FlowPauseTimeout, ObjectNotFound, RuntimeError, httpx.HTTPError):
        resume_flow_run(UUID(run), run_input=said.model_dump())


def _moment(at: datetime) -> str:
    return wording.moment(int(at.timestamp()))
