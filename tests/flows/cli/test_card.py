"""`recsys card`, and that commands tell a version's verdict in one sentence whether it has a card or is older than cards."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from recsys.errors import RegistryError
from recsys.gate import Verdict
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import SENTENCE, STUDENT, TEACHER
from tasks.model_cards import student_card, teacher_card, verdict_tags
from tasks.workshop import Workshop


@pytest.fixture(scope="module")
def home(released_for_module):
    """Version 1 is of the previous release, which knew no cards; version 2 is the same judged artifact with its card."""
    workshop = Workshop.of(released_for_module.settings)
    old = workshop.registry.version(STUDENT, 1)
    judged = old.tags["recsys.verdict"]
    verdict = Verdict.from_json(workshop.store.read("judge", judged, "verdict.json").decode())
    run_id = workshop.tracking.start_night("nightly", {}, {})
    number = workshop.registry.register(
        STUDENT,
        workshop.store.open("artifact", old.digest),
        "recsys.runtime",
        run_id=run_id,
        intent="with a card",
        tags={"recsys.verdict": judged, **verdict_tags(verdict)},
        description=student_card(workshop.store, old.digest, judged, "a *shop*"),
    )
    workshop.tracking.finish(run_id, "FINISHED")
    assert workshop.ledger.append(Entry("promote", number, 1, judged, "ada", "to try it")).won
    assert number == 2
    return workshop


def said(workshop: Workshop, command: str, *words: str) -> str:
    done = CliRunner().invoke(app, [command, *words, "--home", str(workshop.settings.home)], env={"COLUMNS": "180"})
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


def test_a_card_is_printed_for_people(own_environment, home):
    text = said(home, "card", "champion")
    assert "PROMOTE: Fit for promotion" in text
    assert "a *shop*: 1,487 events" in " ".join(text.split())
    assert "| artifact" not in text, "the table is drawn"
    assert "most-popular" in text
    assert said(home, "card", "2") == text


def test_a_version_of_before_there_were_cards_has_its_sentence(own_environment, home):
    old = home.registry.version(STUDENT, 1)
    assert SENTENCE not in old.tags
    assert any(tag.startswith("criterion.") for tag in old.tags), "as that release wrote it"
    assert " ".join(said(home, "card", "1").split()) == old.sentence == old.description
    assert "Fit for promotion" in said(home, "card", "champion", "--teacher")


def test_the_commands_show_one_sentence_of_either(own_environment, home):
    old, new = (home.registry.version(STUDENT, number) for number in (1, 2))
    assert new.sentence == old.sentence
    assert new.description.startswith(f"PROMOTE: {new.sentence}\n\n### What it is")
    records = json.loads(said(home, "history", "--json"))
    assert [record["verdict"] for record in records] == [new.sentence, old.sentence]
    for command in ("history", "status", "lineage"):
        text = " ".join(said(home, command).split())
        assert "Fit for promotion: all 17 criteria pass" in text, command
        assert "Intended use" not in text, command


def test_a_teachers_card_leads_from_its_verdict_too(home):
    teacher = home.registry.version(TEACHER, 1)
    text = teacher_card(home.store, teacher.digest, home.registry.version(STUDENT, 2).tags["recsys.verdict"])
    assert text.startswith("PROMOTE: Fit for promotion")
    assert "| teacher | 0." in text


@pytest.mark.parametrize("words", [["9"], ["nobody"], ["previous", "--teacher"], ["9", "--teacher"]])
def test_a_version_that_is_not_there_is_a_sentence(own_environment, home, words):
    done = CliRunner().invoke(app, ["card", *words, "--home", str(home.settings.home)])
    assert isinstance(done.exception, RegistryError)
