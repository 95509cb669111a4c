"""Batch scoring: who gets what, from which history, by which model, and what is refused."""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from recsys import past
from recsys.config import DataConfig, EventsConfig, TextConfig
from recsys.dataset import BuildPlan, build
from recsys.decoder import DecoderShape
from recsys.errors import ConfigError, DataError, HomeError, RegistryError
from recsys.events import EventSource, validate_file
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.item_text import TextEncoder, sentence
from recsys.new_items import text_map_of
from recsys.runtime import Runtime
from recsys.split import DAY
from recsys.student import Student
from recsys.text_map import TextMap
from tasks import scoring
from tasks.adapters.ledger import Entry, Ledger
from tasks.adapters.registry import STUDENT, Registry
from tasks.adapters.settings import LOCAL, Settings
from tasks.adapters.store import Recipe, Store
from tasks.adapters.tracking import Tracking
from tasks.adapters.vault import Vault
from tasks.score_users import Request, score_users
from tasks.scoring import RECOMMENDATIONS
from tasks.workshop import Workshop

KNOWN = [f"item-{number}" for number in range(12)]
COUNTS = np.arange(12, 0, -1)  # item-0 is the most popular
TITLES = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("mug", "lamp", "chair", "towel")]
FIRST = 1_700_000_000
EVENTS = [  # user, item, day; item-new is unknown to the model
    *((f"user-{number}", f"item-{number + step}", step) for number in range(6) for step in range(4)),
    *((f"user-{number}", f"item-{number + 4}", 20) for number in range(6)),
    *((f"user-{number}", f"item-{number + 5}", 30) for number in range(6)),
    ("user-0", "item-new", 31),
    ("user-new", "item-new", 31),
]


def write_events(path: Path, events: list[tuple[str, str, int]]) -> Path:
    users, items, days = zip(*events, strict=True)
    times = [FIRST + DAY * day for day in days]
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
    return path


def write_dataset(settings: Settings, events: Path, out: Path) -> None:
    vault = Vault(settings.vault, settings.vault_key)
    source = EventSource({}, None, FIRST + 1000 * DAY, vault.door, vault.remember)
    validate_file(events, settings.temp / "accepted", source, EventsConfig())
    plan = BuildPlan(EventsConfig(), DataConfig(min_users=1), None, 4, 512, settings.temp)
    build([settings.temp / "accepted" / "accepted.parquet"], None, None, out, plan)


def write_artifact(out: Path, dataset: str, repeats: str = "exclude") -> None:
    """Its codes are not those of the dataset."""
    student = Student.untrained(DecoderShape.of(12, 16, 1, 4), 0.0, seed=0).eval()
    catalog = Catalog(list(reversed(KNOWN)), [None] * 12, [None] * 12, [None] * 12)
    export(student, Publication(catalog, COUNTS[::-1].copy(), repeats, {"dataset": dataset}), 8, out)


def write_reading_artifact(out: Path, dataset: str) -> None:
    """One that has learnt what a title says."""
    student = Student.untrained(DecoderShape.of(12, 16, 1, 4), 0.0, seed=0).eval()
    encoder = TextEncoder(TextConfig())
    texts = encoder.encode([sentence(title, None, None) for title in TITLES])
    text_map = TextMap.of(student.item_table().detach().numpy()[1:], texts, COUNTS, encoder.described())
    catalog = Catalog(KNOWN, TITLES, [None] * 12, [None] * 12)
    publication = Publication(catalog, COUNTS, "exclude", {"dataset": dataset}, text_map=text_map)
    export(student, publication, 32, out)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A home in which a night has ended: version 1 is champion, version 2 allows repeats and is challenger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
        store = Store(settings.store)
        events = write_events(settings.temp / "events.parquet", EVENTS)
        config = {"events": EventsConfig().model_dump(mode="json", exclude={"max_quarantined"})}
        dataset = store.make(Recipe("build", 1, config, ()), lambda out: write_dataset(settings, events, out))
        tracking = Tracking(settings)
        registry = Registry(settings, tracking.client, lambda: tracking.experiment_id)
        run_id = tracking.start_night("nightly", {}, {})
        for repeats in ("exclude", "allow"):
            made = store.make(
                Recipe("artifact", 1, {"repeats": repeats}, ()),
                lambda out, repeats=repeats: write_artifact(out, dataset.digest, repeats),
            )
            folder = store.open("artifact", made.digest)
            registry.register(STUDENT, folder, "recsys.runtime", run_id=run_id, intent=repeats, tags={}, description="")
        made = store.make(
            Recipe("artifact", 1, {"reads": True}, ()), lambda out: write_reading_artifact(out, dataset.digest)
        )
        folder = store.open("artifact", made.digest)
        registry.register(STUDENT, folder, "recsys.runtime", run_id=run_id, intent="reads", tags={}, description="")
        tracking.finish(run_id, "FINISHED")
        Ledger(settings, registry).append(Entry("promote", 1, 0, "", "somebody", "it is good"))
        registry.set_alias(STUDENT, "challenger", 2)
        head = {"dataset": dataset.digest, "as_of": FIRST + 31 * DAY + 1, "report": "report.html"}
        store.set_head("last-night", {**head, "decision": "PROMOTE", "sentence": "It is good.", "advice": ""})
        yield settings


