"""Lineage over a small store of two nights whose every object and parent is known."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import RegistryError
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.lineage import INPUT, LANGUAGE_MODEL, Node, trace, walk
from tasks.workshop import Workshop

BYTES = {"a.parquet": "a" * 64, "b.parquet": "b" * 64, "items.parquet": "c" * 64}
ENCODER = "d" * 64


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("RECSYS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)


class Factory:
    """Makes objects that have nothing but what a lineage reads."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def make(self, step: str, parents: tuple[str, ...], rows: int = 0, **files: object) -> str:
        def build(out: Path) -> None:
            (out / "made.json").write_text(json.dumps([step, *parents]))
            for name, content in files.items():
                (out / f"{name}.json").write_text(json.dumps(content))
            table = {"validate": "accepted", "label": "labels", "build": "shard-00"}.get(step)
            if table:
                pq.write_table(pa.table({"n": range(rows)}), out / f"{table}.parquet")

        return self.store.make(Recipe(step, 1, {"of": step}, parents), build).digest

    def read(self, step: str, file: str, items: str, lines: int) -> str:
        parents = (BYTES[file], items) if items else (BYTES[file],)
        return self.make(step, parents, rows=lines - 1, validation={"file": file, "lines": lines})

    def night(self, files: tuple[str, ...], items: str, catalog: str, teacher: str, labels: tuple, parent: str):
        dataset = self.make("build", (*files, items, catalog), rows=40)
        teacher = teacher or self.make("teach", (dataset, ENCODER))
        labels = (*labels, self.make("label", (teacher, dataset, *labels), rows=90))
        student = self.make("distil", (dataset, *labels, parent))
        grid = self.make("compress", (student, dataset, *labels))
        return dataset, teacher, labels, student, self.make("artifact", (grid, student, dataset, teacher))


