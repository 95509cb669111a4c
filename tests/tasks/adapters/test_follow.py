"""The follower: a new champion is checked before it serves, a bad one is refused, and MLflow may go away."""

import functools
import gc
import json
import logging
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from recsys.artifact import write_manifest
from recsys.decoder import DecoderShape
from recsys.errors import RegistryError
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.student import Student
from tasks.adapters.follow import Follower
from tasks.adapters.ledger import Entry
from tasks.adapters.manifest import digest_of_folder
from tasks.adapters.registry import DIGEST, STUDENT
from tasks.adapters.settings import Settings
from tasks.adapters.store import Recipe, Store
from tasks.workshop import Workshop

ITEMS = [f"item-{number}" for number in range(12)]
GOOD, OTHER, FORGED, SWAPPED, BY_HAND = 1, 2, 3, 4, 5


def write_artifact(out: Path, seed: int) -> None:
    student = Student.untrained(DecoderShape.of(12, 16, 1, 4), 0.0, seed=seed).eval()
    catalog = Catalog(ITEMS, [None] * 12, [None] * 12, [None] * 12)
    export(student, Publication(catalog, np.arange(12, 0, -1), "exclude", {"dataset": "ab" * 32}), 8, out)


def write_forged(good: Path, other: Path, out: Path) -> None:
    """Whole by its manifest, but it answers otherwise than its golden requests say."""
    for name in good.iterdir():
        shutil.copyfile(name, out / name.name)
    shutil.copyfile(other / "model.onnx", out / "model.onnx")
    write_manifest(out)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A home with versions: 1 and 2 are good, 3 is forged, 4 is not what its digest says, 5 has no digest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        place = tmp_path_factory.mktemp("home")
        settings = Settings.from_environment(place).prepare()
        workshop = Workshop.of(settings)
        build = settings.temp / "build.json"
        build.write_text(json.dumps({"build": {"as_of": 1_700_000_000}}))
        dataset = workshop.store.make(Recipe("build", 1, {}, ()), lambda out: shutil.copy(build, out))
        folders = []
        for seed in (0, 1):
            recipe = Recipe("artifact", 1, {"seed": seed}, ())
            made = workshop.store.make(recipe, functools.partial(write_artifact, seed=seed))
            folders.append(workshop.store.open("artifact", made.digest))
        forged = settings.temp / "forged"
        forged.mkdir()
        write_forged(*folders, forged)
        run_id = workshop.tracking.start_night("nightly", {}, {})
        tags = {"recsys.dataset": dataset.digest}
        for number, folder in enumerate((*folders, forged, folders[1], folders[1]), start=1):
            workshop.registry.register(
                STUDENT, folder, "recsys.runtime", run_id=run_id, intent=str(number), tags=tags, description=""
            )
        workshop.registry.set_tags(STUDENT, SWAPPED, {DIGEST: "0" * 64})
        workshop.registry.client.delete_model_version_tag(STUDENT, str(BY_HAND), DIGEST)
        workshop.tracking.finish(run_id, "FINISHED")
        yield settings


@pytest.fixture
def promote(settings):
    workshop = Workshop.of(settings)

    def to(version: int) -> None:
        last = workshop.ledger.chain().last
        assert workshop.ledger.append(Entry("promote", version, last, "", "somebody", "it is good")).won

    to(GOOD)
    yield to
    shutil.rmtree(settings.home / "serving", ignore_errors=True)


@pytest.fixture
def follower(settings, promote):
    return follower_of(settings)


def follower_of(settings: Settings, store: Store | None = None) -> Follower:
    connect = functools.partial(Workshop.anew, settings)
    return Follower(settings, store or Store(settings.store), connect, settle=lambda shop: None)


def away() -> Workshop:
    raise RegistryError("the MLflow server does not answer")


def served(follower: Follower) -> int | None:
    model = follower.current()
    return model and model.version


def test_it_serves_the_champion_from_a_copy_of_its_own(settings, follower):
    assert follower.current() is None
    assert follower.standing().state == "starting"
    follower.look()
    model, standing = follower.current(), follower.standing()
    assert (model.version, standing.state, standing.swaps) == (GOOD, "current", 0)
    assert model.as_of == 1_700_000_000
    copy = settings.home / "serving" / model.digest
    assert digest_of_folder(copy) == model.digest
    store = Store(settings.store).open("artifact", model.digest)
    assert not (copy / "model.onnx").samefile(store / "model.onnx"), "what damages the store does not damage it"
    follower.look()
    assert follower.current() is model, "nothing changed: nothing is loaded"


