"""The main job, whole: a real Prefect flow run over a real store, MLflow and Optuna, on a small shop with an answer."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.synthetic import shop
from tasks.adapters.vault import Vault
from tests import fork_server
from tests.faults.night import Truth, broken
from tests.faults.tracer import possible

RECSYS = Path(sys.executable).with_name("recsys")
STEPS = ["validate", "build", "teach", "label", "distil", "compress", "evaluate", "judge", "promote", "tell"]
SMALL = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=6", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=3", "search.epochs=4", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0, 0.5]", "data.history_length=16", "data.min_users=40",
    "gate.min_users=40", "gate.teacher_retention=0.5", "gate.quantization_loss=0.2", "compress.max_loss=0.2",
    "limits.size_ratio=2", "limits.coverage_ratio=0.1", "limits.latency_ms=1000", "gate.slice_loss=0.9",
    "gate.neighbours_loss=0.5", "gate.champion_loss=0.5", "limits.popularity_ratio=3",
]  # fmt: skip
KILLED_AT = [("teach", 250), ("distil", 200), ("compress", 600), ("evaluate", 300), ("judge", 60), ("promote", 400)]
"""Steps, and which call of each."""
QUICKLY = ["search.trials=2", "search.epochs=1", "compress.recovery_epochs=0"]


def run(home: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return fork_server.run(command(home, *arguments)[1:], environment(env))


def run_alone(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process that has imported nothing before."""
    return subprocess.run(command(home, *arguments), capture_output=True, text=True, env=environment(), timeout=400)


