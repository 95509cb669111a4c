"""`recsys status` and `recsys report`: what a home says about itself, and that neither makes one."""

import os
import tempfile

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.status import bytes_of
from recsys.errors import HomeError
from tasks.adapters.ledger import Entry, Ledger
from tasks.adapters.registry import STUDENT, Registry
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.adapters.tracking import Tracking


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A command exports its home's places to the process; here they are put back."""
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)
    before, folder = dict(os.environ), tempfile.tempdir
    yield
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Version 1 was promoted, then version 2; the last night held version 3."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = Settings.from_environment(home).prepare()
        tracking = Tracking(settings)
        registry = Registry(settings, tracking.client, lambda: tracking.experiment_id)
        ledger = Ledger(settings, registry)
        files = Store(settings.store).make(Recipe("artifact", 1, {}, ()), lambda out: (out / "a").write_text("a"))
        folder = Store(settings.store).open("artifact", files.digest)
        for number, decision in enumerate(("PROMOTE", "PROMOTE", "HOLD"), start=1):
            run_id = tracking.start_night(f"nightly night-{number}", {"recsys.decision": decision}, {})
            tracking.finish(tracking.start_child(run_id, f"trial of {number}", {}), "FINISHED")
            words = {"tags": {}, "description": f"Verdict {number}."}
            registry.register(STUDENT, folder, "recsys.runtime", run_id=run_id, intent=str(number), **words)
            tracking.finish(run_id, "FINISHED")
        ledger.append(Entry("promote", 1, 0, "", "ada", "Verdict 1."))
        ledger.append(Entry("promote", 2, 1, "", "grace", "Verdict 2."))
        report = home / "reports" / "night-3.html"
        report.parent.mkdir()
        report.write_text("<html>")
        Store(settings.store).set_head(
            "last-night",
            {
                "decision": "HOLD",
                "sentence": "Not enough evidence.",
                "advice": "Bring more users.",
                "dataset": "0" * 64,
                "as_of": 1_323_435_001,
                "report": str(report),
            },
        )
        yield settings


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_status_tells_champion_verdict_runs_and_disk(home):
    result = run("status", "--home", home.home)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "Champion: recsys-student version 2, a rollback goes to version 1 Verdict 2." in said
    assert said.index("promote 1 → 2 grace Verdict 2.") < said.index("promote nothing → 1 ada Verdict 1.")
    assert "Last verdict: HOLD, as of 9 December 2011, 12:50 UTC Not enough evidence." in said
    assert "What to do: Bring more users." in said
    assert said.index("nightly night-3") < said.index("nightly night-1")
    assert "trial of 3" not in said
    assert "FINISHED HOLD" in said
    assert "moved by hand" not in said
    for part in ("store", "models and runs", "Prefect", "vault", "ledger", "cache", "temporary", "all"):
        assert f" {part} " in said


def test_status_tells_of_an_alias_moved_by_hand_and_leaves_it(home):
    tracking = Tracking(home)
    registry = Registry(home, tracking.client, lambda: tracking.experiment_id)
    registry.set_alias(STUDENT, "champion", 3)
    try:
        said = " ".join(run("status", "--home", home.home).stdout.split())
        assert "Champion: recsys-student version 2" in said
        assert "The alias champion was moved by hand to 3: the next command adopts it or puts it back." in said
        assert registry.aliases(STUDENT)["champion"] == 3
    finally:
        registry.set_alias(STUDENT, "champion", 2)


def test_report_prints_the_path_alone(home):
    result = run("report", "--home", home.home)
    assert result.stdout == f"{home.home / 'reports' / 'night-3.html'}\n"


def test_a_report_that_is_gone_is_said(home):
    report = home.home / "reports" / "night-3.html"
    report.unlink()
    try:
        assert "the last report is gone" in str(run("report", "--home", home.home).exception)
    finally:
        report.write_text("<html>")


def test_a_home_where_no_night_has_ended_says_so(tmp_path):
    Settings.from_environment(tmp_path / "home").prepare()
    assert "no night has ended" in str(run("report", "--home", tmp_path / "home").exception)


@pytest.mark.parametrize("command", ["status", "report", "score"])
@pytest.mark.parametrize("there", [True, False])
def test_reading_makes_no_home(tmp_path, command, there):
    home = tmp_path / "home"
    if there:
        home.mkdir()
    result = run(command, "--home", home)
    assert isinstance(result.exception, HomeError)
    assert "there is no home of recsys here" in str(result.exception)
    assert list(tmp_path.rglob("*")) == ([home] if there else [])


def test_a_file_of_two_names_counts_once(tmp_path):
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    alone = bytes_of(tmp_path)
    (tmp_path / "views").mkdir()
    os.link(tmp_path / "one", tmp_path / "views" / "two")
    assert 100_000 <= bytes_of(tmp_path) == alone < 200_000
