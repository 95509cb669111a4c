"""`recsys doctor`: what it prints, what it exits with, and that no broken home makes it fall over."""

import json
import os
import tempfile

import pytest
from typer.testing import CliRunner

from flows.automations import FLOWS
from flows.cli.app import app
from flows.cli.doctor import UNWELL
from recsys.errors import HomeError
from tasks.adapters.settings import Settings
from tasks.checkup_prefect import DEPLOYMENTS


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


@pytest.fixture
def home(tmp_path):
    """A home that is new: nothing is red, and what is missing is yellow."""
    return Settings.from_environment(tmp_path / "home").prepare()


def run(*arguments: object):
    return CliRunner().invoke(app, ["doctor", *(str(argument) for argument in arguments)])


def test_a_new_home_is_not_red_and_every_yellow_line_says_what_to_do(home):
    result = run("--home", home.home)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "yellow of" in said
    assert "red" not in said.split("Check")[0]
    assert "✓ versions" in said
    assert "! servers not operated: no server runs here, so no schedule fires → recsys up" in said


def test_strict_counts_yellow(home):
    assert run("--home", home.home, "--strict").exit_code == UNWELL


def test_json_is_for_machines(home):
    found = json.loads(run("--home", home.home, "--json").stdout)
    assert found["worst"] == "yellow"
    assert found["home"] == str(home.home)
    assert {"name", "tone", "sentence", "mend"} == set(found["lines"][0])
    assert {line["tone"] for line in found["lines"]} <= {"green", "yellow", "red"}
    assert all(line["mend"] for line in found["lines"] if line["tone"] == "yellow")


def test_a_broken_home_is_told_with_a_mark_and_exit_code_1(home):
    home.servers_file.write_text("no json")
    (home.mlflow / "mlflow.db").write_bytes(b"no database" * 1000)
    home.vault_key.write_bytes(b"k" * 32)
    home.vault_key.chmod(0o666)
    result = run("--home", home.home)
    assert result.exit_code == UNWELL
    assert "Traceback" not in result.output
    said = " ".join(result.stdout.split())
    for name in ("servers", "MLflow's database", "permissions"):
        assert f"✗ {name}" in said
    assert "3 red" in said


def test_no_home_is_said_and_none_is_made(tmp_path):
    result = run("--home", tmp_path / "nowhere")
    assert isinstance(result.exception, HomeError)
    assert not (tmp_path / "nowhere").exists()


def test_the_deployments_it_asks_for_are_those_that_are_made():
    assert set(DEPLOYMENTS) == set(FLOWS)
