"""promote: register what was judged, with its verdict; move the champion only by the ledger's compare-and-set."""

import getpass
from datetime import UTC, datetime, timedelta

from prefect import task

from recsys.gate import Verdict
from tasks.adapters.ledger import Entry
from tasks.adapters.packaging import ANSWERS
from tasks.adapters.registry import LATENCY, STUDENT, TEACHER, VERDICT
from tasks.announce import announce
from tasks.approval import Question, close, how_to_approve, needed
from tasks.ask_approval import ask_approval
from tasks.eras import require_present
from tasks.incumbents import decide_teacher
from tasks.model_cards import student_card, teacher_card, verdict_tags
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.refs import ArtifactRef, DatasetRef, Outcome, Refreshed, ReportsRef, TeacherRef, VerdictRef
from tasks.still_running import require_running


@task(name="promote", **TASK_OPTIONS)
def promote(night: Night, artifact: ArtifactRef, reports: ReportsRef, verdict: VerdictRef) -> Outcome:
    """PROMOTE moves the alias champion, HOLD the alias challenger, REJECT none; all are registered.

    Where a person has the last word (run.approval) a PROMOTE ends as a HOLD that waits for approval.
    """
    with step(night, "promote", "Registering and promoting") as at:
        if verdict.decision == "NO CHANGE":
            at.idle = True
            standing = reports.standing.version
            return Outcome(
                decision="NO CHANGE",
                sentence=verdict.sentence,
                advice="Nothing to do.",
                verdict=verdict,
                version=verdict.version or standing,
                champion=standing,
            )
        _require_standing(at)
        folder = at.store.open("judge", verdict.digest)
        told = Verdict.from_json((folder / "teacher.json").read_text())
        _register_teacher(at, artifact.teacher, told, verdict.digest)
        decided = Verdict.from_json((folder / "verdict.json").read_text())
        return _Candidate(at, artifact, reports, verdict, decided).settle()


@task(name="promote", **TASK_OPTIONS)
def promote_teacher(night: Night, dataset: DatasetRef, teacher: TeacherRef, verdict: VerdictRef) -> Refreshed:
    """Registers a new teacher, which is the champion if it clears the gate. Nights on this dataset use it from then on."""
    with step(night, "promote", "Registering the teacher") as at:
        _require_standing(at)
        decided = Verdict.from_json((at.store.open("judge", verdict.digest) / "teacher.json").read_text())
        before = at.registry.aliases(TEACHER).get("champion")
        version = _register_teacher(at, teacher.digest, decided, verdict.digest)
        champion = at.registry.aliases(TEACHER).get("champion")
        if champion == version:
            decide_teacher(at, dataset, teacher.digest)
        unchanged = champion == version == before
        return Refreshed(
            decision="NO CHANGE" if unchanged else decided.decision,
            sentence=f"teacher version {version} is the champion already" if unchanged else decided.sentence,
            advice="Nothing to do." if unchanged else decided.advice,
            verdict=verdict,
            teacher=teacher,
            version=version,
            champion=champion,
            is_champion=champion == version,
        )


