"""gc on a real home: what aliases, ledger, last nights and batch scores need stays; the rest goes."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from recsys.errors import RegistryError
from recsys.retention import RetentionConfig
from tasks.adapters.ledger import Entry
from tasks.adapters.registry import STUDENT
from tasks.adapters.store import Recipe, Store
from tasks.check_store import read_store
from tasks.collect_garbage import collect_garbage
from tasks.workshop import Workshop

NOTHING_YOUNG = RetentionConfig(nights=1, days=0)


@pytest.fixture
def workshop(released) -> Workshop:
    return Workshop.of(released.settings.export())


def promote_another(workshop: Workshop, number: int) -> dict[str, str]:
    """A night that made everything anew and promoted it: digests by step. Its files are copies with one more."""
    champion = workshop.registry.version(STUDENT, workshop.ledger.chain().champion)
    old = {name: champion.tags[f"recsys.{name}"] for name in ("dataset", "teacher", "student", "verdict")}

    def make(step: str, digest: str, *parents: str) -> str:
        folder = workshop.store.open(step, digest)

        def build(out: Path) -> None:
            shutil.copytree(folder, out, dirs_exist_ok=True)
            (out / "number.json").write_text(f"{step} {number}")

        return workshop.store.make(Recipe(step, 1, {"number": number}, parents), build).digest

    accepted = workshop.store.manifest("build", old["dataset"]).parents[0]
    file = make("validate", accepted, f"file {number}")
    new = {"validate": file, "build": make("build", old["dataset"], file, "no items", old["dataset"])}
    new["distil"] = make("distil", old["student"], new["build"], old["student"])
    new["artifact"] = make("artifact", champion.digest, new["distil"], new["build"], old["teacher"])
    report = workshop.store.manifest("judge", old["verdict"]).parent_digests[0]
    new["evaluate"] = make("evaluate", report, new["artifact"], new["build"])
    new["judge"] = make("judge", old["verdict"], f"artifact {new['evaluate']}")
    run_id = workshop.tracking.start_night(f"nightly {number}", {}, {})
    tags = {
        "recsys.dataset": new["build"], "recsys.teacher": old["teacher"], "recsys.student": new["distil"],
        "recsys.verdict": new["judge"], "recsys.decision": "PROMOTE",
    }  # fmt: skip
    workshop.tracking.log_tags(run_id, {**tags, "recsys.artifact": new["artifact"]})
    version = workshop.registry.register(
        STUDENT, workshop.store.open("artifact", new["artifact"]), "recsys.runtime",
        run_id=run_id, intent=str(number), tags=tags, description="",
    )  # fmt: skip
    workshop.tracking.finish(run_id, "FINISHED")
    last = workshop.ledger.chain().last
    assert workshop.ledger.append(Entry("promote", version, last, new["judge"], "a", "b")).won
    return new


def is_whole(workshop: Workshop, step: str, digest: str) -> bool:
    manifest = workshop.store.manifest(step, digest)
    return all(workshop.store.blob(file.sha256).exists() for file in manifest.files)


def in_a_new_process(workshop: Workshop) -> Workshop:
    """Which holds nothing of what the test itself has opened."""
    for lease in (workshop.store.root / "leases").iterdir():
        lease.unlink()
    return dataclasses.replace(workshop, store=Store(workshop.settings.store))


def test_a_years_champions_shrink_to_their_evidence(workshop):
    made = [promote_another(workshop, number) for number in range(2, 6)]
    workshop = in_a_new_process(workshop)
    planned = collect_garbage(workshop, NOTHING_YOUNG, dry_run=True)
    assert collect_garbage(workshop, NOTHING_YOUNG) == planned
    assert {freed.kind for freed in planned} >= {"validate", "build", "distil", "names", "views"}
    first, second, previous, champion = made
    for step, digest in {**champion, **previous}.items():
        assert is_whole(workshop, step, digest), step
    for step in ("artifact", "judge", "evaluate"):
        assert is_whole(workshop, step, first[step]), "the evidence of every record of the ledger"
        assert is_whole(workshop, step, second[step])
    assert not is_whole(workshop, "distil", first["distil"])
    assert not is_whole(workshop, "validate", first["validate"])
    assert is_whole(workshop, "build", second["build"]), "the dataset before the previous champion's gave its catalog"
    assert not is_whole(workshop, "build", first["build"]), "but not the one before that"
    for manifest in workshop.store.lineage(first["artifact"]).values():
        assert manifest is None or manifest.digest, "where it came from can still be told"
    assert workshop.store.manifest("validate", first["validate"]).parents == ("file 2",)
    assert collect_garbage(workshop, NOTHING_YOUNG) == (), "there is nothing left to free"
    assert read_store(workshop).damages == ()
    assert read_store(workshop).orphans == 0


def test_batch_scores_and_reports_beyond_the_last_nights_go_with_what_they_kept(workshop):
    old = promote_another(workshop, 2)
    for number in (3, 4, 5):
        promote_another(workshop, number)
    home = workshop.settings.home
    for name, artifact in (("20240101T000000Z-v2", old), ("20240102T000000Z-v2", old), ("20240103T000000Z-v2", old)):
        (home / "scores" / name).mkdir(parents=True)
        stamp = {"artifact": artifact["artifact"], "dataset": artifact["build"]}
        (home / "scores" / name / "scores.json").write_text(json.dumps(stamp))
    (home / "scores" / "latest").symlink_to("20240102T000000Z-v2")
    for number, name in enumerate(("20240101T000000Z-aa", "20240102T000000Z-bb", "monitor-1", "monitor-2")):
        for suffix in (".html", ".json"):
            (home / "reports" / f"{name}{suffix}").write_text("")
            os.utime(home / "reports" / f"{name}{suffix}", (number, number))
    workshop = in_a_new_process(workshop)
    collect_garbage(workshop, NOTHING_YOUNG)
    left = sorted(path.name for path in (home / "scores").iterdir())
    assert left == ["20240102T000000Z-v2", "20240103T000000Z-v2", "latest"], "the newest, and those that are served"
    assert is_whole(workshop, "build", old["build"])
    pages = {path.name for path in (home / "reports").glob("*.html")}
    assert "monitor-2.html" in pages
    assert not pages & {"monitor-1.html", "20240101T000000Z-aa.html", "20240102T000000Z-bb.html"}
    assert len(pages) == 2, "and the last night's"
    shutil.rmtree(home / "scores")
    collect_garbage(workshop, NOTHING_YOUNG)
    assert not is_whole(workshop, "build", old["build"])


def test_what_is_young_stays_and_a_home_that_is_as_it_was_loses_nothing(workshop):
    before = sorted(path for path in workshop.store.root.rglob("*") if path.is_file())
    promote_another(workshop, 2)
    workshop.store.make(Recipe("distil", 1, {}, ()), lambda out: (out / "a").write_text("killed before it was judged"))
    (workshop.settings.temp / "load-check-killed").mkdir()
    young = in_a_new_process(workshop)
    assert {freed.kind for freed in collect_garbage(young, RetentionConfig(nights=1, days=2))} <= {"views"}
    os.utime(workshop.settings.temp / "load-check-killed", (0, 0))
    freed = collect_garbage(young, NOTHING_YOUNG)
    assert {"distil", "left by killed commands"} <= {each.kind for each in freed}
    blobs = [path for path in before if "blobs" in path.parts]
    assert all(path.exists() for path in blobs), "the previous champion's"


def test_nothing_is_removed_while_the_ledger_contradicts_itself(workshop):
    promote_another(workshop, 2)
    workshop.registry.client.delete_model_version(f"{STUDENT}-ledger", "1")
    before = sorted(workshop.store.root.rglob("blobs/*/*"))
    with pytest.raises(RegistryError, match="the ledger contradicts itself"):
        collect_garbage(in_a_new_process(workshop), NOTHING_YOUNG)
    assert sorted(workshop.store.root.rglob("blobs/*/*")) == before