@pytest.fixture
def request_of(tmp_path):
    def of(**fields: object) -> Request:
        asked = {"model": "champion", "users": None, "events": None, "columns": {}, "k": 5}
        return Request(**{**asked, "out": tmp_path / "recs.parquet", **fields})

    return of


def runtime_of(settings: Settings, version: int) -> Runtime:
    tracking = Tracking(settings)
    registry = Registry(settings, tracking.client, lambda: tracking.experiment_id)
    return Runtime.open(Store(settings.store).open("artifact", registry.version(STUDENT, version).digest))


def score(settings, request):
    scored = score_users(settings, request, lambda done: None)
    table = pq.read_table(request.out, page_checksum_verification=True)
    assert table.num_rows == scored.rows
    served = {}
    for row in table.to_pylist():
        served.setdefault(row["user_id"], []).append(row)
    assert len(served) == scored.users
    for rows in served.values():
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    return scored, table, served


def test_everybody_is_served_from_all_events_up_to_as_of(settings, request_of):
    scored, table, served = score(settings, request_of())
    assert table.schema.equals(RECOMMENDATIONS)
    assert set(served) == {user for user, _, _ in EVENTS}
    assert (scored.version, scored.as_of, scored.notes) == (1, FIRST + 31 * DAY + 1, ())
    runtime = runtime_of(settings, 1)
    for user, rows in served.items():
        history = [item for who, item, _ in sorted(EVENTS, key=lambda event: event[2]) if who == user]
        expected = runtime.recommend([history], 5)[0]
        assert [row["item_id"] for row in rows] == [item.item_id for item in expected]
        assert np.allclose([row["score"] for row in rows], [item.score for item in expected], atol=1e-6)
        assert not {row["item_id"] for row in rows} & set(history)
        assert {row["model_version"] for row in rows} == {1}


def test_new_items_are_ranked_by_their_texts_and_the_old_as_before(settings, request_of, tmp_path):
    rows = {"item_id": ["item-new", "item-0", "item-dumb"], "title": ["red lamp", "red mug", None]}
    pq.write_table(pa.table(rows), tmp_path / "items.parquet")
    before = score(settings, request_of(model="3", k=14))[2]
    scored, _, served = score(settings, request_of(model="3", k=14, items=tmp_path / "items.parquet"))
    assert scored.notes == ("1 of 3 items are new and ranked by their texts",)
    folder = Store(settings.store).open("artifact", Workshop.of(settings).registry.version(STUDENT, 3).digest)
    row = text_map_of(folder).rows(TextEncoder(TextConfig()).encode(["red lamp."]))[0]
    runtime = runtime_of(settings, 3)
    for user, rows in served.items():
        old = {row["item_id"]: row["score"] for row in before[user]}
        assert {row["item_id"]: row["score"] for row in rows if row["item_id"] != "item-new"} == old
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        history = [item for who, item, _ in sorted(EVENTS, key=lambda event: event[2]) if who == user]
        new = [row["score"] for row in rows if row["item_id"] == "item-new"]
        if "item-new" in history:
            assert new == []
        else:
            state = runtime.graph.states([runtime.codes(history)[-4:]])[0]
            assert new == pytest.approx([float(state @ row)], abs=1e-5)


