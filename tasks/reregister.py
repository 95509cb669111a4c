"""reregister: an artifact whose version was deleted in MLflow becomes a version again, from the store. No orchestrator."""

import getpass
import json
from collections.abc import Mapping

from recsys.artifact import CARD
from recsys.errors import StoreError
from recsys.gate import Verdict
from tasks.adapters.chain import Record
from tasks.adapters.ledger import Entry
from tasks.adapters.packaging import ANSWERS
from tasks.adapters.registry import STUDENT, VERDICT
from tasks.adapters.tracking import OCCASION
from tasks.announce import announce_if_heard
from tasks.model_cards import student_card, verdict_tags
from tasks.workshop import Workshop


def reregister(workshop: Workshop, digest: str) -> int:
    """Registers the artifact `digest` under a new number, and gives it.

    If it is the champion whose version is gone, the ledger says so with a record `repair` and the alias follows: the
    same files, so nothing is judged again. StoreError when the store does not have them either; RegistryError when
    they do not load or the champion changed meanwhile. Asked again it is the same version.
    """
    chain = workshop.ledger.chain().require_intact()
    record = next((record for record in reversed(chain.records) if record.digest == digest), None)
    folder = workshop.store.open("artifact", digest)
    verdict = _verdict(workshop, record)
    lineage = json.loads((folder / CARD).read_text(encoding="utf-8"))["lineage"]
    run_id = workshop.tracking.start_night("registered again", {OCCASION: "registered again"}, {"artifact": digest})
    try:
        number = workshop.registry.register(
            STUDENT,
            folder,
            "recsys.runtime",
            run_id=run_id,
            intent=f"again-{digest}-{chain.last}",
            tags=_tags(record, verdict, lineage),
            description=_card(workshop, digest, record, verdict),
            example=ANSWERS,
        )
    finally:
        workshop.tracking.finish(run_id, "FINISHED")
    if record is not None and record.to == chain.champion and not _there(workshop, record.to):
        _repair(workshop, chain.last, record, number)
    return number


def _repair(workshop: Workshop, last: int, lost: Record, number: int) -> None:
    workshop.registry.load_check(STUDENT, number)
    reason = f"version {lost.to} was deleted in MLflow; these are its files, from the store"
    actor = getpass.getuser()
    outcome = workshop.ledger.append(Entry("repair", number, last, lost.evidence, actor, reason))
    details: dict[str, str | int | float | None] = {"from": lost.to, "to": number, "actor": actor, "op": "repair"}
    if outcome.won:
        announce_if_heard(workshop.settings, "recsys.model.promoted", f"version {number}: {reason}", details)


def _verdict(workshop: Workshop, record: Record | None) -> Verdict | None:
    """What the gate said before the record, if it was asked and the store still knows."""
    if record is None or not record.evidence:
        return None
    try:
        return Verdict.from_json((workshop.store.open("judge", record.evidence) / "verdict.json").read_text())
    except StoreError:
        return None


def _card(workshop: Workshop, digest: str, record: Record | None, verdict: Verdict | None) -> str:
    """Its model card; where the store no longer has what that tells of, the verdict's sentence."""
    if record is None or verdict is None:
        return "Registered again from the store; its verdict is not known."
    try:
        return student_card(workshop.store, digest, record.evidence)
    except StoreError:
        return verdict.sentence


def _tags(record: Record | None, verdict: Verdict | None, lineage: Mapping[str, str]) -> Mapping[str, str]:
    tags = {f"recsys.{name}": lineage[name] for name in ("student", "teacher", "dataset") if name in lineage}
    if record is not None and verdict is not None:
        tags |= {VERDICT: record.evidence, **verdict_tags(verdict)}
    return tags


def _there(workshop: Workshop, number: int) -> bool:
    return any(version.number == number for version in workshop.registry.all_versions(STUDENT))