class _Candidate:
    """Tonight's artifact on its way into the registry, once for this artifact and this evidence."""

    def __init__(self, at: Step, artifact: ArtifactRef, reports: ReportsRef, ref: VerdictRef, verdict: Verdict) -> None:
        self.at, self.artifact, self.standing, self.ref, self.verdict = at, artifact, reports.standing, ref, verdict
        intent = f"{artifact.digest}-{ref.digest}"
        self.judged_before = at.registry.by_intent(STUDENT, intent) is not None
        self.version = self._register(intent)

    def settle(self) -> Outcome:
        """Moves the aliases that the verdict moves, and says what came of it. The same again is NO CHANGE."""
        if self.verdict.decision == "PROMOTE":
            outcome = self._fit()
        else:
            if self.verdict.decision == "HOLD":
                self._challenge()
            elif not self.judged_before:
                self._announce_rejection()
            outcome = self._outcome(self.verdict.decision, self.verdict.sentence, self.verdict.advice)
        if self.judged_before and outcome.decision == self.verdict.decision != "PROMOTE":
            said = f"This candidate was judged before on the same evidence: {self.verdict.sentence}"
            outcome = outcome.model_copy(update={"decision": "NO CHANGE", "sentence": said})
        self.at.tell(f"version {self.version}: {outcome.decision}")
        return outcome

    def _register(self, intent: str) -> int:
        night, store = self.at.night, self.at.store
        card = student_card(store, self.artifact.digest, self.ref.digest, night.source.shop)
        self.at.tracking.log_text(night.run_id, card, "card.md")
        return self.at.registry.register(
            STUDENT,
            store.open("artifact", self.artifact.digest),
            "recsys.runtime",
            run_id=night.run_id,
            intent=intent,
            tags={
                **verdict_tags(self.verdict),
                "recsys.student": self.artifact.student,
                "recsys.teacher": self.artifact.teacher,
                "recsys.dataset": self.artifact.dataset,
                VERDICT: self.ref.digest,
                LATENCY: f"{night.config.limits.latency_ms:g}",
            },
            description=card,
            example=ANSWERS,
        )

    def _challenge(self) -> None:
        """The alias challenger, unless the champion knows more: a night of the past made up for challenges nobody."""
        if not self.standing.ahead:
            self.at.registry.set_alias(STUDENT, "challenger", self.version)

    def _fit(self) -> Outcome:
        """The gate would promote it: the load test, then the ledger or a person."""
        taken_back = self.at.ledger.chain().withdrawn.get(self.artifact.digest)
        if taken_back is not None:
            self._challenge()
            said = f"these very files were taken back before ({taken_back.sentence}), so no night promotes them again"
            again = f"If you want them back: recsys promote --version {self.version} --reason TEXT."
            return self._outcome("NO CHANGE" if self.judged_before else "HOLD", said, again)
        self.at.registry.load_check(STUDENT, self.version)
        question = Question.of(self.at.registry.version(STUDENT, self.version))
        if needed(self.at.night.config.run.approval, self.verdict):
            return self._ask(question)
        return self._promote(question)

    def _ask(self, question: Question | None) -> Outcome:
        """A person has the last word. The night does not wait for it: a run of the flow promote does."""
        new = question is None
        until = datetime.now(UTC) + timedelta(hours=self.at.night.config.run.approval_hours)
        question = ask_approval(self.at, self.version, self.standing.record, until, question)
        said = f"{question.sentence}. {self.verdict.sentence}"
        advice = (
            f"Approve it in Prefect, or with {how_to_approve(self.version)}." if question.waits else "Nothing to do."
        )
        return self._outcome("HOLD" if new else "NO CHANGE", f"{said[0].upper()}{said[1:]}", advice)

    def _promote(self, question: Question | None) -> Outcome:
        _require_standing(self.at)  # again: the load test has taken a while
        actor, sentence = getpass.getuser(), self.verdict.sentence
        promotion = self.at.ledger.append(
            Entry("promote", self.version, self.standing.record, self.ref.digest, actor, sentence)
        )
        if not promotion.won:
            again = "Run the night again: it will compare with the new champion."
            return self._outcome("HOLD", promotion.sentence, again)
        if question is not None and question.waits:
            workshop = self.at.workshop
            close(workshop, question, "approved", actor, "run.approval is auto now")
        details = {"from": self.standing.version, "to": self.version, "actor": actor, "op": "promote"}
        announce("recsys.model.promoted", f"version {self.version} is the champion. {sentence}", details)
        return self._outcome("PROMOTE", sentence, self.verdict.advice)

    def _announce_rejection(self) -> None:
        details = {"version": self.version, "champion": self.standing.version, "actor": "the gate"}
        announce("recsys.model.rejected", f"version {self.version}: {self.verdict.sentence}", details)

    def _outcome(self, decision: str, sentence: str, advice: str) -> Outcome:
        return Outcome.model_validate(
            {
                "decision": decision,
                "sentence": sentence,
                "advice": advice,
                "verdict": self.ref,
                "version": self.version,
                "champion": self.at.ledger.chain().champion,
            }
        )


def _require_standing(at: Step) -> None:
    """HomeError for a night that may promote nothing any more."""
    require_running()
    require_present(at.workshop)


def _register_teacher(at: Step, digest: str, verdict: Verdict, judged: str) -> int:
    """Every teacher is a version; the alias champion goes to one that clears the baselines and its predecessor.

    `judged` is the digest of its `verdict`.
    """
    card = teacher_card(at.store, digest, judged, at.night.source.shop)
    at.tracking.log_text(at.night.run_id, card, "teacher-card.md")
    version = at.registry.register(
        TEACHER,
        at.store.open("teach", digest),
        "recsys.teachers",
        run_id=at.night.run_id,
        intent=digest,
        tags=verdict_tags(verdict),
        description=card,
    )
    if verdict.decision == "PROMOTE" and at.registry.aliases(TEACHER).get("champion") != version:
        at.registry.set_alias(TEACHER, "champion", version)
        at.tell(f"teacher version {version} is champion: {verdict.sentence}")
    return version