def test_a_new_champion_takes_over_and_the_old_one_is_freed(settings, follower, promote):
    follower.look()
    old = weakref.ref(follower.current().runtime)
    promote(OTHER)
    follower.look()
    assert (served(follower), follower.standing().swaps) == (OTHER, 1)
    gc.collect()
    assert old() is None
    promote(GOOD)
    follower.look()
    assert served(follower) == GOOD
    kept = {path.name for path in (settings.home / "serving").iterdir() if path.is_dir()}
    versions = {v.number: v.digest for v in Workshop.of(settings).registry.versions(STUDENT)}
    assert kept == {versions[GOOD], versions[OTHER]}, "this one and the one before it"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (FORGED, "golden request 1 is answered otherwise"),
        (SWAPPED, "not those that were registered"),
        (BY_HAND, "its files have no digest"),
    ],
)
def test_a_champion_that_fails_its_check_is_refused(settings, follower, promote, caplog, version, said):
    follower.look()
    model = follower.current()
    promote(version)
    with caplog.at_level(logging.INFO, "recsys.serve"):
        follower.look()
        follower.look()
    standing = follower.standing()
    assert follower.current() is model
    assert (standing.state, standing.refused, standing.swaps) == ("refused", 1, 0)
    assert f"champion version {version} is refused" in standing.sentence
    assert said in standing.sentence
    assert [record.message for record in caplog.records] == [standing.sentence], "said once"
    assert json.loads((settings.home / "serving" / "current.json").read_text())["version"] == GOOD
    promote(GOOD)
    follower.look()
    assert (follower.current(), follower.standing().state) == (model, "current")


def test_without_the_store_the_files_come_from_mlflow(settings, promote, tmp_path):
    follower = follower_of(settings, Store(tmp_path / "empty"))
    follower.look()
    assert (served(follower), follower.current().as_of) == (GOOD, None)
    assert follower.current().runtime.recommend([["item-3"]], 3)[0]


def test_while_mlflow_is_away_the_last_good_one_serves(settings, promote):
    cut = []
    follower = Follower(
        settings,
        Store(settings.store),
        connect=lambda: away() if cut else Workshop.anew(settings),
        settle=lambda shop: away() if cut else None,
    )
    follower.look()
    model, before = follower.current(), follower.standing()
    cut.append(True)
    for _ in range(2):  # the open connection breaks, then no new one can be had
        follower.look()
        assert (follower.current(), follower.standing().state) == (model, "stale")
        assert "stale registry: the MLflow server does not answer" in follower.standing().sentence
        assert follower.standing().answered == before.answered
    cut.clear()
    follower.look()
    assert (follower.current(), follower.standing().state) == (model, "current")


def test_a_start_without_mlflow_serves_the_last_verified_copy(settings, follower):
    follower.look()
    started = Follower(settings, Store(settings.store), away, lambda shop: None)
    started.restore()
    started.look()
    assert (served(started), started.standing().state) == (GOOD, "stale")
    assert started.current().as_of == 1_700_000_000


def test_a_deleted_version_goes_on_serving(settings, follower, promote):
    workshop = Workshop.of(settings)
    made = workshop.registry.version(STUDENT, OTHER)
    folder = workshop.store.open("artifact", made.digest)
    number = workshop.registry.register(
        STUDENT, folder, "recsys.runtime", run_id=made.run_id, intent="deleted", tags={}, description=""
    )
    promote(number)
    follower.look()
    assert served(follower) == number
    workshop.registry.client.delete_model_version(STUDENT, str(number))
    follower.look()
    assert (served(follower), follower.standing().state) == (number, "stale")
    assert f"has no version {number}" in follower.standing().sentence
    started = follower_of(settings)
    started.restore()
    assert served(started) == number


@pytest.mark.parametrize("damage", ["model.onnx", "current.json"])
def test_a_damaged_copy_is_not_served(settings, follower, damage):
    follower.look()
    copy = settings.home / "serving" / (damage if damage == "current.json" else f"{follower.current().digest}/{damage}")
    copy.write_bytes(copy.read_bytes()[:-3] + b"xyz")
    started = follower_of(settings)
    started.restore()
    assert started.current() is None
    started.look()
    assert served(started) == GOOD, "it is copied anew"


@pytest.mark.parametrize("summed", [True, False])
def test_another_version_in_current_json_is_believed_by_no_start(settings, follower, summed, caplog):
    follower.look()
    current = settings.home / "serving" / "current.json"
    said = json.loads(current.read_text())
    if not summed:  # of before there were checksums
        del said["sha256"]
    current.write_text(json.dumps({**said, "version": said["version"] + 1} if summed else said))
    started = follower_of(settings)
    started.restore()
    assert (started.current() is None) == summed
    assert ("the copy that served last is not used: its checksum is another" in caplog.text) == summed


def test_a_hand_moved_alias_is_settled_before_the_champion_is_read(settings, promote):
    seen = []
    follower = Follower(settings, Store(settings.store), functools.partial(Workshop.anew, settings), seen.append)
    follower.look()
    assert [type(shop) for shop in seen] == [Workshop]


def test_without_a_champion_it_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    follower = follower_of(Settings.from_environment(tmp_path / "fresh").prepare())
    follower.look()
    assert (follower.current(), follower.standing().state) == (None, "empty")


def test_following_looks_again_and_again(settings, follower, promote):
    def waits_for(version: int) -> None:
        for _ in range(600):
            if served(follower) == version:
                return
            ended.wait(0.1)
        raise AssertionError(follower.standing())

    ended = threading.Event()
    with follower.following(0.05):
        waits_for(GOOD)
        promote(OTHER)
        waits_for(OTHER)
    assert Runtime.open(settings.home / "serving" / follower.current().digest).items == 12
