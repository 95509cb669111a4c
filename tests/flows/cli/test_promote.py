"""`recsys promote`, `rollback` and `history`: what is typed, what is said, and that of two at once one wins."""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.promotions import stock
from flows.cli.app import app
from recsys.errors import ConfigError, RegistryError
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.approval import ask
from tasks.workshop import Workshop

RECSYS = Path(sys.executable).with_name("recsys")


@pytest.fixture(scope="module", autouse=True)
def environment():
    """A command exports its home's places to the process; here they are put back."""
    before, folder = dict(os.environ), tempfile.tempdir
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = folder


@pytest.fixture(scope="module")
def home(environment, tmp_path_factory) -> Settings:
    """Six versions, nothing promoted. The tests of this file are one story."""
    home = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
    stock(home, 6)
    return home


def run(home: Settings, *arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments] + ["--home", str(home.home)])


def records(home: Settings) -> list[dict]:
    return json.loads(run(home, "history", "--json").stdout)


def test_nothing_was_promoted_yet(home):
    assert run(home, "history").stdout == "Nothing was promoted yet.\n"
    assert records(home) == []
    error = run(home, "rollback", "--reason", "x").exception
    assert isinstance(error, RegistryError)
    assert "no champion before no champion" in str(error)


def test_promotions_and_a_rollback_are_said_and_remembered(home):
    done = run(home, "promote", "--version", 1, "--reason", "the first")
    assert (done.exit_code, done.stdout) == (0, "recsys-student version 1 is the champion, after no champion.\n")
    assert run(home, "promote", "--version", 2, "--approve", "Ada", "--reason", "better").exit_code == 0
    done = run(home, "rollback", "--reason", "customers\ncomplained")
    assert done.stdout == "recsys-student version 1 is the champion, after version 2.\n"
    newest_first = records(home)
    assert [(r["number"], r["op"], r["from"], r["to"]) for r in newest_first] == [
        (3, "rollback", 2, 1), (2, "promote", 1, 2), (1, "promote", None, 1),
    ]  # fmt: skip
    assert [(r["actor"], r["reason"]) for r in newest_first[1:2]] == [("Ada", "better")]
    assert newest_first[0]["reason"] == "customers complained"
    assert newest_first[0]["verdict"] == "Fit for promotion: stock 0."
    assert datetime.fromisoformat(newest_first[0]["at"]).tzinfo is not None
    assert [r["number"] for r in json.loads(run(home, "history", "--json", "-n", 1).stdout)] == [3]


def test_the_ledger_as_a_table_shows_texts_as_they_are(home):
    run(home, "promote", "--version", 3, "--reason", "[red]not markup[/red]")
    said = " ".join(run(home, "history").stdout.split())
    assert said.index("promote 1 → 3") < said.index("rollback 2 → 1") < said.index("promote nothing → 1")
    assert "[red]not" in said
    run(home, "rollback", "--reason", "as it was")


def test_what_cannot_be_is_a_sentence(home):
    already = run(home, "promote", "--version", 1)
    assert (already.exit_code, already.stdout) == (0, "recsys-student version 1 is the champion already.\n")
    assert "has no version 99. There are: 1, 2, 3" in str(run(home, "promote", "--version", 99).exception)
    assert isinstance(run(home, "promote", "--version", 2, "--approve", "Ada").exception, ConfigError)
    assert "has never been the champion" in str(run(home, "rollback", "--to", 5, "--reason", "x").exception)
    assert run(home, "rollback").exit_code == 2


def test_a_hand_moved_alias_is_told_on_the_way(home):
    Workshop.anew(home).registry.set_alias(STUDENT, "champion", 4)
    done = run(home, "promote", "--version", 4)
    assert "moved by hand from 1 to 4: adopted" in " ".join(done.stderr.split())
    assert done.stdout == "recsys-student version 4 is the champion already.\n"
    assert records(home)[0]["op"] == "manual"


def test_of_two_who_approve_at_once_one_wins_and_the_other_is_told(home):
    """Both candidates were compared with the same champion: whoever is first, the other must not follow."""
    workshop = Workshop.anew(home)
    last = workshop.ledger.chain().last
    for version in (5, 6):
        ask(workshop, version, last, datetime.now(UTC) + timedelta(hours=1))
    words = ["promote", "--home", str(home.home), "--approve", "Ada", "--reason", "at once", "--version"]
    both = {
        version: subprocess.Popen([RECSYS, *words, str(version)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for version in (5, 6)
    }  # fmt: skip
    said = {version: process.communicate(timeout=120) for version, process in both.items()}
    codes = {version: process.returncode for version, process in both.items()}
    assert sorted(codes.values()) == [0, 2], said
    (winner,) = (version for version, code in codes.items() if code == 0)
    (loser,) = set(codes) - {winner}
    told = " ".join(said[loser][1].split())
    assert f"the champion changed from 4 to {winner} meanwhile; evaluate against it again" in told
    assert "Traceback" not in told
    assert workshop.registry.aliases(STUDENT)["champion"] == winner
    assert records(home)[0]["to"] == winner
    assert len(records(home)) == last + 1


def test_a_deleted_champion_is_said_by_status(home):
    champion = records(home)[0]["to"]
    Workshop.anew(home).registry.client.delete_model_version(STUDENT, str(champion))
    said = " ".join(run(home, "status").stdout.split())
    assert f"version {champion} of recsys-student, the champion, was deleted in MLflow" in said
    assert "recsys fsck --repair" in said
    assert "moved by hand to" not in said
    done = run(home, "rollback", "--reason", "it is gone")
    assert done.stdout == f"recsys-student version 4 is the champion, after version {champion}.\n"
    assert "The version was deleted." in " ".join(run(home, "history").stdout.split())
