"""The registry: data only, once each, and loaded by a stranger before it may serve."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.decoder import Decoder, DecoderShape
from recsys.errors import RegistryError
from recsys.export import Publication, export
from recsys.histories import Catalog
from tasks.adapters.connection import RefusedError
from tasks.adapters.manifest import digest_of_folder
from tasks.adapters.registry import DIGEST, DUPLICATE, LONGEST_TEXT, SENTENCE, Example, Registry, Version
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import Tracking

EXAMPLE = Example(
    inputs={"history": [["item-1", "item-2"]]},
    outputs={"item_ids": [["item-3"]], "scores": [[0.5]], "sources": [["model"]]},
    params={"k": 10},
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "artifact"
    ids = [f"item-{code}" for code in range(1, 13)]
    nothing = [None] * 12
    torch.manual_seed(0)
    decoder = Decoder(DecoderShape.of(12, 16, 1, 4), 0.0).eval()
    export(decoder, Publication(Catalog(ids, nothing, nothing, nothing), np.arange(12), "exclude", {}), 8, folder)
    return folder


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking = Tracking(settings)
        _ = tracking.experiment_id
        yield tracking


@pytest.fixture(scope="module")
def registry(tracking):
    return Registry(tracking.settings, tracking.client, lambda: tracking.experiment_id)


@pytest.fixture(scope="module")
def run_id(tracking):
    return tracking.start_night("nightly", {}, {})


@pytest.fixture(scope="module")
def registered(registry, run_id, artifact):
    """Version 1 of `shop`, registered as a night does."""
    return registry.register(
        "shop",
        artifact,
        "recsys.runtime",
        run_id=run_id,
        intent="night 1",
        tags={"decision": "PROMOTE"},
        description="Every criterion holds.",
        example=EXAMPLE,
    )


def test_a_version_is_the_files_and_what_was_said_of_them(registry, run_id, artifact, registered):
    version = registry.version("shop", registered)
    assert version.number == 1
    assert version.digest == digest_of_folder(artifact)
    assert version.tags["decision"] == "PROMOTE"
    assert version.description == "Every criterion holds."
    assert version.run_id == run_id


@pytest.mark.parametrize(
    ("tags", "description", "sentence"),
    [
        ({SENTENCE: "It holds."}, "# A card", "It holds."),
        ({}, "It held.", "It held."),
        ({}, "\nBy hand.\nMore.", "By hand."),
        ({}, "", ""),
    ],
)
def test_the_verdict_is_one_sentence_also_where_there_is_no_tag_for_it(tags, description, sentence):
    assert Version("shop", 1, tags, description, "").sentence == sentence


@pytest.mark.parametrize("line", [100, 2 * LONGEST_TEXT])
def test_a_description_longer_than_mlflow_has_room_for_is_cut_and_says_so(registry, line):
    """Of lines that fit, whole ones are kept. The limit is the width of the column, which sqlite does not enforce."""
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

    assert SqlModelVersion.__table__.c.description.type.length == LONGEST_TEXT
    text = f"{'x' * (line - 1)}\n" * (2 * LONGEST_TEXT // line)
    registry.require("wordy")
    registry.create("wordy", "models:/shop/1", {"recsys.intent": f"of {line}"}, text)
    kept = registry.by_intent("wordy", f"of {line}").description
    assert len(kept) <= LONGEST_TEXT
    assert kept.endswith("(The rest is cut off: MLflow keeps no longer text.)")
    head = kept.rpartition("\n\n(")[0]
    assert text.startswith(head)
    assert len(head) > 0.9 * LONGEST_TEXT
    if line < LONGEST_TEXT:
        assert text[len(head)] == "\n", "at the end of a line"


def test_nothing_that_is_executed_is_published(registry, registered):
    packages = list(registry.settings.mlflow.rglob("MLmodel"))
    assert len(packages) == 1
    names = {p.suffix for p in packages[0].parent.rglob("*") if p.is_file() and p.name != "MLmodel"}
    assert names == {".onnx", ".safetensors", ".json", ".parquet", ".yaml", ".txt"}
    assert "k" in packages[0].read_text()
    assert "loader_module: recsys.runtime" in packages[0].read_text()
    assert (packages[0].parent / "serving_input_example.json").exists()


def test_the_same_intent_is_registered_once(registry, run_id, artifact, registered):
    again = registry.register(
        "shop", artifact, "recsys.runtime", run_id=run_id, intent="night 1", tags={}, description="again"
    )
    assert again == registered
    assert [v.number for v in registry.versions("shop")] == [1]


class Dropping:
    """A connection that forwards a creation and loses the response: it comes twice, and then as a failure."""

    def __init__(self, client, fails: bool) -> None:
        self.client, self.fails, self.uri = client, fails, client.uri

    def __getattr__(self, name):
        return getattr(self.client, name)

    def create_model_version(self, *args, **kwargs):
        self.client.create_model_version(*args, **kwargs)
        made = self.client.create_model_version(*args, **kwargs)
        if self.fails:
            raise RefusedError("INTERNAL_ERROR", "the connection was dropped", self.uri)
        return made


@pytest.mark.parametrize("fails", [False, True], ids=["repeated", "repeated and lost"])
def test_a_lost_response_leaves_one_version_that_counts(registry, tracking, fails):
    model = f"lost-{fails}".lower()
    dropping = Registry(tracking.settings, Dropping(tracking.client, fails), lambda: tracking.experiment_id)
    dropping.require(model)
    dropping.create(model, "models:/shop/1", {"recsys.intent": "a"}, "first")
    dropping.create(model, "models:/shop/1", {"recsys.intent": "b"}, "second")
    assert [v.number for v in registry.versions(model)] == [1, 3]
    assert [v.tags.get(DUPLICATE) for v in registry.all_versions(model)] == [None, "1", None, "3"]
    assert registry.by_intent(model, "b").number == 3


class Twice:
    """A connection whose answers to the calls that make a model are lost: MLflow is asked again, and hears what it says to that."""

    def __init__(self, client) -> None:
        self.client, self.uri = client, client.uri

    def __getattr__(self, name):
        call = getattr(self.client, name)

        def twice(*args, **kwargs):
            call(*args, **kwargs)
            return call(*args, **kwargs)

        return twice if name in ("create_logged_model", "log_outputs", "finalize_logged_model") else call


def test_a_model_that_is_published_by_lost_responses_is_there_once_and_whole(registry, tracking, run_id, artifact):
    losing = Registry(tracking.settings, Twice(tracking.client), lambda: tracking.experiment_id)
    losing.register("twice", artifact, "recsys.runtime", run_id=run_id, intent="x", tags={}, description="")
    (found,) = tracking.client.search_logged_models([tracking.experiment_id], "name = 'twice'")
    assert str(found.status) == "READY"
    outputs = tracking.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs].count(found.model_id) == 1


def test_an_output_that_mlflow_does_not_take_is_told(registry, run_id, monkeypatch):
    class Refusing:
        def __getattr__(self, name):
            return getattr(registry_client, name)

        def log_outputs(self, *_):
            raise RefusedError("INTERNAL_ERROR", "the disk is full", registry_client.uri)

    registry_client = registry.client
    monkeypatch.setattr(registry, "client", Refusing())
    with pytest.raises(RefusedError, match="the disk is full"):
        registry._log_output(run_id, "m-0123456789abcdef0123456789abcdef")


def test_a_registered_version_passes_the_load_test(registry, registered):
    registry.load_check("shop", registered)


def test_a_load_test_that_is_stopped_says_so_though_files_still_come(registry, registered, monkeypatch):
    """MLflow brings them in threads of its own, which do not hear of a signal."""
    real = os.rmdir

    def late(path, *, dir_fd=None):
        if path == "artifacts":
            folder = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
            os.close(os.open("one more", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
            os.close(folder)
        real(path, dir_fd=dir_fd)

    def stopped(_model, _number, folder):
        (folder / "artifacts").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "_package", stopped)
    monkeypatch.setattr(os, "rmdir", late)
    with pytest.raises(KeyboardInterrupt):
        registry.load_check("shop", registered)


def test_a_version_whose_files_were_changed_is_refused_before_it_is_parsed(registry, run_id, artifact):
    number = registry.register(
        "doctored", artifact, "recsys.runtime", run_id=run_id, intent="x", tags={}, description=""
    )
    source = registry.client.get_model_version("doctored", str(number)).source.removeprefix("file://")
    (model,) = Path(source).rglob("model.onnx")
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(RegistryError, match="its files are not those that were registered"):
        registry.load_check("doctored", number)


def test_a_version_that_does_not_load_says_why(registry, run_id, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "card.json").write_text("{}")
    number = registry.register(
        "hollow", tmp_path / "model", "recsys.runtime", run_id=run_id, intent="x", tags={}, description=""
    )
    with pytest.raises(RegistryError, match=r"hollow version 1 fails the load test: .*manifest"):
        registry.load_check("hollow", number)


def test_a_version_registered_by_hand_has_no_digest_and_fails_the_load_test(registry):
    registry.require("by-hand")
    registry.create("by-hand", "models:/shop/1", {"recsys.intent": "x"}, "")
    assert DIGEST not in registry.version("by-hand", 1).tags
    with pytest.raises(RegistryError, match="by-hand version 1 was not registered by a night"):
        registry.load_check("by-hand", 1)


def test_aliases(registry, registered):
    assert registry.alias("shop", "champion") is None
    assert registry.aliases("no-such-model") == {}
    assert registry.by_intent("no-such-model", "x") is None
    registry.set_alias("shop", "champion", 1)
    registry.set_alias("shop", "challenger", 1)
    assert registry.aliases("shop") == {"champion": 1, "challenger": 1}
    assert registry.alias("shop", "champion").number == 1
    registry.set_alias("shop", "challenger", None)
    assert registry.aliases("shop") == {"champion": 1}


def test_a_tag_that_another_writer_sets_at_the_same_moment_is_set(registry, registered, monkeypatch):
    class Raced:
        """The other one's row came between looking and writing: PostgreSQL refuses ours."""

        def __init__(self, client) -> None:
            self.client, self.left = client, 1

        def __getattr__(self, name):
            return getattr(self.client, name)

        def set_model_version_tag(self, *words):
            self.client.set_model_version_tag(*words)
            self.left -= 1
            if self.left >= 0:
                raise RefusedError("BAD_REQUEST", "duplicate key value violates unique constraint", self.client.uri)

    monkeypatch.setattr(registry, "client", Raced(registry.client))
    registry.set_tags("shop", 1, {"recsys.applied": "true"})
    assert registry.version("shop", 1).tags["recsys.applied"] == "true"


def test_a_version_that_is_not_there_is_told_with_those_that_are(registry, registered):
    with pytest.raises(RegistryError, match=r"shop has no version 9.*There are: 1\."):
        registry.version("shop", 9)


@pytest.mark.parametrize("name", ["a/b", "..", "rec@champion", "A", "", "a" * 65, "a\n", "%2e"])
def test_a_name_that_could_be_something_else_is_refused(registry, name):
    with pytest.raises(RegistryError, match="no name of a model"):
        registry.require(name)
