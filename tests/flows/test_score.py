"""Batch scores: written whole, found again, compared with the ones before; and the flow that makes them."""

import importlib.util
import itertools
import json
import os
import signal
import threading
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import DataConfig, EventsConfig
from recsys.dataset import BuildPlan, build
from recsys.decoder import DecoderShape
from recsys.errors import HomeError
from recsys.events import EventSource, validate_file
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.student import Student
from recsys.synthetic import shop
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe
from tasks.adapters.vault import Vault
from tasks.batch_scores import BatchScores, newest, publish
from tasks.workshop import Workshop
from tests import fork_server, new_databases
from tests.faults.tracer import Call, Then, possible, traced
from tests.tasks.adapters.test_killed import alone

ITEMS, USERS = 40, 60


def write_dataset(settings: Settings, events: Path, out: Path) -> None:
    vault = Vault(settings.vault, settings.vault_key)
    source = EventSource({}, None, 2_000_000_000, vault.door, vault.remember)
    validate_file(events, settings.temp / out.name, source, EventsConfig())
    plan = BuildPlan(EventsConfig(), DataConfig(min_users=1), None, 4, 512, settings.temp, 1)
    build([settings.temp / out.name / "accepted.parquet"], None, None, out, plan)


def write_artifact(out: Path, seed: int, dataset: str) -> None:
    ids = [f"item-{item:05d}" for item in range(ITEMS)]
    student = Student.untrained(DecoderShape.of(ITEMS, 16, 1, 8), 0.0, seed=seed).eval()
    catalog = Catalog(ids, [None] * ITEMS, [None] * ITEMS, [None] * ITEMS)
    export(student, Publication(catalog, np.arange(ITEMS, 0, -1), "exclude", {"dataset": dataset}), 8, out)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two datasets, the second a day later; versions 1 and 2; version 1 is champion, the last night saw the first."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_"))]:
            patch.delenv(name)
        settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
        workshop = Workshop.of(settings)
        events = shop(USERS, ITEMS, 6, 0.3, seed=1, days=30).events
        datasets = []
        for part in (events.slice(0, len(events) - 20), events):
            file = settings.temp / f"{len(part)}.parquet"
            pq.write_table(part, file)
            recipe = Recipe("build", 1, {"events": EventsConfig().model_dump(mode="json"), "rows": len(part)}, ())
            made = workshop.store.make(recipe, lambda out, file=file: write_dataset(settings, file, out))
            datasets.append(made.digest)
        run_id = workshop.tracking.start_night("nightly", {}, {})
        for seed in (1, 2):
            recipe = Recipe("artifact", 1, {"seed": seed}, ())
            made = workshop.store.make(recipe, lambda out, seed=seed: write_artifact(out, seed, datasets[0]))
            folder = workshop.store.open("artifact", made.digest)
            words = {"tags": {}, "description": ""}
            workshop.registry.register(STUDENT, folder, "recsys.runtime", run_id=run_id, intent=str(seed), **words)
        workshop.tracking.finish(run_id, "FINISHED")
        promote(workshop, 1)
        yield workshop, datasets, run_id


def promote(workshop: Workshop, version: int) -> None:
    last = workshop.ledger.chain().last
    assert workshop.ledger.append(Entry("promote", version, last, "", "somebody", "it is good")).won


def end_night(workshop: Workshop, dataset: str) -> None:
    head = {"decision": "PROMOTE", "sentence": "", "advice": "", "report": "report.html"}
    workshop.store.set_head("last-night", {**head, "dataset": dataset, "as_of": 1})


