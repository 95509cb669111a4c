"""A real cluster on the loopback: the same bytes as one process, also when a worker is killed, and within its memory."""

import dataclasses
import hashlib
import os
import pickle
import socket
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from recsys import sample
from recsys.baselines import Neighbours
from recsys.config import DataConfig, EventsConfig, LabelsConfig
from recsys.dataset import BuildPlan, Dataset, build
from recsys.decoder import Decoder, DecoderShape
from recsys.door import Door
from recsys.errors import ConfigError, DataError, HomeError
from recsys.evaluate import evaluate
from recsys.event_union import Engine, open_union
from recsys.events import EventSource, validate_file
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.sequence_model import Scorer
from recsys.soft_labels import Labelling, Positions, write_segment
from recsys.spread import HERE
from tasks.adapters import dask_cluster
from tasks.adapters.execution import open_workers
from tasks.adapters.settings import LOCAL, Settings
from tests.frail import KillsAWorker, duckdb_limit, hold

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")
config = pytest.importorskip("dask.config")

SHARDS, LENGTH = 4, 16


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def cluster_of(folder: Path, workers: int, memory: str):
    patience = config.set({"distributed.comm.timeouts.connect": "120s"})
    with (
        patience,
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=memory,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            local_directory=str(folder),
            silence_logs="CRITICAL",
            env={"OMP_NUM_THREADS": "1"},
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The settings of a home, as somebody starts with."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RECSYS_")]:
            patch.delenv(name)
        settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
        yield dataclasses.replace(settings, threads=1, memory_mb=1_000)


@pytest.fixture(scope="module")
def two(here):
    """Two workers somewhere else, with 1,000 MB each."""
    with cluster_of(here.temp / "dask", 2, "1000MB") as cluster:
        yield dataclasses.replace(here, cluster=cluster.scheduler_address)


@pytest.fixture(scope="module")
def accepted(here):
    """20,000 events of the sample, validated."""
    folder = here.temp / "accepted"
    pq.write_table(pq.read_table(sample.EVENTS).slice(0, 20_000), here.temp / "events.parquet")
    source = EventSource({}, None, 2_000_000_000, Door(b"k" * 32), lambda users: None)
    validate_file(here.temp / "events.parquet", folder, source, EventsConfig())
    return folder / "accepted.parquet"


def plan_of(temp: Path) -> BuildPlan:
    return BuildPlan(EventsConfig(), DataConfig(min_users=10), None, SHARDS, 256, temp, 1)


@pytest.fixture(scope="module")
def built(here, accepted):
    """The dataset as one process makes it."""
    build([accepted], None, None, here.temp / "dataset", plan_of(here.temp / "scratch"))
    return here.temp / "dataset"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_dataset_is_the_same_to_the_byte(two, accepted, built, tmp_path):
    with open_workers(two) as workers:
        assert workers.executor.submit(os.getpid).result() != os.getpid()
        assert workers.name.startswith("2 Dask workers at tcp://127.0.0.1:")
        build([accepted], None, None, tmp_path / "out", plan_of(tmp_path / "scratch"), workers.executor)
    assert digests(tmp_path / "out") == digests(built)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.usefixtures("one_thread")
def test_labels_and_reports_are_the_same_to_the_byte(two, built, temporary):
    dataset = Dataset.load(built)
    items = dataset.catalog.items
    torch.manual_seed(0)
    teacher = Decoder(DecoderShape.of(items, 16, 1, LENGTH), dropout=0.1).eval()
    opinion = Opinion(Neighbourhood.of_training(dataset.histories, items, 50, 8), 0.3)
    labelling = Labelling.of("teacher", items, dataset.catalog.item_ids, LabelsConfig(top_k=10, states=True))
    models = Neighbours(dataset.histories, items), Scorer(teacher, LENGTH, "teacher", opinion=opinion)

    def make(out: Path, executor) -> None:
        positions, heard = Positions.of(dataset.histories, LENGTH), []
        write_segment(
            teacher, labelling, positions, [], out, lambda *_: heard.append(1), opinion=opinion, executor=executor
        )
        assert heard
        for model in models:
            cases = dataset.test_cases()
            evaluate(model, cases, dataset, 1, executor=executor).save(out / model.name)

    make(temporary / "one", HERE)
    with open_workers(two) as workers:
        make(temporary / "two", workers.executor)
    assert digests(temporary / "two") == digests(temporary / "one")
    assert len(digests(temporary / "two")) == 6
    assert list(temporary.glob("shared-*")) == []