def command(home: Path, *arguments: str) -> list[str]:
    knobs = [word for knob in SMALL for word in ("--set", knob)]
    return [str(RECSYS), "nightly", "--home", str(home), *knobs, *arguments]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """A stranger's: no RECSYS_*, PREFECT_* or MLFLOW_* variables, and a home folder nothing can be written to."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_"))}
    return {**kept, "HOME": "/proc/nobody", "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1", **(more or {})}


def head(home: Path) -> dict:
    return json.loads((home / "store" / "heads" / "last-night.json").read_text())


def steps(home: Path) -> dict[str, bool]:
    """Step by step of the last report, whether it was reused."""
    story = json.loads(Path(head(home)["report"]).with_suffix(".json").read_text())
    return {step["name"]: step["reused"] for step in story["steps"]}


def rows(database: Path, query: str) -> list[tuple]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("night")


@pytest.fixture(scope="module")
def data(place) -> Path:
    """A shop of 60 days; `days/` holds all but the last as one file."""
    made = shop(users=400, items=48, events_a_user=24, randomness=0.3, seed=1, days=60)
    made.write(place / "all")
    last_day = pc.max(made.events["timestamp"]).as_py() - 86_400
    early = pc.less(made.events["timestamp"], last_day)
    (place / "days").mkdir()
    pq.write_table(made.events.filter(early), place / "days" / "a.parquet")
    pq.write_table(made.events.filter(pc.invert(early)), place / "last-day.parquet")
    return place


@pytest.fixture(scope="module")
def first(data) -> subprocess.CompletedProcess[str]:
    done = run_alone(data / "home", "--events", str(data / "days"), "--items", str(data / "all" / "items.parquet"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def truth(data, first) -> Truth:
    """What the first night came to, before others go on from there."""
    return Truth.of(data / "home")


@pytest.fixture(scope="module")
def home(data, truth) -> Path:
    return data / "home"


def test_the_first_night_promotes_a_student_that_learnt_the_rule(home, first):
    assert "PROMOTE" in first.stdout
    assert head(home)["decision"] == "PROMOTE"
    story = json.loads(Path(head(home)["report"]).with_suffix(".json").read_text())
    quality = {model["name"]: model["metrics"]["ndcg_at_10"]["value"] for model in story["models"]}
    assert quality["artifact"] > 1.5 * quality["most-popular"], "seven of ten events follow a rule"
    assert quality["teacher"] > 1.5 * quality["most-popular"]


def test_nothing_says_traceback_or_warns_on_the_terminal(first):
    assert "Traceback" not in first.stdout + first.stderr
    assert "leaked" not in first.stderr


def test_a_step_is_one_task_run_of_one_flow_run(home, first):
    database = home / "prefect" / "prefect.db"
    assert rows(database, "SELECT state_type FROM flow_run") == [("COMPLETED",)]
    names = rows(database, "SELECT name, state_type FROM task_run ORDER BY start_time")
    assert [name.rsplit("-", 1)[0] for name, _ in names] == STEPS
    assert {state for _, state in names} == {"COMPLETED"}
    keys = {key for (key,) in rows(database, "SELECT key FROM artifact")}
    assert {"verdict", "night", "report"} <= keys


def test_mlflow_remembers_the_night_its_trials_and_what_it_was_made_from(home, first):
    database = home / "mlflow" / "mlflow.db"
    runs = dict(rows(database, "SELECT run_uuid, status FROM runs"))
    assert set(runs.values()) == {"FINISHED"}
    trials = rows(database, "SELECT value FROM tags WHERE key = 'mlflow.runName' AND value LIKE 'trial %'")
    assert sorted(trials) == [("trial 0",), ("trial 1",), ("trial 2",)]
    chosen = rows(database, "SELECT value, count(*) FROM params WHERE key = 'chosen' GROUP BY value")
    assert dict(chosen)["True"] == 1, "every point of the grid is a run, and one of them was chosen"
    assert dict(chosen)["False"] >= 3
    assert rows(database, "SELECT name, version FROM model_versions ORDER BY name") == [
        ("recsys-student", 1), ("recsys-student-ledger", 1), ("recsys-teacher", 1),
    ]  # fmt: skip
    tags = dict(rows(database, "SELECT key, value FROM model_version_tags WHERE name = 'recsys-student'"))
    assert tags["recsys.decision"] == "PROMOTE"
    assert tags["recsys.digest"] == head(home)["artifact"]
    assert {"recsys.teacher", "recsys.student", "recsys.dataset"} <= set(tags)
    assert not [tag for tag in tags if tag.startswith("criterion.")], "the card has them"
    assert len(tags) <= 10
    cards = dict(rows(database, "SELECT name, description FROM model_versions"))
    assert cards["recsys-student"].startswith(f"PROMOTE: {tags['recsys.sentence']}\n\n### What it is\n")
    assert "events.parquet" not in cards["recsys-student"], "a folder of files was given"
    assert "\ndays: " in cards["recsys-student"]
    assert "| artifact | 0." in cards["recsys-student"]
    assert cards["recsys-teacher"].startswith("PROMOTE: ")
    assert "Not for serving" in cards["recsys-teacher"]
    for name in ("card.md", "teacher-card.md"):
        assert list((home / "mlflow" / "artifacts").rglob(name)), "with the run too"
    aliases = rows(database, "SELECT name, alias, version FROM registered_model_aliases ORDER BY name")
    assert aliases == [("recsys-student", "champion", 1), ("recsys-teacher", "champion", 1)]
    metrics = {name for (name,) in rows(database, "SELECT DISTINCT key FROM metrics")}
    assert {"artifact/ndcg_at_10", "gate/teacher_kept/low", "validation_ndcg_at_10", "seconds/teach"} <= metrics


def test_no_raw_user_id_is_anywhere_in_the_home(home, first):
    known = b"user-00007"  # the beginning of ten ids
    vault = Vault(home / "vault")
    tokens = [vault.door.token(f"user-00007{digit}") for digit in range(10)]
    assert len(vault.user_ids(tokens)) == 10, "the vault has them, sealed"
    for path in home.rglob("*"):
        if path.is_file() and path.suffix != ".parquet":
            assert known not in path.read_bytes(), path
    for path in (home / "store" / "blobs").rglob("*"):
        if path.is_file() and path.read_bytes()[:4] == b"PAR1":
            table = pq.read_table(path)
            for column in table.columns:
                if pa.types.is_string(column.type):
                    assert not pc.any(pc.starts_with(column, "user-")).as_py(), path


def test_the_same_again_computes_nothing_and_changes_nothing(home, first, data, orchestrator):
    before = sorted(p.name for p in (home / "store" / "blobs").rglob("*"))
    again = run(
        home, "--events", str(data / "days"), "--items", str(data / "all" / "items.parquet"), "--require-promotion",
        env=orchestrator,
    )  # fmt: skip
    assert again.returncode == 3, "it was not promoted again"
    assert head(home)["decision"] == "NO CHANGE"
    assert all(steps(home).values()), "every step is reused"
    assert len(rows(home / "mlflow" / "mlflow.db", "SELECT * FROM model_versions")) == 3
    new = {p.name for p in (home / "store" / "blobs").rglob("*")} - set(before)
    assert new == set()


@pytest.fixture(scope="module")
def next_night(home, data, orchestrator) -> Path:
    """One more day came, as a file of its own."""
    (data / "days" / "b.parquet").write_bytes((data / "last-day.parquet").read_bytes())
    words = ["--events", str(data / "days"), "--items", str(data / "all" / "items.parquet")]
    done = run(home, *words, env=orchestrator)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_a_day_came_in_and_only_the_day_is_read_and_labelled(next_night):
    store = next_night / "store"
    manifests = {step: len(list((store / "objects" / step).iterdir())) for step in ("validate", "teach", "label")}
    assert manifests == {"validate": 2, "teach": 1, "label": 2}, "the teacher is fresh and stays"
    written = sorted(
        sum(file["rows"] or 0 for file in json.loads(path.read_text())["manifest"]["files"])
        for path in (store / "objects" / "label").iterdir()
    )
    assert written[0] <= 0.25 * written[1], "a delta, not everything again"


def test_the_next_night_starts_from_the_champion_and_keeps_every_item_code(next_night):
    heads = next_night / "store" / "heads"
    parents = [json.loads(path.read_text())["digest"] for path in heads.glob("student-parent-for-*.json")]
    assert len(parents) == 2
    assert sum(parent is not None for parent in parents) == 1
    catalogs = [
        pq.read_table(path).column("item_id").to_pylist()
        for path in sorted((next_night / "store" / "views").glob("*/catalog.parquet"), key=lambda p: p.stat().st_size)
    ]
    assert len(catalogs) >= 1
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(catalogs))


@pytest.mark.skipif(not possible(), reason="this machine lets no program be traced")
def test_killed_in_six_steps_it_resumes_to_what_one_left_alone_came_to(data, home, truth, place, orchestrator):
    """SIGKILL for all its processes at a call that changes a file, then the same command again; `broken` states the law."""
    again = place / "killed"
    again.mkdir()
    words = ["--events", str(data / "days" / "a.parquet"), "--items", str(data / "all" / "items.parquet")]
    env = {"RECSYS_VAULT_KEY": str(home / "vault" / "key"), **orchestrator}
    program = "from tests.faults.series import main; main()"
    asked = ["-c", program, again, place, json.dumps(KILLED_AT), *command(again, *words)[1:]]
    killed = fork_server.run(asked, environment(env))
    ends = json.loads(killed.stdout)
    assert [code for code, _ in ends] == [-signal.SIGKILL] * len(KILLED_AT), killed.stderr
    assert [call.split(":")[0] for _, call in ends] == [step for step, _ in KILLED_AT]
    done = run(again, *words, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert broken(again, truth) == []
    finished = [json.loads(p.read_text()) for p in (again / "store" / "views").glob("*/trials.json")]
    assert [len(trials) for trials in finished] == [3]


def test_a_hugging_face_decoder_teaches_too(data, place, orchestrator):
    """A random Qwen2 of a few thousand weights, by directory: labels, students and artifact come from it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(place / "qwen")
    words = [f"lm_teacher.backbone={place / 'qwen'}", "lm_teacher.layers=1", "lm_teacher.epochs=1",
             "lm_teacher.head_width=16", *QUICKLY]  # fmt: skip
    events, items = data / "days" / "a.parquet", data / "all" / "items.parquet"
    words = ["--events", str(events), "--items", str(items), *(w for knob in words for w in ("--set", knob))]
    done = run(place / "lm", *words, env=orchestrator)
    assert done.returncode == 0, done.stdout + done.stderr
    (about,) = (place / "lm" / "store" / "views").glob("*/about.json")
    assert json.loads((about.parent / "teacher.json").read_text())["kind"] != "decoder"


