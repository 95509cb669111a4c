"""A home that the previous release made, to be upgraded, damaged, swept and copied: seconds, where a night takes longer."""

import dataclasses
import importlib.util
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.adapters.relocate import old_home, relocate
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store

DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class OldHome:
    """Its settings, the shop it was made from, and the knobs of its one night."""

    settings: Settings
    shop: Path
    knobs: list[str]


def unpack(place: Path) -> OldHome:
    """The home of format 1, brought to `place` as a restored one is."""
    with tarfile.open(DATA / "home-v1.tar.gz") as tar:
        tar.extractall(place, filter="data")
    made = Settings.from_environment(place / "home")
    settings = dataclasses.replace(made, store=made.home / "store", vault_key=made.home / "vault" / "key", threads=1)
    before = old_home(settings)
    assert before is not None
    relocate(settings.mlflow / "mlflow.db", Store(settings.store), before, settings.home)
    return OldHome(settings.prepare(), place / "shop", _knobs())


def _knobs() -> list[str]:
    spec = importlib.util.spec_from_file_location("make_home", DATA / "make_home.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return list(module.KNOBS)


@pytest.fixture
def own_environment(monkeypatch):
    """What a command exports to the process is put back."""
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)
    before, folder = dict(os.environ), tempfile.tempdir
    yield
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = folder


@pytest.fixture
def released(own_environment, tmp_path) -> OldHome:
    """A home of the previous release, for one test."""
    return unpack(tmp_path)


@pytest.fixture(scope="module")
def released_for_module(tmp_path_factory) -> OldHome:
    """The same, for a file of tests that go on with each other's work."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
                patch.delenv(name)
        yield unpack(tmp_path_factory.mktemp("released"))
