"""The doctor on a real home that is then really broken, one thing at a time: the right line turns, and says so."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import zoneinfo
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys import sample
from recsys.config import MonitorConfig
from recsys.synthetic import shop
from tasks import checkup_champion, checkup_databases, checkup_install, checkup_nights, checkup_secrets
from tasks.adapters.ledger import Entry, Ledger
from tasks.adapters.manifest import sha256_of
from tasks.adapters.registry import STUDENT, UNFORGOTTEN, Registry
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.adapters.tracking import Tracking
from tasks.checkup import CHECKS, Checkup, check
from tasks.checkup_prefect import DEPLOYMENTS
from tasks.patient import Patient
from tests import fork_server
from tests.servers import free_port

TINY = [
    "teacher.width=16", "teacher.epochs=3", "teacher.learning_rate=0.01", "search.widths=[16]", "search.trials=2",
    "search.epochs=3", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "compress.max_loss=1", "data.history_length=8",
    "data.min_users=20", "gate.min_users=20", "gate.teacher_retention=0", "gate.quantization_loss=1",
    "gate.slice_loss=1", "gate.neighbours_loss=1", "gate.champion_loss=1", "limits.size_ratio=99",
    "limits.coverage_ratio=0", "limits.latency_ms=1000", "limits.popularity_ratio=99",
]  # fmt: skip
PATIENCE = 300  # seconds, on a busy machine


def recsys(*words: object) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_"))}
    environment = {**kept, "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return fork_server.run(list(words), environment)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """A night over yesterday's events; its champion was then followed by one with the same files."""
    place = tmp_path_factory.mktemp("doctor")
    made = shop(users=200, items=32, events_a_user=24, randomness=0.2, seed=1, days=60)
    made.write(place)
    shift = pc.subtract(pa.scalar(int(time.time()) - 60), pc.max(made.events["timestamp"]))
    moved = made.events.set_column(2, "timestamp", pc.add(made.events["timestamp"], shift))
    pq.write_table(moved, place / "events.parquet")
    words = ["--events", place / "events.parquet", "--items", place / "items.parquet"]
    done = recsys("nightly", "--home", place / "home", *words, *(w for knob in TINY for w in ("--set", knob)))
    assert "PROMOTE" in done.stdout, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = Settings.from_environment(place / "home")
        registry = registry_of(settings)
        first = registry.version(STUDENT, 1)
        files = Store(settings.store).open("artifact", first.digest)
        registry.register(
            STUDENT, files, "recsys.runtime", run_id=first.run_id, intent="again", tags={}, description="Again."
        )
        assert Ledger(settings, registry).append(Entry("promote", 2, 1, "", "ada", "Again.")).won
    return settings


def registry_of(settings: Settings) -> Registry:
    tracking = Tracking(settings)
    return Registry(settings, tracking.client, lambda: tracking.experiment_id)


@contextlib.contextmanager
def broken(path: Path, content: bytes | None = None):
    """A file with other content, or none; afterwards as it was."""
    aside = path.with_name(path.name + ".aside")
    mode = path.stat().st_mode
    os.rename(path, aside)
    try:
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.rename(aside, path)
        path.chmod(mode)


def reds(found: Checkup) -> set[str]:
    return {line.name for line in found.of("red")}


def test_a_healthy_home_is_green_but_for_not_being_operated(settings):
    began = time.monotonic()
    found = check(settings)
    assert {line.name: line.sentence for line in found.lines if line.tone != "green"} == {
        "servers": "not operated: no server runs here, so no schedule fires"
    }
    assert found.worst == "yellow"
    assert found.line("servers").mend == "recsys up"
    assert "version 2" in found.line("champion").sentence
    assert "version 1" in found.line("rollback").sentence
    assert json.loads(json.dumps(found.plain()))["worst"] == "yellow"
    assert time.monotonic() - began < 60  # no server is waited for, nothing is tried again and again


def test_every_check_has_a_name_of_its_own_and_stands_after_what_it_needs():
    names = [each.name for each in CHECKS]
    assert len(set(names)) == len(names)
    for number, each in enumerate(CHECKS):
        assert not each.needs or each.needs in names[:number]


# --- what is installed ---------------------------------------------------------------------------------------------