def test_ids_alone_are_enough(data, place, orchestrator):
    words = (w for knob in ("teacher.epochs=1", *QUICKLY) for w in ("--set", knob))
    done = run(place / "ids", "--events", str(data / "days" / "a.parquet"), *words, env=orchestrator)
    assert done.returncode == 0, done.stdout + done.stderr
    assert head(place / "ids")["decision"] in ("PROMOTE", "HOLD", "REJECT")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--events", "nowhere.parquet"], "does not exist"),
        (["--set", "teacher.epoch=3"], "Did you mean teacher.epochs?"),
        (["--set", "teacher.epochs=0"], "greater than or equal to 1"),
        (["--set", "teacher.epochs=many"], "valid integer"),
        (["--preset", "fast"], "Choose one of quick, standard, large"),
        (["--columns", "user_id"], "does not pair our column names"),
        (["--as-of", "yesterday"], "no ISO 8601 time"),
        (["--as-of", "2999-01-01"], "in the future"),
        (["--set", "text.encoder=/tmp"], "/tmp"),
    ],
)
def test_a_mistake_ends_as_a_sentence_and_exit_code_2(data, place, words, message, orchestrator):
    base = [] if "--events" in words else ["--events", str(data / "days" / "a.parquet"),
                                           "--items", str(data / "all" / "items.parquet")]  # fmt: skip
    done = run(place / "mistakes", *base, *words, env=orchestrator)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in said
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4


