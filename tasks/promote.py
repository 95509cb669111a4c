"""promote: register what was judged, with its verdict; move the champion only by the ledger's compare-and-set."""

import getpass

from prefect import task

from recsys.gate import Verdict
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT, TEACHER, Example
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.refs import ArtifactRef, Outcome, ReportsRef, VerdictRef

EXAMPLE = Example(
    inputs={"history": [["an item id", "a later one"]]},
    outputs={"item_ids": [["an item id"]], "scores": [[1.0]], "sources": [["model"]]},
    params={"k": 10},
)


@task(name="promote", **TASK_OPTIONS)
def promote(night: Night, artifact: ArtifactRef, reports: ReportsRef, verdict: VerdictRef) -> Outcome:
    """PROMOTE moves the alias champion, HOLD the alias challenger, REJECT none; all are registered."""
    with step(night, "promote", "Registering and promoting") as at:
        if verdict.decision == "NO CHANGE":
            at.idle = True
            standing = reports.standing.version
            return Outcome(
                decision="NO CHANGE",
                sentence=verdict.sentence,
                advice="Nothing to do.",
                verdict=verdict,
                version=standing,
                champion=standing,
            )
        folder = at.store.open("judge", verdict.digest)
        _register_teacher(at, artifact, Verdict.from_json((folder / "teacher.json").read_text()))
        decided = Verdict.from_json((folder / "verdict.json").read_text())
        return _settle(at, artifact, reports, verdict, decided)


def _settle(at: Step, artifact: ArtifactRef, reports: ReportsRef, ref: VerdictRef, verdict: Verdict) -> Outcome:
    """Registers once for this artifact and this evidence; the same again is NO CHANGE."""
    intent = f"{artifact.digest}-{ref.digest}"
    judged_before = at.registry.by_intent(STUDENT, intent)
    version = at.registry.register(
        STUDENT,
        at.store.open("artifact", artifact.digest),
        "recsys.runtime",
        run_id=at.night.run_id,
        intent=intent,
        tags={
            "recsys.decision": verdict.decision,
            "recsys.student": artifact.student,
            "recsys.teacher": artifact.teacher,
            "recsys.dataset": artifact.dataset,
            "recsys.verdict": ref.digest,
            **{f"criterion.{c.name}": c.outcome for c in verdict.criteria},
        },
        description=verdict.sentence,
        example=EXAMPLE,
    )
    decision, sentence, advice = verdict.decision, verdict.sentence, verdict.advice
    champion = reports.standing.version
    if verdict.decision == "PROMOTE":
        at.registry.load_check(STUDENT, version)
        promotion = at.ledger.append(
            Entry("promote", version, reports.standing.record, ref.digest, getpass.getuser(), sentence)
        )
        champion = promotion.chain.champion
        if not promotion.won:
            decision, sentence = "HOLD", promotion.sentence
            advice = "Run the night again: it will compare with the new champion."
    elif verdict.decision == "HOLD":
        at.registry.set_alias(STUDENT, "challenger", version)
    if judged_before and decision == verdict.decision and decision != "PROMOTE":
        decision, sentence = ("NO CHANGE", f"this candidate was judged before on the same evidence: {verdict.sentence}")
    at.tell(f"version {version}: {decision}")
    return Outcome(decision=decision, sentence=sentence, advice=advice, verdict=ref, version=version, champion=champion)


def _register_teacher(at: Step, artifact: ArtifactRef, verdict: Verdict) -> None:
    """Every teacher is a version; the alias champion goes to one that clears the baselines and its predecessor."""
    version = at.registry.register(
        TEACHER,
        at.store.open("teach", artifact.teacher),
        "recsys.teachers",
        run_id=at.night.run_id,
        intent=artifact.teacher,
        tags={"recsys.decision": verdict.decision},
        description=verdict.sentence,
    )
    if verdict.decision == "PROMOTE" and at.registry.aliases(TEACHER).get("champion") != version:
        at.registry.set_alias(TEACHER, "champion", version)
        at.tell(f"teacher version {version} is champion: {verdict.sentence}")