def pretend(folder: Path, monkeypatch, name: str, version: str) -> None:
    """Another version of a package, first on the path, as an unpinned install leaves it."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(folder)


def test_the_sqlalchemy_with_which_no_schedule_fires_is_red(settings, tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "sqlalchemy", "2.1.9")
    line = check(settings).line("versions")
    assert line.tone == "red"
    assert "sqlalchemy 2.1.9 is not <2.1,>=2.0" in line.sentence
    assert "deployments/install.sh" in line.mend


def test_a_package_that_the_lock_does_not_name_so_is_yellow(settings, tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "altair", "9.9.9")
    line = check(settings).line("versions")
    assert line.tone == "yellow"
    assert "altair 9.9.9 is not" in line.sentence


@pytest.mark.parametrize(("value", "tone"), [("true", "red"), ("false", "green")])
def test_a_server_that_would_unpickle_is_red(settings, value, tone, tmp_path):
    demanded = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": value, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    (tmp_path / "health").write_text("OK")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=tmp_path, env=os.environ | demanded, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    written = {"mlflow": {"url": f"http://127.0.0.1:{port}", "pid": server.pid}}
    settings.servers_file.write_text(json.dumps(written))
    try:
        deadline = time.monotonic() + PATIENCE
        while not settings.running():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert checkup_install.environment(Patient(settings, MonitorConfig())).tone == tone
    finally:
        settings.servers_file.unlink()
        server.kill()
        server.wait()


def test_a_prefect_of_your_own_keeps_its_own_database(settings, monkeypatch):
    ours = Patient(settings, MonitorConfig())
    assert not ours.prefect_is_yours
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example.com:4200/api")
    yours = Patient(settings, MonitorConfig())
    assert yours.prefect_is_yours
    found = checkup_databases.prefect(yours)
    assert (found.tone, "http://prefect.example.com:4200/api" in found.sentence) == ("green", True)
    assert checkup_secrets.in_prefect(yours) is None, "nobody reads a database that is not the home's"


# --- the machine ---------------------------------------------------------------------------------------------------


def test_a_folder_that_is_gone_is_red(settings):
    settings.cache.rename(settings.home / "aside")
    try:
        line = check(settings).line("home")
    finally:
        (settings.home / "aside").rename(settings.cache)
    assert line.tone == "red"
    assert f"{settings.cache} cannot be written" in line.sentence


def test_less_room_than_the_last_night_took_is_red(settings):
    written = max((settings.store / "blobs").rglob("*"), key=lambda path: path.stat().st_mtime * path.is_file())
    large = settings.store / "blobs" / "large"
    large.touch()
    os.truncate(large, shutil.disk_usage(settings.home).free + (1 << 34))  # sparse: it takes no room
    os.utime(large, (written.stat().st_mtime, written.stat().st_mtime))
    try:
        line = check(settings).line("disk")
    finally:
        large.unlink()
    assert line.tone == "red"
    assert "the last night wrote" in line.sentence


def test_a_key_that_others_may_read_is_red(settings):
    settings.vault_key.chmod(0o644)
    try:
        line = check(settings).line("permissions")
    finally:
        settings.vault_key.chmod(0o600)
    assert line.tone == "red"
    assert str(settings.vault_key) in line.sentence
    assert line.mend.startswith("chmod go-rwx")


def test_a_key_that_is_gone_is_red(settings):
    with broken(settings.vault_key):
        assert check(settings).line("permissions").tone == "red"


def test_a_machine_without_time_zones_is_red(settings, monkeypatch):
    paths = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=())
    monkeypatch.setitem(sys.modules, "tzdata", None)
    try:
        line = check(settings).line("time zones")
    finally:
        zoneinfo.reset_tzpath(to=paths)
    assert line.tone == "red"


def test_a_clock_that_went_back_is_red(settings):
    tracking = Tracking(settings)
    ahead = int((time.time() + 86_400) * 1000)
    run = tracking.client.create_run(tracking.experiment_id, start_time=ahead)
    try:
        line = check(settings).line("clock")
    finally:
        tracking.client.delete_run(run.info.run_id)
    assert line.tone == "red"
    assert "the clock is wrong" in line.sentence


# --- the databases -------------------------------------------------------------------------------------------------


def test_a_lost_registry_is_told_once_and_not_made_anew(settings):
    with broken(settings.mlflow / "mlflow.db"):
        found = check(settings)
        assert not (settings.mlflow / "mlflow.db").exists()
    assert reds(found) == {"MLflow's database"}
    assert "is gone" in found.line("MLflow's database").sentence
    assert found.line("champion").sentence == "cannot be told before this is mended: ledger"


@pytest.mark.parametrize(("name", "path"), [("MLflow", "mlflow/mlflow.db"), ("Prefect", "prefect/prefect.db")])
def test_a_database_of_another_version_is_red(settings, name, path):
    with sqlite3.connect(settings.home / path) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        connection.execute("UPDATE alembic_version SET version_num = 'aaaaaaaaaaaa'")
    try:
        line = check(settings).line(f"{name}'s database")
    finally:
        with sqlite3.connect(settings.home / path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    assert line.tone == "red"
    assert f"expects {revision}" in line.sentence


def test_a_damaged_database_is_red(settings):
    database = settings.mlflow / "mlflow.db"
    content = bytearray(database.read_bytes())
    content[4096 : 4096 * 40] = b"\xff" * (4096 * 39)
    with broken(database, bytes(content)):
        line = check(settings).line("MLflow's database")
    assert line.tone == "red"
    assert "is damaged" in line.sentence


# --- data and nights -----------------------------------------------------------------------------------------------


def test_old_data_and_an_old_night_are_yellow_where_a_person_runs_the_nights(settings):
    found = check(settings, MonitorConfig(max_age_days=1e-9))
    assert found.line("data").tone == "yellow"
    assert "nothing new arrives" in found.line("data").sentence
    assert found.line("last night").tone == "yellow"


def test_the_built_in_shop_is_old_by_nature(tmp_path):
    settings = Settings.from_environment(tmp_path / "home").prepare()
    store = Store(settings.store)
    said = {
        "file": "events.parquet", "lines": 1, "accepted": 1, "quarantined": 0, "by_rule": {}, "future": 0,
        "oldest": 1, "newest": 1_323_435_000, "users": 1, "items": 1, "notes": [],
    }  # fmt: skip
    recipe = Recipe("validate", 1, {}, (sha256_of(sample.EVENTS), "no items"))
    accepted = store.make(recipe, lambda out: (out / "validation.json").write_text(json.dumps(said)))
    recipe = Recipe("build", 1, {}, (accepted.digest, "no items", "no catalog"))
    dataset = store.make(recipe, lambda out: (out / "build.json").write_text("{}"))
    words = dict.fromkeys(("decision", "sentence", "advice", "report"), "")
    store.set_head("last-night", {**words, "dataset": dataset.digest, "as_of": 1_323_435_001})
    found = checkup_nights.data(Patient(settings, MonitorConfig()))
    assert found.tone == "green"
    assert "old by nature" in found.sentence


def test_a_home_without_a_night_says_what_to_do(tmp_path):
    found = check(Settings.from_environment(tmp_path / "home").prepare())
    assert not reds(found)
    assert found.line("data").mend == "recsys nightly"
    assert found.line("MLflow's database").mend == "recsys nightly"


# --- the champion --------------------------------------------------------------------------------------------------


def test_a_forged_ledger_is_red(settings):
    record = settings.ledger / "recsys-student-ledger" / "000001.json"
    with broken(record, record.read_bytes().replace(b"root", b"eve!").replace(b"promote", b"manual!")):
        found = check(settings)
    assert reds(found) == {"ledger"}
    assert "record 1 was changed" in found.line("ledger").sentence


def test_an_alias_moved_by_hand_is_told_with_what_follows(settings):
    registry = registry_of(settings)
    registry.set_alias(STUDENT, "champion", 1)
    try:
        line = check(settings).line("aliases")
    finally:
        registry.set_alias(STUDENT, "champion", 2)
    assert line.tone == "yellow"
    assert "moved by hand to 1, the ledger says 2: the next command" in line.sentence
    assert "load-tests it and adopts it, or puts it back" in line.sentence


def test_a_damaged_file_of_the_champion_is_red_in_the_store_alone(settings):
    digest = registry_of(settings).version(STUDENT, 2).digest
    store = Store(settings.store)
    blob = store.blob(next(f.sha256 for f in store.manifest("artifact", digest).files if f.name == "model.onnx"))
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    with broken(blob, bytes(content)):
        found = check(settings)
        blob.write_bytes(b"")  # what the check has set aside is put back
    assert reds(found) == {"champion's files"}
    assert "model.onnx is damaged" in found.line("champion's files").sentence
    assert "version 1, is no way back" in found.line("rollback").sentence


def test_swapped_weights_in_mlflow_are_red(settings):
    weights = sorted((settings.mlflow / "artifacts" / "models").rglob("weights.safetensors"))
    with contextlib.ExitStack() as stack:
        for path in weights:
            stack.enter_context(broken(path, b"\x00" * path.stat().st_size))
        found = check(settings)
    assert reds(found) == {"champion in MLflow"}


# --- secrets -------------------------------------------------------------------------------------------------------


def test_a_secret_in_a_parameter_is_found_and_not_shown(settings, monkeypatch):
    secret = "https://hooks.example.com/T0/B0/very-secret"
    monkeypatch.setenv("RECSYS_NOTIFY_URL", secret)
    database = settings.prefect / "prefect.db"
    with sqlite3.connect(database) as connection:
        (before,) = connection.execute("SELECT parameters FROM flow_run").fetchone()
        connection.execute("UPDATE flow_run SET parameters = ?", [json.dumps({"note": f"see {secret}"})])
    tracking = Tracking(settings)
    run = tracking.client.create_run(tracking.experiment_id, tags={"source": "postgres://ada:pass1234@db/shop"})
    try:
        found = check(settings)
    finally:
        tracking.client.delete_run(run.info.run_id)
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE flow_run SET parameters = ?", [before])
    assert reds(found) == {"secrets in Prefect", "secrets in MLflow"}
    assert "the value of RECSYS_NOTIFY_URL stands in parameters of run" in found.line("secrets in Prefect").sentence
    assert "a password in a URL stands in run" in found.line("secrets in MLflow").sentence
    assert "very-secret" not in json.dumps(found.plain())
    assert "pass1234" not in json.dumps(found.plain())


def test_the_key_of_the_vault_in_a_tag_is_found(settings):
    tracking = Tracking(settings)
    run = tracking.client.create_run(tracking.experiment_id, tags={"note": settings.vault_key.read_bytes().hex()})
    try:
        line = check(settings).line("secrets in MLflow")
    finally:
        tracking.client.delete_run(run.info.run_id)
    assert "the vault's key stands in" in line.sentence


# --- servers that are not there ------------------------------------------------------------------------------------


def test_a_damaged_file_of_servers_is_one_red_line_and_the_rest_is_told(settings):
    settings.servers_file.write_text("{")
    try:
        found = check(settings)
    finally:
        settings.servers_file.unlink()
    assert reds(found) == {"servers"}
    assert "is damaged" in found.line("servers").sentence
    assert found.line("champion's files").tone == "green"


def test_servers_that_died_are_red(settings):
    there = {name: {"url": f"http://127.0.0.1:{free_port()}", "pid": os.getpid()} for name in ("mlflow", "prefect")}
    settings.servers_file.write_text(json.dumps(there))
    try:
        found = check(settings)
    finally:
        settings.servers_file.unlink()
    assert reds(found) == {"servers"}
    assert "mlflow and prefect should run here" in found.line("servers").sentence


def test_what_a_check_stumbles_over_is_its_own_line(settings):
    head = settings.store / "heads" / "last-night.json"
    with broken(head, b'{"decision": "PROMOTE"}'):
        found = check(settings)
    assert "the check data failed: KeyError" in found.line("data").sentence
    assert found.line("champion's files").tone == "green"


# --- operated ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operated(settings):
    """The same home, up: both servers, a worker, the deployments."""
    ports = ["--prefect-port", free_port(), "--mlflow-port", free_port()]
    said = recsys("up", "--home", settings.home, *ports)
    try:
        assert said.returncode == 0, said.stdout + said.stderr
        from prefect.client.orchestration import SyncPrefectClient

        with SyncPrefectClient(settings.running()["prefect"]) as client:
            yield client
    finally:
        recsys("down", "--home", settings.home)


def test_an_operated_home_is_green_but_for_nobody_being_told(settings, operated):
    found = check(settings)
    assert {line.name for line in found.lines if line.tone != "green"} == {"notifications"}, found
    assert {"worker", "next runs", "zombies", "missed nights"} <= {line.name for line in found.lines}
    assert {each.name for each in operated.read_deployments()} == set(DEPLOYMENTS)


def test_a_paused_pool_is_red(settings, operated):
    from prefect.client.schemas.actions import WorkPoolUpdate

    operated.update_work_pool("recsys", WorkPoolUpdate(is_paused=True))
    try:
        line = check(settings).line("work pool")
    finally:
        operated.update_work_pool("recsys", WorkPoolUpdate(is_paused=False))
    assert line.tone == "red"


def test_a_worker_that_prefect_does_not_know_is_red(settings, operated):
    line = None
    for _ in range(5):  # the living worker may say that it is there just between the two
        for worker in operated.read_workers_for_work_pool("recsys"):
            path = "/work_pools/{work_pool_name}/workers/{name}"
            operated.request("DELETE", path, path_params={"work_pool_name": "recsys", "name": worker.name})
        line = check(settings).line("worker")
        if line.tone == "red":
            break
    assert line.tone == "red"
    assert "no worker is alive" in line.sentence


def test_a_paused_deployment_is_yellow(settings, operated):
    deployment = operated.read_deployment_by_name("score/score")
    operated.pause_deployment(deployment.id)
    try:
        line = check(settings).line("deployments")
    finally:
        operated.resume_deployment(deployment.id)
    assert line.tone == "yellow"
    assert "paused: score" in line.sentence


def test_a_schedule_that_does_not_fire_is_red(settings, operated):
    """As with SQLAlchemy 2.1: the deployment is there, its schedule active, and no run ever comes into being."""
    from prefect.client.schemas.filters import FlowRunFilter

    deployment = operated.read_deployment_by_name("nightly/nightly")
    filter_ = FlowRunFilter(deployment_id={"any_": [deployment.id]})
    while runs := operated.read_flow_runs(flow_run_filter=filter_):
        for run in runs:
            operated.delete_flow_run(run.id)
    line = check(settings).line("next runs")
    assert line.tone == "red"
    assert line.sentence.startswith("no run of nightly")


def test_late_and_dead_runs_are_told(settings, operated):
    from prefect import flow
    from prefect.client.schemas.objects import State, StateDetails, StateType

    @flow
    def night() -> None: ...

    then = datetime.now(UTC) - timedelta(hours=1)
    late = State(type=StateType.SCHEDULED, name="Late", state_details=StateDetails(scheduled_time=then))
    waits = operated.create_flow_run(night, state=late, name="waits")
    dead = operated.create_flow_run(night, state=State(type=StateType.RUNNING), name="dead")
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    operated.update_flow_run(dead.id, infrastructure_pid=f"{socket.gethostname()}:{nobody.pid}")
    try:
        found = check(settings)
    finally:
        for run in (waits, dead):
            operated.delete_flow_run(run.id)
    assert found.line("late runs").tone == "red"
    assert found.line("zombies").tone == "red"
    assert f"dead ({dead.id})" in found.line("zombies").sentence


def test_a_zombie_automation_that_is_gone_is_red(settings, operated):
    for automation in operated.read_automations(limit=200):
        if "dead" in automation.name:
            operated.delete_automation(automation.id)
    assert check(settings).line("zombie automation").tone == "red"


def test_an_operated_home_with_old_data_is_red(settings, operated):
    assert check(settings, MonitorConfig(max_age_days=1e-9)).line("data").tone == "red"


# --- last, because it cannot be undone -----------------------------------------------------------------------------


def test_a_deleted_champion_is_red_and_the_others_are_named(settings):
    registry_of(settings).client.delete_model_version(STUDENT, "2")
    found = check(settings)
    line = found.line("champion")
    assert line.tone == "red"
    assert "has no version 2" in line.sentence
    assert found.line("champion's files").tone == "yellow"


def test_days_since_users_were_forgotten_are_counted_in_words(monkeypatch):
    monkeypatch.setattr(checkup_champion, "forgotten_users", lambda vault: {"a token"})
    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    patient = SimpleNamespace(
        settings=SimpleNamespace(vault=None), champion=SimpleNamespace(number=3, tags={UNFORGOTTEN: yesterday})
    )
    assert "were forgotten 1 day ago" in checkup_champion.forgotten(patient).sentence
    patient.champion.tags.clear()
    assert checkup_champion.forgotten(patient).sentence == "the champion never knew 1 user, forgotten since"
