"""Answers to a candidate that waits for approval: who is asked, and what becomes of what they say. No orchestrator."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from recsys.errors import RegistryError
from tasks.adapters.registry import STUDENT
from tasks.approval import GRACE, Answer, Question, awaited_by, close, expire
from tasks.change_champion import Move, Moved, change_champion
from tasks.contenders import Contender, chosen, contenders, listed
from tasks.workshop import Workshop


class Asked(BaseModel):
    """Which version a run of promote is about, and whether a person is to be waited for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    state: Literal["free", "waiting", "answered"]  # free: nobody needs to be asked, or somebody answers for it already
    sentence: str = ""
    patience: int = 0  # seconds until Prefect gives the suspended run up, long after the question has expired
    champion: int | None = None

    def as_answered(self) -> Moved:
        """What a run ends with whose question was answered elsewhere."""
        return Moved(changed=False, version=self.version, champion=self.champion, sentence=self.sentence)


def look_up(workshop: Workshop, version: int | None, approver: str, now: datetime, run: str) -> Asked:
    """The version meant, the challenger where none is named. A question whose time is over is closed on the way.

    `run` is the flow run that would wait, empty where it cannot. It is noted with the question, so that the run goes on
    with the same version whoever is challenger by then; one run waits for a question, another one is told of it.
    """
    one = _meant(workshop, version, run)
    question, champion = one.question, workshop.ledger.chain().champion
    if question is None or approver or one.number == champion:
        return Asked(version=one.number, state="free")
    if question.waits and question.until <= now:
        question = expire(workshop, question)
    said = question.sentence
    if question.waits and not run:
        return Asked(version=one.number, state="free")
    if question.waits and question.run in ("", run):
        awaited_by(workshop, question, run)
        patience = int((question.until - now + GRACE).total_seconds())
        said = f"{said}. {one.version.sentence}"
        return Asked(version=one.number, state="waiting", sentence=said, patience=patience)
    if question.waits:
        said = f"{said}, and another run of promote waits for the answer already"
    return Asked(version=one.number, state="answered", sentence=said, champion=champion)


def _meant(workshop: Workshop, version: int | None, run: str) -> Contender:
    found = contenders(workshop.registry)
    mine = (one.number for one in found if run and one.question and one.question.run == run)
    number = next(mine, version)
    if number is None:
        number = workshop.registry.aliases(STUDENT).get("challenger")
    if number is None:
        raise RegistryError(f"{STUDENT} has no challenger", mend=f"Name a version. {listed(found)}")
    return chosen(found, number)


def answer_approval(workshop: Workshop, asked: Asked, answer: Answer, now: datetime) -> Moved:
    """Moves the champion or closes the question. An answer that comes after another one changes nothing."""
    question = _question(workshop, asked.version)
    if question.waits and answer.answer == "approve":
        move = Move(op="promote", to=asked.version, actor=answer.name, reason=answer.reason, approved=True, at=now)
        try:
            return change_champion(workshop, move)
        except RegistryError as error:
            question = _question(workshop, asked.version)
            if question.waits:  # neither too late nor overtaken: something is wrong with the version
                raise
            return _unchanged(workshop, question, str(error))
    if question.waits:
        question = close(workshop, question, "refused", answer.name, answer.reason)
    return _unchanged(workshop, question, question.sentence)


def _question(workshop: Workshop, version: int) -> Question:
    question = Question.of(workshop.registry.version(STUDENT, version))
    if question is None:
        raise RegistryError(f"nobody asked about {STUDENT} version {version}")
    return question


def _unchanged(workshop: Workshop, question: Question, sentence: str) -> Moved:
    champion = workshop.ledger.chain().champion
    return Moved(changed=False, version=question.version, champion=champion, sentence=sentence)