def test_a_home_that_cannot_be_written_is_said_at_once(data, place):
    (place / "a-file").write_text("in the way")
    done = run_alone(place / "a-file", "--events", str(data / "days" / "a.parquet"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "a-file" in done.stderr


def test_a_shop_of_one_user_is_told_before_anything_is_trained(place, orchestrator):
    lonely = pa.table({"user_id": ["u"] * 30, "item_id": [f"i{n}" for n in range(30)],
                       "timestamp": np.arange(30) * 86_400 + 1_700_000_000})  # fmt: skip
    pq.write_table(lonely, place / "lonely.parquet")
    done = run(place / "mistakes", "--events", str(place / "lonely.parquet"), env=orchestrator)
    assert done.returncode == 2
    assert "user" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((place / "mistakes" / "store" / "objects").glob("teach/*"))


def test_an_empty_day_is_said_and_the_champion_stays(next_night, data, place, orchestrator):
    """The shop's export had no rows: mostly it has failed, so that nobody should believe a night without it."""
    asked = "SELECT alias, version FROM registered_model_aliases"
    standing, last = rows(next_night / "mlflow" / "mlflow.db", asked), head(next_night)
    shutil.copytree(data / "days", place / "with-an-empty-day")
    nothing = pq.read_table(data / "last-day.parquet").slice(0, 0)
    pq.write_table(nothing, place / "with-an-empty-day" / "c.parquet")
    words = ["--events", str(place / "with-an-empty-day"), "--items", str(data / "all" / "items.parquet")]
    done = run(next_night, *words, env=orchestrator)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "the file has no rows (c.parquet). Deliver it whole or, if nothing happened on that day, take it out" in said
    assert rows(next_night / "mlflow" / "mlflow.db", asked) == standing
    assert head(next_night) == last


def test_a_damaged_blob_is_set_aside_and_made_again(home, data, next_night, orchestrator):
    """One bit of the labels flips on the disk: the next command says so, and makes what is damaged anew."""
    store = home / "store"
    before = json.loads(Path(head(home)["report"]).with_suffix(".json").read_text())["decision"]
    assert before in ("PROMOTE", "HOLD", "REJECT", "NO CHANGE")
    view = max((store / "views").glob("*/labels.parquet"), key=lambda path: path.stat().st_size)
    damaged = bytearray(view.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    view.chmod(0o644)
    view.write_bytes(bytes(damaged))
    words = ["--events", str(data / "days"), "--items", str(data / "all" / "items.parquet")]
    done = run(home, *words, env=orchestrator)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list((store / "bad").iterdir()), "the evidence is kept"
    assert "is damaged" in " ".join(done.stdout.split())