def test_a_model_that_reads_no_texts_cannot_take_new_items(settings, request_of, tmp_path):
    pq.write_table(pa.table({"item_id": ["item-new"], "title": ["red lamp"]}), tmp_path / "items.parquet")
    with pytest.raises(ConfigError, match="has learnt nothing of texts"):
        score(settings, request_of(items=tmp_path / "items.parquet"))


def test_a_user_with_none_but_unknown_items_gets_the_most_popular(settings, request_of):
    scored, _, served = score(settings, request_of())
    assert [row["item_id"] for row in served["user-new"]] == KNOWN[:5]
    assert {row["source"] for row in served["user-new"]} == {"popularity"}
    assert {row["source"] for row in served["user-0"]} == {"model"}
    assert scored.by_popularity == 1


def test_the_size_of_a_batch_changes_nothing(settings, request_of, monkeypatch):
    _, whole, _ = score(settings, request_of())
    monkeypatch.setattr(past, "BATCH", 2)
    done = []
    score_users(settings, request_of(), done.append)
    assert len(done) >= 4
    assert pq.read_table(request_of().out).equals(whole)


@pytest.mark.parametrize("cluster", ["", LOCAL])
def test_whoever_works_the_file_is_the_same_to_the_byte(settings, request_of, tmp_path, monkeypatch, cluster):
    """Of a model with new items, which is in no file. Two processes, or two of Dask's workers."""
    if cluster:
        pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    monkeypatch.setattr(scoring, "_EVENTS_A_PART", 10)
    rows = {"item_id": ["item-new", "item-0"], "title": ["red lamp", "red mug"]}
    pq.write_table(pa.table(rows), tmp_path / "items.parquet")
    asked = {"model": "3", "k": 14, "items": tmp_path / "items.parquet"}
    parts, seen = [], []
    one = dataclasses.replace(settings, threads=1, workers=1)
    scored = score_users(one, request_of(**asked, out=tmp_path / "one.parquet"), parts.append)
    two = dataclasses.replace(settings, threads=1, workers=2, cluster=cluster)
    again = score_users(two, request_of(**asked, out=tmp_path / "two.parquet"), lambda _: None, seen.append)
    assert len(parts) > 2
    assert [str(workers)[:2] for workers in seen] == ["2 "]
    assert again == scored
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_a_file_of_users_is_served_and_nobody_else(settings, request_of, tmp_path):
    (tmp_path / "users.csv").write_text("user_id,why\nstranger,a\nuser-3,b\nstranger,c\nuser-1,d\n")
    scored, _, served = score(settings, request_of(users=tmp_path / "users.csv", k=3))
    _, _, everybody = score(settings, request_of(k=3))
    assert set(served) == {"stranger", "user-1", "user-3"}
    assert served["user-3"] == everybody["user-3"]
    assert [row["item_id"] for row in served["stranger"]] == KNOWN[:3]
    assert [row["score"] for row in served["stranger"]] == [12, 11, 10]
    assert {row["source"] for row in served["stranger"]} == {"popularity"}
    assert scored.notes == ("1 rows name a user again: each is served once",)
    assert (scored.users, scored.by_popularity) == (3, 1)


def test_the_column_of_a_file_of_users_may_have_another_name(settings, request_of, tmp_path):
    pq.write_table(pa.table({"CustomerID": ["user-1"]}), tmp_path / "users.parquet")
    columns = {"user_id": "CustomerID", "item_id": "SKU"}
    _, _, served = score(settings, request_of(users=tmp_path / "users.parquet", columns=columns))
    assert set(served) == {"user-1"}


@pytest.mark.parametrize(
    ("text", "where"), [("user_id,x\na,1\n,2\n", "row 3: missing"), ("user_id,x\na,1\nb,2\n   ,3\n", "row 4: blank")]
)
def test_a_row_that_names_no_user_is_refused(settings, request_of, tmp_path, text, where):
    (tmp_path / "users.csv").write_text(text)
    with pytest.raises(DataError, match=f"1 rows name no user .users.csv, column user_id, {where}"):
        score_users(settings, request_of(users=tmp_path / "users.csv"), lambda done: None)
    assert list(tmp_path.iterdir()) == [tmp_path / "users.csv"]


