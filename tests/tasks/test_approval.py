"""Approval: who is asked, who may answer until when, and that of all answers one counts."""

from datetime import UTC, datetime, timedelta

import pytest

from recsys.errors import RegistryError
from recsys.verdict import Criterion, Verdict
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.answer_approval import answer_approval, look_up
from tasks.approval import Answer, Question, ask, expire_waiting, needed
from tasks.change_champion import Move, change_champion
from tasks.workshop import Workshop

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
UNTIL = NOW + timedelta(hours=24)


def promote(workshop: Workshop, to: int, at: datetime = NOW, actor: str = "ann", **words):
    return change_champion(workshop, Move(op="promote", to=to, actor=actor, at=at, **words))


def approve(workshop: Workshop, to: int, at: datetime = NOW, actor: str = "ann"):
    return promote(workshop, to, at, actor, approved=True, reason="I looked at it")


def question(workshop: Workshop, version: int) -> Question:
    return Question.of(workshop.registry.version(STUDENT, version))


def verdict(*proven: bool) -> Verdict:
    rows = (Criterion(f"c{n}", "guard", 1, 1, 1, 1, "pass", is_proven, "") for n, is_proven in enumerate(proven))
    return Verdict("PROMOTE", "", "", tuple(rows))


@pytest.mark.parametrize(
    ("mode", "proven", "asked"),
    [
        ("auto", (False,), False),
        ("manual", (True, True), True),
        ("when_strong", (True, True), False),
        ("when_strong", (True, False), True),
    ],
)
def test_a_person_is_asked_by_the_mode(mode, proven, asked):
    assert needed(mode, verdict(*proven)) is asked


def test_who_waits_is_the_challenger_and_is_promoted_only_by_name(workshop):
    ask(workshop, 2, 0, UNTIL)
    assert workshop.registry.aliases(STUDENT) == {"challenger": 2}
    with pytest.raises(
        RegistryError, match=r"version 2 waits for approval: a person must approve it.*--version 2 --ap"
    ):
        promote(workshop, 2)
    moved = approve(workshop, 2)
    assert moved.champion == 2
    assert workshop.registry.aliases(STUDENT) == {"champion": 2}
    record = workshop.ledger.chain().records[-1]
    assert (record.actor, record.reason, record.expected) == ("ann", "I looked at it", 0)
    assert record.at
    asked = question(workshop, 2)
    assert (asked.state, asked.by, asked.reason) == ("approved", "ann", "I looked at it")


def test_an_approval_that_comes_too_late_rejects(workshop):
    ask(workshop, 2, 0, UNTIL)
    with pytest.raises(RegistryError, match="version 2 is rejected: nobody approved it until 25 November 2026, 12:00"):
        approve(workshop, 2, UNTIL)
    assert question(workshop, 2).state == "expired"
    assert workshop.registry.aliases(STUDENT) == {}
    assert workshop.ledger.chain().records == ()


def test_what_nobody_approved_in_time_is_rejected_by_the_monitor(workshop):
    ask(workshop, 2, 0, UNTIL)
    ask(workshop, 3, 0, UNTIL + timedelta(hours=1))
    assert expire_waiting(workshop, NOW) == ()
    assert [late.version for late in expire_waiting(workshop, UNTIL)] == [2]
    assert (question(workshop, 2).state, question(workshop, 3).state) == ("expired", "waiting")
    assert expire_waiting(workshop, UNTIL) == ()
    assert workshop.registry.aliases(STUDENT) == {"challenger": 3}
    assert workshop.ledger.chain().records == ()


def test_a_promotion_whose_tags_were_never_set_is_not_expired(workshop):
    """Killed between the ledger and the tags."""
    ask(workshop, 2, 0, UNTIL)
    workshop.ledger.append(Entry("promote", 2, 0, "", "ann", "I looked at it"))
    assert expire_waiting(workshop, UNTIL) == ()
    assert (question(workshop, 2).state, question(workshop, 2).by) == ("approved", "ann")


