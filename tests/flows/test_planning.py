"""A home of the previous release goes on: what `plan` foretells of each night is what the night does, step by step."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.planning import PlannedStep, plan
from recsys.errors import DataError
from recsys.resolve import resolve
from tasks.adapters.registry import TEACHER
from tasks.adapters.settings import Settings
from tasks.night import Source
from tasks.workshop import Workshop
from tests import fork_server

RECSYS = Path(sys.executable).with_name("recsys")
REFRESH = """
import sys
from pathlib import Path
from recsys.resolve import resolve
from tasks.adapters.settings import Settings
Settings.from_environment(Path(sys.argv[1])).prepare().export()
from flows.refresh_teacher import refresh_teacher
from tasks.night import Source
config = resolve("quick", sys.argv[4:])
sections = ("events", "data", "text", "teacher", "lm_teacher", "labels", "gate", "cost")
source = Source(events=sys.argv[2], items=sys.argv[3])
refreshed = refresh_teacher(source=source, **{name: getattr(config, name) for name in sections})
print(refreshed.model_dump_json())
"""


@dataclass(frozen=True)
class Home:
    """Of the previous release, its shop, the knobs of its one night, and the variable that names its Prefect."""

    settings: Settings
    shop: Path
    knobs: list[str]
    orchestrator: dict[str, str]


@pytest.fixture(scope="module")
def home(released_for_module, orchestrator):
    days = released_for_module.shop / "days"
    days.mkdir()
    os.rename(released_for_module.shop / "events.parquet", days / "a.parquet")
    return Home(**vars(released_for_module), orchestrator=orchestrator)


def child(home, *words: str, threads: int = 1) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    environment = {**kept, "RECSYS_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), **home.orchestrator}
    if threads == 1:
        done = fork_server.run(words, environment)
    else:
        done = subprocess.run([RECSYS, *words], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def night(home, *knobs: str, threads: int = 1) -> dict[str, bool]:
    """Whether each step was reused."""
    words = [word for knob in (*home.knobs, *knobs) for word in ("--set", knob)]
    places = ["--events", str(home.shop / "days"), "--items", str(home.shop / "items.parquet")]
    child(home, "nightly", "--home", str(home.settings.home), *places, *words, threads=threads)
    report = json.loads((home.settings.store / "heads" / "last-night.json").read_text())["report"]
    story = json.loads(Path(report).with_suffix(".json").read_text())
    return {step["name"]: step["reused"] for step in story["steps"]}


def foretold(home, *knobs: str, threads: int = 1) -> tuple[PlannedStep, ...]:
    def written() -> set[Path]:
        places = ("blobs", "manifests", "objects", "heads", "scratch", "tmp", "bad")
        return {path for place in places for path in (home.settings.store / place).rglob("*")}

    before = written()
    workshop = Workshop.of(dataclasses.replace(home.settings, threads=threads))
    source = Source(events=str(home.shop / "days"), items=str(home.shop / "items.parquet"))
    steps = plan(workshop, source, resolve("quick", [*home.knobs, *knobs]))
    assert written() == before, "nothing is made"
    return steps


def assert_true(planned: tuple[PlannedStep, ...], reused: dict[str, bool]) -> None:
    """Found as foretold, up to the first step that is made; from there on it was not known."""
    assert [step.name for step in planned] == list(reused)
    whats = [step.what for step in planned]
    made = whats.index("compute") if "compute" in whats else len(whats)
    assert whats == ["reuse"] * made + ["compute"] * (made < len(whats)) + ["depends"] * (len(whats) - made - 1)
    for step in planned:
        if step.what != "depends":
            assert reused[step.name] == (step.what == "reuse"), step


def last_run(home) -> dict[str, str]:
    run_id = json.loads((home.settings.store / "heads" / "last-night.json").read_text())["run_id"]
    return Workshop.of(home.settings).tracking.client.get_run(run_id).data.tags


def test_a_home_of_the_previous_release_goes_on(own_environment, home):
    status = child(home, "status", "--home", str(home.settings.home))
    assert "Champion: recsys-student version 1" in " ".join(status.split())
    planned = foretold(home)
    reused = night(home)
    assert_true(planned, reused)
    assert reused["validate"]
    assert reused["build"]
    assert (home.settings.home / "format").read_text() == "2", "an earlier version does not open it any more"
    if all(reused.values()):  # the same torch and instruction set as where the home was made
        assert last_run(home)["recsys.decision"] == "NO CHANGE"
        assert planned[-1].why == "the candidate is the champion, version 1, byte by byte"
        assert all(step.estimate.bytes == 0 for step in planned)


def test_the_night_after_a_refresh_uses_the_new_teacher_and_its_labels(own_environment, home):
    places = [str(home.settings.home), str(home.shop / "days"), str(home.shop / "items.parquet")]
    said = child(home, "-c", REFRESH, *places, *home.knobs, "teacher.epochs=5")
    refreshed = json.loads(said.strip().splitlines()[-1])
    assert refreshed["decision"] == "PROMOTE"
    assert refreshed["is_champion"]
    workshop = Workshop.of(home.settings)
    assert workshop.registry.aliases(TEACHER)["champion"] == refreshed["champion"] == refreshed["version"]
    new = workshop.registry.version(TEACHER, refreshed["version"])
    assert new.sentence == refreshed["sentence"]
    assert "| previous-teacher | 0." in new.description, "its card shows the teacher before it"
    (run,) = workshop.tracking.client.search_runs([workshop.tracking.experiment_id], "tags.`recsys.occasion` != ''")
    assert run.info.status == "FINISHED"
    assert run.data.tags["recsys.teacher_decision"] == "PROMOTE"
    assert {"teacher/ndcg_at_10", "previous_teacher/ndcg_at_10", "seconds/teach"} <= set(run.data.metrics)
    planned = foretold(home)
    reused = night(home)
    assert_true(planned, reused)
    assert last_run(home)["recsys.teacher"] == refreshed["teacher"]["digest"]
    assert reused["teach"]
    assert reused["label"], "the base segment was written by the refresh"
    assert not reused["distil"]
    assert planned[4].why.startswith("another ")


def test_a_turned_knob_is_named(own_environment, home):
    planned = foretold(home, "search.trials=3")
    assert [step.name for step in planned if step.what == "compute"] == ["distil"]
    assert planned[4].why == "search.trials is 3, was 2"
    assert planned[4].estimate.seconds > 0
    assert planned[4].estimate.bytes > 1000
    assert_true(planned, night(home, "search.trials=3"))


def test_other_threads_write_other_labels(own_environment, home):
    planned = foretold(home, threads=2)
    assert [step.name for step in planned if step.what == "compute"] == ["label"]
    assert planned[3].why == "threads is 2, was 1"
    assert_true(planned, night(home, threads=2))


def test_one_more_day_is_a_new_file(own_environment, home):
    table = pq.read_table(home.shop / "days" / "a.parquet")
    newest = pa.array([max(table["timestamp"].to_pylist()) + 86_400] * 40, table.schema.field("timestamp").type)
    day = table.slice(0, 40).set_column(table.schema.get_field_index("timestamp"), "timestamp", newest)
    pq.write_table(day, home.shop / "days" / "b.parquet")
    planned = foretold(home)
    assert planned[0].what == "compute"
    assert planned[0].why == "reading b.parquet: the file is new or has changed"
    reused = night(home)
    assert_true(planned, reused)
    assert reused["teach"], "the teacher is fresh and stays"
    assert foretold(home)[0].what == "reuse"
    pq.write_table(day.slice(1), home.shop / "days" / "b.parquet")
    assert foretold(home)[0].why == "reading b.parquet: the file is new or has changed", "sent again with a row less"
    pq.write_table(day, home.shop / "days" / "b.parquet")


def test_the_plan_refuses_what_the_night_would_refuse(own_environment, home):
    with pytest.raises(DataError, match="does not exist"):
        plan(Workshop.of(home.settings), Source(events="/nowhere.parquet"), resolve("quick"))


def test_the_command_shows_steps_reasons_and_sums(own_environment, home):
    words = [word for knob in home.knobs for word in ("--set", knob)]
    places = ["--events", str(home.shop / "days"), "--items", str(home.shop / "items.parquet")]
    said = child(home, "plan", "--home", str(home.settings.home), *places, *words, "--set", "compress.max_loss=0.4")
    assert "compress compute compress.max_loss is 0.4, was 0.5" in " ".join(said.split())
    assert "judge depends on compress" in " ".join(said.split())
    assert "at most" in said