def test_a_null_user_is_refused_by_its_row(settings, request_of, tmp_path):
    pq.write_table(pa.table({"user_id": ["a", None]}), tmp_path / "users.parquet")
    with pytest.raises(DataError, match=r"users\.parquet, column user_id, row 2: missing"):
        score_users(settings, request_of(users=tmp_path / "users.parquet"), lambda done: None)


def test_histories_may_come_from_other_events(settings, request_of, tmp_path):
    events = [("user-1", "item-9", 40), ("guest", "item-9", 41), ("guest", "item-9", 42), ("lost", "item-new", 42)]
    path = write_events(tmp_path / "today.parquet", events)
    scored, _, served = score(settings, request_of(events=path))
    expected = [item.item_id for item in runtime_of(settings, 1).recommend([["item-9"]], 5)[0]]
    assert set(served) == {"user-1", "guest", "lost"}
    assert [row["item_id"] for row in served["guest"]] == expected
    assert [row["item_id"] for row in served["user-1"]] == expected
    assert [row["item_id"] for row in served["lost"]] == KNOWN[:5]
    assert scored.as_of == FIRST + 42 * DAY + 1
    vault = Vault(settings.vault, settings.vault_key)
    assert vault.user_ids([vault.door.token("guest")]) == {}, "a passing user is not kept"
    assert vault.user_ids([vault.door.token("user-1")]) != {}


def test_a_model_that_allows_repeats_is_served_with_them(settings, request_of, tmp_path):
    events = [("guest", "item-9", 40), ("guest", "item-3", 41), ("guest", "item-9", 42)]
    path = write_events(tmp_path / "today.parquet", events)
    _, _, served = score(settings, request_of(events=path, model="challenger", k=12))
    expected = runtime_of(settings, 2).recommend([["item-9", "item-3", "item-9"]], 12)[0]
    assert [row["item_id"] for row in served["guest"]] == [item.item_id for item in expected]
    assert {"item-9", "item-3"} <= {item.item_id for item in expected}
    assert {row["model_version"] for row in served["guest"]} == {2}


def test_a_dataset_without_repeats_does_not_serve_a_model_that_wants_them(settings, request_of):
    with pytest.raises(ConfigError, match="left repeated items out of its histories"):
        score_users(settings, request_of(model="2"), lambda done: None)


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"model": "best"}, ConfigError, "'best' names no model"),
        ({"model": "7"}, RegistryError, "no version 7"),
        ({"out": Path("recs.csv")}, ConfigError, "recs.csv is no .parquet file"),
        ({"out": Path("/nowhere/recs.parquet")}, ConfigError, "in a folder that is there"),
        ({"users": Path("/nowhere/users.csv")}, DataError, "does not exist"),
        ({"events": Path("/nowhere/events.csv")}, DataError, "does not exist"),
    ],
)
def test_what_is_not_there_is_said(settings, request_of, fields, error, match):
    with pytest.raises(error, match=match):
        score_users(settings, request_of(**fields), lambda done: None)


def test_an_alias_that_is_not_set_is_said_with_what_there_is(settings, request_of):
    tracking = Tracking(settings)
    registry = Registry(settings, tracking.client, lambda: tracking.experiment_id)
    registry.set_alias(STUDENT, "challenger", None)
    try:
        with pytest.raises(RegistryError, match=r"there is no challenger of recsys-student .* there are: 1, 2, 3\."):
            score_users(settings, request_of(model="challenger"), lambda done: None)
    finally:
        registry.set_alias(STUDENT, "challenger", 2)


def test_a_home_without_a_night_says_so(settings, request_of):
    before = Store(settings.store).head("last-night")
    Path(settings.store, "heads", "last-night.json").unlink()
    try:
        with pytest.raises(HomeError, match="no night has ended in this home"):
            score_users(settings, request_of(), lambda done: None)
    finally:
        Store(settings.store).set_head("last-night", before)


def test_the_command_writes_the_same_file(settings, request_of, tmp_path, monkeypatch):
    _, expected, _ = score(settings, request_of())
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    before = dict(os.environ)
    try:
        out = tmp_path / "by-command.parquet"
        arguments = ["score", "--home", str(settings.home), "--users", "all", "-k", "5", "--out", str(out)]
        result = CliRunner().invoke(app, arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{expected.num_rows} rows in {out}\n"
    assert "Version 1 served 7 users, 1 of them by popularity" in result.stderr
    assert pq.read_table(out).equals(expected)
