"""change-champion: one version becomes the champion, by promotion or rollback, or a sentence says why not.

    settle the alias -> choose -> load test in a clean process -> ledger's compare-and-set -> aliases read back

Knows no orchestrator: the command line calls it as it is, the flows promote and rollback as a Prefect task.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from recsys.errors import ConfigError, RegistryError
from tasks.adapters.ledger import Chain, Entry
from tasks.adapters.registry import STUDENT, VERDICT
from tasks.announce import announce_if_heard
from tasks.approval import close, expire, no_longer_challenger, settled_by_ledger
from tasks.contenders import Contender, approval_missing, chosen, contenders, listed
from tasks.eras import mark_earlier
from tasks.settle_alias import settle_alias
from tasks.workshop import Workshop


class Move(BaseModel):
    """What is asked for, by whom and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: Literal["promote", "rollback"]
    to: int | None = None  # None: promote the challenger, roll back to the champion before
    actor: str
    reason: str = ""
    approved: bool = False  # the actor answers for it by name
    at: datetime


class Moved(BaseModel):
    """What became of it. A version that is the champion already is left alone: `changed` is false."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    changed: bool
    version: int
    champion: int | None  # afterwards
    sentence: str
    notes: tuple[str, ...] = ()  # what else was found and settled on the way


def change_champion(workshop: Workshop, move: Move) -> Moved:
    """Makes a version the champion.

    RegistryError, with the versions that may be chosen, for one that does not exist, is a duplicate or has no digest,
    that needs an approval which was not given, that fails the load test, and when the champion changed meanwhile.
    ConfigError for a rollback or an approval without a reason.
    """
    if not move.reason and (move.approved or move.op == "rollback"):
        what = "an approval" if move.approved else "a rollback"
        raise ConfigError(f"{what} needs a reason", where="reason", mend="Say why: it is kept in the ledger.")
    mark_earlier(workshop)
    settled = settle_alias(workshop)
    notes = (settled.sentence,) if settled else ()
    chain = workshop.ledger.chain().require_intact()
    found = contenders(workshop.registry)
    one = _promotable(workshop, found, move) if move.op == "promote" else _returnable(chain, found, move)
    if one.number == chain.champion:
        if one.question and one.question.waits:
            settled_by_ledger(workshop, one.question)
        said = f"{STUDENT} version {one.number} is the champion already"
        return Moved(changed=False, version=one.number, champion=chain.champion, sentence=said, notes=notes)
    if move.op == "promote":
        _require_approval(workshop, one, move)
    workshop.registry.load_check(STUDENT, one.number)
    after = _append(workshop, chain, one, move)
    _afterwards(workshop, chain, one, move)
    said = f"{STUDENT} version {one.number} is the champion, after {_named(chain.champion)}"
    return Moved(changed=True, version=one.number, champion=after.champion, sentence=said, notes=notes)


def _promotable(workshop: Workshop, found: list[Contender], move: Move) -> Contender:
    """The version named, else the challenger."""
    number = move.to if move.to is not None else workshop.registry.aliases(STUDENT).get("challenger")
    if number is None:
        raise RegistryError(f"{STUDENT} has no challenger", mend=f"Name a version. {listed(found)}")
    return chosen(found, number)


def _returnable(chain: Chain, found: list[Contender], move: Move) -> Contender:
    """The earlier champion named, else the one before this one."""
    earlier = [one for one in found if one.number in chain.served and not one.why_not]
    there = f"Earlier champions: {', '.join(str(one.number) for one in earlier) or 'none'}."
    number = move.to if move.to is not None else chain.previous
    if number is None:
        raise RegistryError(f"there is no champion before {_named(chain.champion)} to go back to", mend=there)
    if number != chain.champion and number not in {one.number for one in found if one.number in chain.served}:
        was = "was deleted" if number in chain.served else "has never been the champion"
        raise RegistryError(
            f"{STUDENT} version {number} {was}", mend=f"{there} Others are promoted, not rolled back to."
        )
    return chosen(found, number)


def _require_approval(workshop: Workshop, one: Contender, move: Move) -> None:
    """RegistryError without an approval that is needed, or when it comes too late."""
    if one.question and one.question.waits and one.question.until <= move.at:
        raise RegistryError(expire(workshop, one.question).sentence, mend="Run recsys nightly: it evaluates again.")
    if one.needs_approval and not move.approved:
        raise approval_missing(one)


def _append(workshop: Workshop, chain: Chain, one: Contender, move: Move) -> Chain:
    """The record, the aliases after it. Who waited for approval is compared with the champion of that night."""
    waited = one.question if move.op == "promote" and one.question and one.question.waits else None
    reason = move.reason or "by hand"
    if move.op == "promote" and one.decision != "PROMOTE":
        reason = f"{reason} (the gate said {one.decision or 'nothing'})"
    outcome = workshop.ledger.append(
        Entry(
            op=move.op,
            to=one.number,
            expected=waited.expected if waited else chain.last,
            evidence=one.version.tags.get(VERDICT, ""),
            actor=move.actor,
            reason=reason,
        )
    )
    if not outcome.won:
        if waited:
            close(workshop, waited, "overtaken", move.actor, outcome.sentence)
        raise RegistryError(outcome.sentence, mend="Run recsys nightly, or look at recsys history and decide anew.")
    return outcome.chain


def _afterwards(workshop: Workshop, before: Chain, one: Contender, move: Move) -> None:
    """The version's tags, the alias challenger, and the news."""
    if move.op == "promote" and one.question and one.question.state != "approved":
        close(workshop, one.question, "approved", move.actor, move.reason)
    no_longer_challenger(workshop.registry, one.number)
    verb = "promoted" if move.op == "promote" else "rolled back to"
    said = f"{STUDENT} version {one.number} was {verb} by {move.actor}, after {_named(before.champion)}: {move.reason}"
    details = {"from": before.champion, "to": one.number, "actor": move.actor, "op": move.op}
    announce_if_heard(workshop.settings, "recsys.model.promoted", said, details)


def _named(champion: int | None) -> str:
    return "no champion" if champion is None else f"version {champion}"