def test_a_worker_that_is_killed_is_replaced_and_no_byte_is_another(two, accepted, built, tmp_path):
    with open_workers(two) as workers:
        mortal = KillsAWorker(workers.executor, tmp_path / "killed", part=2)
        build([accepted], None, None, tmp_path / "out", plan_of(tmp_path / "scratch"), mortal)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "killed").read_text()), 0)
    assert digests(tmp_path / "out") == digests(built)


def test_duckdb_gets_half_of_what_a_worker_has(two, accepted, tmp_path):
    with open_workers(two) as workers, open_union([accepted], Engine(256, 1, tmp_path)) as union:
        assert (workers.memory_mb, workers.threads) == (500, 1)
        file = union.closed(Engine(workers.memory_mb, workers.threads, tmp_path))
        assert workers.executor.submit(duckdb_limit, file).result() == "476.8 MiB"


def test_a_part_that_wants_more_than_a_worker_has_ends_in_a_sentence(here, tmp_path):
    """Its worker is killed at 95 % of its memory, and so is the next that takes it."""
    with (
        config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster_of(tmp_path, 1, "400MB") as cluster,
        pytest.raises(HomeError, match=r"lost with every worker that took it.*want of memory"),
        open_workers(dataclasses.replace(here, cluster=cluster.scheduler_address)) as workers,
    ):
        workers.executor.submit(hold, 600).result()


def test_a_scheduler_that_goes_away_ends_in_a_sentence(here, tmp_path):
    with (
        cluster_of(tmp_path, 1, "400MB") as cluster,
        pytest.raises(HomeError, match="the scheduler is gone"),
        open_workers(dataclasses.replace(here, cluster=cluster.scheduler_address)) as workers,
    ):
        bereave(workers.executor.submit(time.sleep, 600), cluster)


def bereave(under_way: Future, cluster) -> None:
    cluster.close()
    under_way.result()


def test_an_error_of_a_part_is_the_same_sentence_here(two):
    error = DataError("nothing is left", where="row 3", mend="Bring more.")
    with open_workers(two) as workers, pytest.raises(DataError) as raised:
        workers.executor.submit(partial(fail, error)).result()
    assert str(raised.value) == str(error) == "nothing is left (row 3). Bring more."
    assert (raised.value.what, raised.value.where, raised.value.mend) == (error.what, error.where, error.mend)


def fail(error: Exception) -> None:
    raise error


def test_a_worker_with_other_packages_is_refused(two, monkeypatch):
    monkeypatch.setattr(dask_cluster, "likeness", lambda: {"torch": "1.0"})
    with pytest.raises(ConfigError, match=r"not like this process: it has torch 2.*, not 1\.0"), open_workers(two):
        pass


def test_a_worker_without_the_product_is_said(two, monkeypatch):
    monkeypatch.setattr(dask_cluster, "_PRODUCT", "product-of-tomorrow")
    with (
        pytest.raises(ConfigError, match=r"cannot run this: .*product-of-tomorrow.*the same packages"),
        open_workers(two),
    ):
        pass


def test_without_a_scheduler_or_workers_it_is_said(here, monkeypatch, tmp_path):
    monkeypatch.setattr(dask_cluster, "_PATIENCE", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=r"no Dask scheduler answers.*RECSYS_EXECUTOR=tcp.*Start `dask scheduler`"),
            open_workers(dataclasses.replace(here, cluster=nobody)),
        ):
            pass
    with (
        cluster_of(tmp_path, 0, "400MB") as empty,
        pytest.raises(ConfigError, match="the Dask scheduler has no workers"),
        open_workers(dataclasses.replace(here, cluster=empty.scheduler_address)),
    ):
        pass


def test_a_cluster_of_this_machine_has_a_page_and_leaves_nothing(here):
    with open_workers(dataclasses.replace(here, cluster=LOCAL)) as workers:
        pid = workers.executor.submit(os.getpid).result()
        assert pid != os.getpid()
        assert workers.executor.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert workers.page.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(workers.page, timeout=60) as page:
            assert b"bokeh" in page.read().lower()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_is_installed_or_said(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ConfigError, match=r"Dask is not installed.*pip install 'recsys-factory\[dask\]'"),
        open_workers(dataclasses.replace(here, cluster=LOCAL)),
    ):
        pass


def test_a_likeness_can_be_carried():
    assert pickle.loads(pickle.dumps(dask_cluster.likeness())) == dask_cluster.likeness()
