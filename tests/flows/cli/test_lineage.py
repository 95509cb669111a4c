"""`recsys lineage`: the tree, its input files with whole digests, JSON, and what it answers to a wrong name."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from recsys.errors import RegistryError
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe
from tasks.workshop import Workshop

BYTES = "7" * 64


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
def home(tmp_path_factory) -> Path:
    """Version 1 came from a dataset of one file; it is the champion."""
    home = tmp_path_factory.mktemp("lineage")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        workshop = Workshop.of(Settings.from_environment(home).prepare())
        said = json.dumps({"file": "orders [bold]2026.csv", "lines": 1234})
        make = workshop.store.make
        accepted = make(
            Recipe("validate", 1, {}, (BYTES, "no items")), lambda out: (out / "validation.json").write_text(said)
        )
        dataset = make(
            Recipe("build", 1, {}, (accepted.digest, "no items", "no catalog")),
            lambda out: (out / "build.json").write_text("{}"),
        )
        artifact = make(Recipe("artifact", 1, {}, (dataset.digest,)), lambda out: (out / "card.json").write_text("{}"))
        run_id = workshop.tracking.start_night("nightly", {"prefect.flow_run_id": "f"}, {})
        folder = workshop.store.open("artifact", artifact.digest)
        words = {"run_id": run_id, "intent": "1", "tags": {"recsys.dataset": dataset.digest}, "description": "Fit."}
        workshop.registry.register(STUDENT, folder, "recsys.runtime", **words)
        workshop.ledger.append(Entry("promote", 1, 0, "", "ada", "Fit."))
        workshop.tracking.finish(run_id, "FINISHED")
    return home


def run(home: Path, *arguments: str):
    return CliRunner().invoke(app, ["lineage", "--home", str(home), *arguments])


def test_the_tree_goes_from_the_artifact_to_the_bytes_of_the_input(home):
    result = run(home)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "recsys-student version 1"
    order = [
        lines.index(line) for part in ("artifact ", "dataset ", "events ", "input ") for line in lines if part in line
    ][:4]
    assert order == sorted(order)
    assert BYTES in result.stdout.replace("\n", "")
    assert "promote nothing → 1 by ada" in " ".join(result.stdout.split())


def test_a_file_name_is_never_read_as_markup(home):
    assert "orders [bold]2026.csv" in run(home).stdout


@pytest.mark.parametrize("name", ["1", "champion"])
def test_json_has_every_object_with_whole_digests(home, name):
    found = json.loads(run(home, name, "--json").stdout)
    assert found["version"] == 1
    assert {node["step"] for node in found["nodes"]} == {"artifact", "build", "validate", "input"}
    assert all(len(node["digest"]) == 64 for node in found["nodes"])
    assert [node["count"] for node in found["nodes"] if node["step"] == "input"] == [1234]


@pytest.mark.parametrize(("name", "message"), [("9", "has no version 9"), ("favourite", "no version is called")])
def test_a_version_that_is_not_there_is_a_sentence(home, name, message):
    result = run(home, name)
    assert isinstance(result.exception, RegistryError)
    assert message in str(result.exception)
