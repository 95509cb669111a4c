"""Which file begins when; PostgreSQL; and a home that the previous release made, which is there in less time than a night takes."""

import dataclasses
import gc
import importlib.util
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from tasks.adapters.relocate import old_home, relocate
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tests import new_databases
from tests.postgres import Postgres, binaries

gc.set_threshold(50_000, 20, 20)  # as tests/every_python does, for a run without processes of xdist's

DATA = Path(__file__).with_name("data")
EVERY_PYTHON = Path(__file__).with_name("every_python")
LONGEST = (
    "browser/", "flows/test_nightly.py", "flows/test_planning.py", "tasks/test_checkup.py", "flows/cli/test_up.py",
    "flows/cli/test_backfill.py", "flows/test_promote.py", "flows/test_monitor.py", "flows/test_turns.py", "flows/",
)  # fmt: skip
"""These begin first, or the last of them would run on while every other process waits for it."""


class Scheduling(LoadFileScheduling):
    """A file is one process's work, and so are the browser's, which share an installation; in the order collected."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/browser" if file.startswith("tests/browser/") else file


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        new_databases.begin()
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(EVERY_PYTHON), str(DATA.parents[1]), before)))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        new_databases.end()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three for two cores: nights wait for servers, and servers for nights."""
    return 3 * len(os.sched_getaffinity(0)) // 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log) -> Scheduling | None:
    """Of `--dist loadfile`. Not by the number of tests: the longest files have few."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all else in its order."""

    def place(item: pytest.Item) -> int:
        name = item.nodeid.removeprefix("tests/")
        return next((number for number, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))

    items.sort(key=place)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, for as many databases as are asked for."""
    pytest.importorskip("psycopg2", reason="the driver is not installed: pip install 'recsys-factory[servers]'")
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install --no-install-recommends postgresql")
    server = Postgres(programs)
    yield server
    server.stop()


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
