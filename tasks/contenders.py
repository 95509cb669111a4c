"""Contenders: which versions may become the champion, which only with a person's name, and why the others may not."""

from collections.abc import Sequence
from dataclasses import dataclass

from recsys.errors import RegistryError
from tasks.adapters.registry import DECISION, DUPLICATE, INTENT, STUDENT, Registry, Version
from tasks.approval import Question, how_to_approve


@dataclass(frozen=True)
class Contender:
    """One version, and what stands between it and the alias champion."""

    version: Version
    why_not: str  # a clause; empty when it may become the champion
    needs_approval: str  # why only with a name and a reason; empty when the gate's word is enough
    question: Question | None

    @property
    def number(self) -> int:
        """Of the version."""
        return self.version.number

    @property
    def decision(self) -> str:
        """What the gate said of it; empty when it was never asked."""
        return self.version.tags.get(DECISION, "")


def contenders(registry: Registry) -> list[Contender]:
    """Every version, lowest first, duplicates included."""
    first: dict[str, int] = {}
    found = []
    for version in registry.all_versions(STUDENT):
        intent = version.tags.get(INTENT, f"version {version.number}")
        found.append(_contender(version, first.setdefault(intent, version.number)))
    return found


def chosen(found: Sequence[Contender], number: int) -> Contender:
    """The contender of a number. RegistryError, with those there are, when it is none."""
    one = next((contender for contender in found if contender.number == number), None)
    if one is None:
        raise RegistryError(f"{STUDENT} has no version {number}", mend=listed(found))
    if one.why_not:
        raise RegistryError(f"{STUDENT} version {number} {one.why_not}", mend=listed(found))
    return one


def listed(found: Sequence[Contender]) -> str:
    """A sentence with the numbers that may be chosen."""
    free = [str(one.number) for one in found if not (one.why_not or one.needs_approval)]
    named = [f"{one.number} ({one.needs_approval})" for one in found if one.needs_approval and not one.why_not]
    parts = [f"There are: {', '.join(free)}."] if free else []
    parts += [f"With --approve NAME --reason TEXT: {', '.join(named)}."] if named else []
    return " ".join(parts) or "There is none that may be chosen: run recsys nightly."


def approval_missing(one: Contender) -> RegistryError:
    """The refusal of a version that needs a person's name."""
    return RegistryError(
        f"{STUDENT} version {one.number} {one.needs_approval}: a person must approve it",
        mend=f"If you do: {how_to_approve(one.number)}.",
    )


def _contender(version: Version, first: int) -> Contender:
    question, damage = None, ""
    try:
        question = Question.of(version)
    except RegistryError as error:
        damage = str(error)
    original = version.tags.get(DUPLICATE, "" if first == version.number else str(first))
    why_not = ""
    if original:
        why_not = f"is a duplicate of version {original}, from a response that was lost"
    elif not version.digest:
        why_not = "was not registered by a night: its files have no digest to compare with"
    elif version.remembers:
        why_not = version.remembers
    elif damage:
        why_not = f"cannot be looked at: {damage}"
    return Contender(version, why_not, _needs_approval(version, question), question)


def _needs_approval(version: Version, question: Question | None) -> str:
    if version.tags.get(DECISION) == "REJECT":
        return "was rejected by the gate"
    if question is None or question.state == "approved":
        return ""
    return "waits for approval" if question.waits else f"was {question.state} when it waited for approval"