def two_nights(store: Store):
    """The second has one file more, the same teacher, and starts from the first one's student."""
    factory = Factory(store)
    items = factory.read("items", "items.parquet", "", 12)
    a = factory.read("validate", "a.parquet", items, 100)
    first = factory.night((a,), items, "no catalog", "", (), "cold start")
    b = factory.read("validate", "b.parquet", items, 7)
    second = factory.night((a, b), items, first[0], first[1], first[2], first[3])
    return first, second


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def nights(store):
    return two_nights(store)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """The workshop, its two nights, and the run that registered what they made as versions 1 and 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        workshop = Workshop.of(Settings.from_environment(tmp_path_factory.mktemp("lineage")).prepare())
        nights = two_nights(workshop.store)
        run_id = workshop.tracking.start_night("nightly 2026-11-24 04:00", {"prefect.flow_run_id": "f"}, {})
    factory = Factory(workshop.store)
    for number, (dataset, teacher, _, student, artifact) in enumerate(nights, start=1):
        report = factory.make("evaluate", (artifact, dataset))
        verdict = factory.make("judge", (f"artifact {report}",), number=number)
        tags = {"recsys.student": student, "recsys.teacher": teacher, "recsys.dataset": dataset}
        tags |= {"recsys.verdict": verdict, "recsys.decision": "PROMOTE"}
        folder = workshop.store.open("artifact", artifact)
        words = {"run_id": run_id, "intent": str(number), "tags": tags, "description": f"Verdict {number}."}
        workshop.registry.register(STUDENT, folder, "recsys.runtime", **words)
        workshop.ledger.append(Entry("promote", number, number - 1, verdict, "ada", f"Verdict {number}."))
    workshop.tracking.finish(run_id, "FINISHED")
    return workshop, nights, run_id


def by_step(nodes: tuple[Node, ...], step: str, earlier: bool = False) -> list[Node]:
    return [node for node in nodes if node.step == step and node.earlier == earlier]


def test_a_version_is_walked_back_to_the_bytes_of_its_input(registered):
    workshop, nights, _ = registered
    found = trace(workshop, 2)
    assert found.nodes[0].digest == nights[1][-1]
    assert {(node.name, node.digest, node.count) for node in found.inputs} == {
        ("a.parquet", BYTES["a.parquet"], 100),
        ("b.parquet", BYTES["b.parquet"], 7),
        ("items.parquet", BYTES["items.parquet"], 12),
    }
    assert [node.count for node in by_step(found.nodes, "validate")] == [99, 6]
    assert [node.digest for node in by_step(found.nodes, LANGUAGE_MODEL)] == [ENCODER]
    assert {node.digest for node in by_step(found.nodes, "label")} == set(nights[1][2])
    assert all(node.made and node.config for node in found.nodes if node.step not in (INPUT, LANGUAGE_MODEL))


def test_it_names_verdict_reports_records_and_runs(registered):
    workshop, _, run_id = registered
    found = trace(workshop, 1)
    assert (found.version, found.run_id) == (1, run_id)
    assert found.nodes[0].version == 1
    assert found.judgement.decision == "PROMOTE"
    assert found.judgement.sentence == "Verdict 1."
    assert list(found.judgement.reports) == ["artifact"]
    assert [(record.number, record.to) for record in found.records] == [(1, 1)]
    assert json.loads(json.dumps(found.plain()))["records"][0]["actor"] == "ada"


def test_the_run_that_was_at_work_when_an_object_was_made_is_named(registered):
    workshop, nights, _ = registered
    reports = Factory(workshop.store)
    run_id = workshop.tracking.start_night("nightly 2026-11-25 04:00", {"prefect.flow_run_id": "g"}, {})
    teacher, student = nights[1][1], nights[1][3]
    dataset = reports.make("build", (), rows=3)
    artifact = reports.make("artifact", (student, dataset, teacher))
    folder = workshop.store.open("artifact", artifact)
    workshop.registry.register(
        STUDENT, folder, "recsys.runtime", run_id=run_id, intent="3", tags={}, description="Three."
    )
    workshop.tracking.finish(run_id, "FINISHED")
    made = trace(workshop, 3).node(dataset)
    assert (made.run, made.run_id) == ("nightly 2026-11-25 04:00", run_id)


def test_what_an_earlier_night_handed_over_is_marked_and_does_not_hide_what_tonight_needed(store, nights):
    nodes = walk(store, nights[1][-1])
    first, second = nights
    assert [node.digest for node in by_step(nodes, "distil", earlier=True)] == [first[3]]
    assert [node.digest for node in by_step(nodes, "distil")] == [second[3]]
    assert {node.digest for node in by_step(nodes, "build")} == {first[0], second[0]}, "the teacher is of the first"


def test_what_gc_emptied_is_told_as_empty(store, nights):
    labels = nights[1][2][0]
    for file in store.manifest("label", labels).files:
        store.blob(file.sha256).unlink()
    node = next(node for node in walk(store, nights[1][-1]) if node.digest == labels)
    assert node.state == "emptied"
    assert node.count == 90, "its manifest still says what it was"


def test_what_is_gone_altogether_is_told_as_gone(store, nights):
    (store.root / "objects" / "teach" / f"{nights[1][1]}.json").unlink()
    node = next(node for node in walk(store, nights[1][-1]) if node.digest == nights[1][1])
    assert (node.step, node.state, node.parents) == ("unknown", "gone", ())


def test_an_artifact_that_is_gone_is_walked_by_what_the_registry_remembers(registered):
    workshop, nights, _ = registered
    manifest = workshop.store.root / "objects" / "artifact" / f"{nights[1][-1]}.json"
    manifest.rename(manifest.with_suffix(".aside"))
    try:
        found = trace(workshop, 2)
    finally:
        manifest.with_suffix(".aside").rename(manifest)
    assert found.nodes[0].state == "gone"
    assert {node.name for node in found.inputs} == set(BYTES)


def test_a_version_that_is_not_there_is_refused_with_those_that_are(registered):
    with pytest.raises(RegistryError, match="has no version 9"):
        trace(registered[0], 9)