def test_an_approval_after_the_champion_changed_is_refused_and_says_to_evaluate_again(workshop):
    promote(workshop, 1)
    ask(workshop, 2, 1, UNTIL)
    ask(workshop, 3, 1, UNTIL)
    assert approve(workshop, 3).champion == 3
    with pytest.raises(
        RegistryError, match=r"champion changed from 1 to 3 meanwhile; evaluate against it again.*nightly"
    ):
        approve(workshop, 2, actor="bob")
    assert question(workshop, 2).state == "overtaken"
    assert workshop.registry.aliases(STUDENT) == {"champion": 3, "previous": 1}
    assert approve(workshop, 2, actor="bob").champion == 2, "told of it, a person may still want it"


def test_a_question_whose_tags_were_damaged_is_told(workshop):
    ask(workshop, 2, 0, UNTIL)
    workshop.registry.set_tags(STUDENT, 2, {"recsys.approval_until": "tomorrow"})
    with pytest.raises(RegistryError, match=r"tags recsys\.approval\* of recsys-student version 2 were damaged"):
        promote(workshop, 2)
    assert promote(workshop, 1).champion == 1, "the others are not stopped by it"
    ask(workshop, 3, 1, UNTIL)
    assert [late.version for late in expire_waiting(workshop, UNTIL)] == [3]


# --- as the flow asks ---------------------------------------------------------------------------------------------


def test_the_flow_waits_only_where_somebody_must_be_asked(workshop):
    assert look_up(workshop, 1, "", NOW, "run 1").state == "free"
    ask(workshop, 2, 0, UNTIL)
    assert look_up(workshop, None, "", NOW, "").state == "free", "a run without a deployment cannot wait"
    asked = look_up(workshop, None, "", NOW, "run 1")
    assert (asked.version, asked.state) == (2, "waiting")
    assert asked.patience == (24 + 7 * 24) * 3600
    assert "Fit for promotion" in asked.sentence
    assert look_up(workshop, 2, "ann", NOW, "run 1").state == "free", "somebody answers for it"
    other = look_up(workshop, 2, "", NOW, "run 2")
    assert (other.state, "another run of promote waits" in other.sentence) == ("answered", True)
    ask(workshop, 3, 0, UNTIL)
    assert look_up(workshop, None, "", NOW, "run 1").version == 2, "it goes on with the version that it asked about"
    late = look_up(workshop, 2, "", UNTIL, "run 1")
    assert (late.state, late.as_answered().changed) == ("answered", False)
    assert "nobody approved it" in late.sentence
    workshop.registry.set_alias(STUDENT, "challenger", None)
    with pytest.raises(RegistryError, match="has no challenger"):
        look_up(workshop, None, "", NOW, "run 3")


@pytest.mark.parametrize("first", ["approve", "refuse"])
def test_of_two_answers_the_first_counts(workshop, first):
    ask(workshop, 2, 0, UNTIL)
    asked = look_up(workshop, 2, "", NOW, "run 2")
    second = {"approve": "refuse", "refuse": "approve"}[first]
    once = answer_approval(workshop, asked, Answer(answer=first, name="ann", reason="first"), NOW)
    again = answer_approval(workshop, asked, Answer(answer=second, name="bob", reason="second"), NOW)
    assert once.changed is (first == "approve")
    assert not again.changed
    assert "by ann: first" in again.sentence
    assert again.champion == (2 if first == "approve" else None)
    assert len(workshop.ledger.chain().records) == (first == "approve")


def test_an_answer_in_prefect_that_comes_too_late_or_was_overtaken_ends_in_order(workshop):
    ask(workshop, 2, 0, UNTIL)
    asked = look_up(workshop, 2, "", NOW, "run 2")
    yes = Answer(answer="approve", name="ann", reason="fine")
    assert "nobody approved it" in answer_approval(workshop, asked, yes, UNTIL).sentence
    ask(workshop, 3, 0, UNTIL)
    promote(workshop, 1)
    moved = answer_approval(workshop, look_up(workshop, 3, "", NOW, "run 3"), yes, NOW)
    assert "champion changed from nothing to 1 meanwhile" in moved.sentence
    assert (moved.changed, moved.champion) == (False, 1)
