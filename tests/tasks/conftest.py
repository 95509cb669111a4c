"""A home with five registered versions, for whoever moves the alias champion."""

import contextlib
import os
import shutil
import tempfile

import pytest

from benchmarks.promotions import stock
from recsys.errors import RegistryError
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.workshop import Workshop


@pytest.fixture(scope="session")
def stocked(tmp_path_factory):
    """A home with five versions and nothing promoted."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
                patch.delenv(name)
        home = Settings.from_environment(tmp_path_factory.mktemp("stocked")).prepare()
        folder = tempfile.tempdir
        assert stock(home, 5) == [1, 2, 3, 4, 5]
        yield home
        tempfile.tempdir = folder


@pytest.fixture
def workshop(stocked, tmp_path):
    """The home as it was stocked: afterwards versions, files and ledger are put back, whatever a test did to them."""
    workshop = Workshop.anew(stocked)
    client, artifacts = workshop.registry.client, stocked.mlflow / "artifacts"
    before = [client.get_model_version(STUDENT, str(number)) for number in range(1, 6)]
    shutil.copytree(artifacts, tmp_path / "artifacts")
    yield workshop
    for name in (STUDENT, workshop.ledger.name):
        with contextlib.suppress(RegistryError):
            client.delete_registered_model(name)
    workshop.registry.require(STUDENT)
    for version in before:
        workshop.registry.create(STUDENT, version.source, version.tags, version.description, run_id=version.run_id)
    shutil.rmtree(artifacts)
    shutil.rmtree(stocked.ledger, ignore_errors=True)  # a test that promotes nothing has none
    shutil.copytree(tmp_path / "artifacts", artifacts)