def outside() -> dict[str, str]:
    """A stranger's environment."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_"))}


def silent(done: int) -> None:
    pass


def lists(folder: Path) -> dict[str, list[str]]:
    rows = pq.read_table(folder / "recommendations.parquet").to_pylist()
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return found


def test_without_a_night_there_is_nobody_to_score(home):
    with pytest.raises(HomeError, match="no night has ended"):
        publish(home[0], 5, silent)
    assert newest(home[0].settings) is None


def test_scores_are_stamped_and_named_by_as_of_and_version(home):
    workshop, datasets, _ = home
    end_night(workshop, datasets[0])
    published = publish(workshop, 5, silent)
    scores, folder = published.scores, workshop.settings.home / "scores"
    assert not published.reused
    stamp = json.loads((folder / "latest" / "scores.json").read_text())
    assert os.readlink(folder / "latest") == scores.name
    assert scores.name.endswith("Z-v1")
    assert stamp["dataset"] == datasets[0]
    assert stamp["artifact"] == workshop.registry.version(STUDENT, 1).digest
    assert (stamp["version"], stamp["k"], stamp["users"], stamp["rows"]) == (1, 5, USERS, 5 * USERS)
    assert stamp["share_changed"] is None
    assert newest(workshop.settings) == scores
    build = json.loads((workshop.store.open("build", datasets[0]) / "build.json").read_text())
    assert stamp["as_of"] == build["build"]["as_of"]
    table = pq.read_table(folder / "latest" / "recommendations.parquet")
    assert set(table["model_version"].to_pylist()) == {1}
    assert (folder.stat().st_mode & 0o777, (folder / scores.name).stat().st_mode & 0o777) == (0o700, 0o700)


def test_the_same_again_is_found(home):
    workshop, _, _ = home
    before = newest(workshop.settings)
    again = publish(workshop, 5, lambda done: pytest.fail("somebody was scored"))
    assert (again.reused, again.scores) == (True, before)


def test_a_new_champion_changes_lists_and_by_how_much_is_said(home):
    workshop, _, _ = home
    folder = workshop.settings.home / "scores"
    first = newest(workshop.settings)
    promote(workshop, 2)
    second = publish(workshop, 5, silent).scores
    assert (second.version, second.before, second.common_users) == (2, first.name, USERS)
    old, new = lists(folder / first.name), lists(folder / second.name)
    assert second.share_changed == np.mean([set(old[user]) != set(new[user]) for user in old])
    assert second.share_changed > 0.5
    assert second.overlap == pytest.approx(np.mean([len(set(old[u]) & set(new[u])) / 5 for u in old]))
    promote(workshop, 1)
    back = publish(workshop, 5, silent)
    assert (back.reused, back.scores) == (True, first)
    assert os.readlink(folder / "latest") == first.name


def test_a_new_day_and_another_k_have_folders_of_their_own(home):
    workshop, datasets, _ = home
    first = newest(workshop.settings)
    more = publish(workshop, 8, silent).scores
    assert more.name == f"{first.name}.2"
    assert (more.share_changed, more.overlap) == (0.0, 1.0), "the first five are the same"
    end_night(workshop, datasets[1])
    later = publish(workshop, 8, silent).scores
    assert (later.as_of > more.as_of, later.before) == (True, more.name)
    assert 0 < later.share_changed < 1


def test_status_says_how_many_lists_changed(home):
    settings = home[0].settings
    done = fork_server.run(["status", "--home", settings.home], outside())
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert " ".join(f"Batch scores: {newest(settings).sentence}.".split()) in said


def test_what_cannot_be_compared_is_said_and_no_hindrance(home):
    workshop, _, _ = home
    recommendations = workshop.settings.home / "scores" / newest(workshop.settings).name / "recommendations.parquet"
    whole = recommendations.read_bytes()
    recommendations.write_bytes(b"PAR1 nonsense PAR1")
    published = publish(workshop, 3, silent)
    assert published.scores.share_changed is None
    assert any("cannot be compared" in note for note in published.notes)
    recommendations.write_bytes(whole)


def test_who_follows_latest_always_finds_whole_scores(home):
    workshop, datasets, _ = home
    latest, ended, broken, seen = workshop.settings.home / "scores" / "latest", threading.Event(), [], set()

    def follow() -> None:
        while not ended.wait(0.002):
            try:
                folder = latest.resolve(strict=True)
                stamp = json.loads((folder / "scores.json").read_text())
                assert pq.read_metadata(folder / "recommendations.parquet").num_rows == stamp["rows"]
                seen.add(folder.name)
            except Exception as error:
                broken.append(error)
                return

    following = threading.Thread(target=follow)
    following.start()
    try:
        for k in (4, 6, 7):
            for dataset in datasets:
                end_night(workshop, dataset)
                publish(workshop, k, silent)
    finally:
        ended.set()
        following.join()
    assert broken[:1] == []
    assert len(seen) > 1
    assert not list((workshop.settings.home / "scores").glob(".*")), "no drafts are left"


@pytest.mark.skipif(not possible(), reason="this machine lets no program be traced")
def test_a_scoring_that_is_killed_at_any_of_its_calls_leaves_whole_scores_and_is_gone_on_with(home):
    workshop, datasets, _ = home
    settings, left = workshop.settings, []
    end_night(workshop, datasets[0])
    before = publish(workshop, 8, silent).scores

    def program() -> NoReturn:
        publish(Workshop.anew(settings), 9, silent)
        os._exit(0)

    def watch(at: int) -> None:
        calls = itertools.count(1)

        def kill(call: Call) -> Then | None:
            return Then.KILL_ALL if call.path.startswith("scores/") and next(calls) == at else None

        os._exit(traced(program, settings.home, kill) == -signal.SIGKILL)

    for at in itertools.count(1):
        to_its_end = alone(watch, at) == 0
        scores = newest(settings)
        folder = settings.home / "scores" / "latest"
        assert pq.read_metadata(folder / "recommendations.parquet").num_rows == scores.rows
        left.append(scores.k)
        if to_its_end:
            break
    assert left == sorted(left), "never back to what was before"
    assert {left[0], left[-1]} == {before.k, 9}
    assert len(left) > 3
    assert publish(workshop, 9, silent).scores == newest(settings)


def test_the_flow_scores_tells_and_records(home):
    workshop, datasets, run_id = home
    end_night(workshop, datasets[1])
    settings = workshop.settings
    program = """
import sys
from pathlib import Path
from tasks.adapters.settings import Settings
Settings.from_environment(Path(sys.argv[1])).prepare().export()
from flows.score import score
first = score(k=2)
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    artifacts = {artifact.key: artifact.data for artifact in client.read_artifacts()}
print(artifacts.get("workers"))
print(sorted(artifacts))
print(first.model_dump_json())
"""
    cluster = {"RECSYS_EXECUTOR": "dask://local"} if importlib.util.find_spec("distributed") else {}
    new_databases.prefect(settings.prefect)
    done = fork_server.run(["-c", program, settings.home], {**outside(), **cluster})
    assert done.returncode == 0, done.stderr[-3000:]
    page, keys, scores = done.stdout.splitlines()[-3:]
    assert keys == str(["progress-score", "scores", *(["workers"] if cluster else [])])
    assert "[Dask's page](http://127.0.0.1:" in page or not cluster
    told = BatchScores.model_validate_json(scores)
    assert told == newest(settings)
    assert (told.k, told.version) == (2, 1)
    metrics = workshop.tracking.metrics(run_id)
    assert metrics["scores/users"] == USERS
    assert metrics["scores/share_changed"] == told.share_changed


def test_the_form_bounds_the_number_of_items():
    from prefect.utilities.callables import parameter_schema

    from flows.score import score

    schema = parameter_schema(score.fn).model_dump()["properties"]["k"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (1, 1000, 10)
