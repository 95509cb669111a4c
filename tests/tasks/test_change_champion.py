"""Promotion and rollback: what is refused, what is recorded, and that an earlier champion comes back whole."""

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.promotions import Podium, follow, tiny_artifact, walk, wishes
from recsys.errors import ConfigError, RegistryError
from recsys.runtime import Runtime
from tasks.adapters.ledger import Record, fold
from tasks.adapters.load_check import check, check_latency
from tasks.adapters.packaging import save
from tasks.adapters.registry import DECISION, STUDENT
from tasks.change_champion import Move, change_champion
from tasks.reregister import reregister
from tasks.score_users import chosen_version
from tasks.settle_alias import settle_alias
from tasks.workshop import Workshop

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def promote(workshop: Workshop, to: int | None = None, **words):
    return change_champion(workshop, Move(op="promote", to=to, actor="ann", at=NOW, **words))


def roll_back(workshop: Workshop, to: int | None = None, reason: str = "it was worse"):
    return change_champion(workshop, Move(op="rollback", to=to, actor="bob", reason=reason, at=NOW))


def aliases(workshop: Workshop) -> dict[str, int]:
    return dict(workshop.registry.aliases(STUDENT))


def packages(workshop: Workshop, number: int) -> Path:
    """Where MLflow keeps the files of a version."""
    return Path(workshop.registry.client.get_model_version(STUDENT, str(number)).source.removeprefix("file://"))


def test_the_challenger_is_promoted_and_is_no_challenger_any_more(workshop):
    with pytest.raises(RegistryError, match=r"has no challenger. Name a version. There are: 1, 2, 3, 4, 5\."):
        promote(workshop)
    workshop.registry.set_alias(STUDENT, "challenger", 3)
    moved = promote(workshop, reason="looks good")
    assert (moved.changed, moved.version, moved.champion) == (True, 3, 3)
    assert aliases(workshop) == {"champion": 3}
    record = workshop.ledger.chain().records[-1]
    assert (record.op, record.actor, record.reason) == ("promote", "ann", "looks good")


def test_the_champion_already_is_left_alone(workshop):
    promote(workshop, 2)
    again = promote(workshop, 2)
    assert not again.changed
    assert again.sentence == "recsys-student version 2 is the champion already"
    assert len(workshop.ledger.chain().records) == 1


def test_who_may_not_be_champion_is_refused_with_those_who_may(workshop):
    registry = workshop.registry
    registry.set_tags(STUDENT, 2, {"recsys.duplicate_of": "1"})
    registry.client.delete_model_version_tag(STUDENT, "3", "recsys.digest")
    registry.set_tags(STUDENT, 4, {DECISION: "REJECT"})
    with pytest.raises(
        RegistryError, match=r"has no version 9\. There are: 1, 5\. With --approve NAME --reason TEXT: 4"
    ):
        promote(workshop, 9)
    with pytest.raises(RegistryError, match="version 2 is a duplicate of version 1"):
        promote(workshop, 2)
    with pytest.raises(RegistryError, match="version 3 was not registered by a night"):
        promote(workshop, 3)
    with pytest.raises(RegistryError, match=r"version 4 was rejected by the gate: a person must approve it.*--approve"):
        promote(workshop, 4)
    with pytest.raises(ConfigError, match="an approval needs a reason"):
        promote(workshop, 4, approved=True)
    assert workshop.ledger.chain().records == ()
    promote(workshop, 4, approved=True, reason="the gate measured the wrong week")
    assert workshop.ledger.chain().records[-1].reason == "the gate measured the wrong week (the gate said REJECT)"


@pytest.mark.parametrize("harm", ["changed", "gone", "another loader"])
def test_files_that_are_not_those_registered_are_refused_and_nothing_moves(workshop, harm):
    promote(workshop, 1)
    package = packages(workshop, 2)
    (model,) = package.rglob("model.onnx")
    if harm == "changed":
        model.chmod(0o644)
        model.write_bytes(model.read_bytes()[:-1] + b"x")
    elif harm == "gone":
        shutil.rmtree(package)
    else:
        text = (package / "MLmodel").read_text()
        assert "loader_module: recsys.runtime" in text
        (package / "MLmodel").write_text(text.replace("loader_module: recsys.runtime", "loader_module: antigravity"))
    told = {"changed": "not those that were registered", "gone": "cannot be had", "another loader": "antigravity"}
    with pytest.raises(RegistryError, match=told[harm]):
        promote(workshop, 2)
    assert aliases(workshop) == {"champion": 1}
    assert len(workshop.ledger.chain().records) == 1


def test_what_passes_the_load_test_is_what_mlflow_loads(tmp_path):
    import mlflow
    import pandas as pd

    from tasks.adapters.manifest import digest_of_folder

    tiny_artifact(tmp_path / "artifact", 0)
    save(tmp_path / "package", tmp_path / "artifact", "recsys.runtime", None)
    check(tmp_path / "package", digest_of_folder(tmp_path / "artifact"), "recsys.runtime", 100.0)
    answer = mlflow.pyfunc.load_model(str(tmp_path / "package")).predict(pd.DataFrame({"history": [["item-1"]]}))
    assert len(answer["item_ids"][0]) == 10


def test_the_latency_budget_is_held_generously(tmp_path):
    tiny_artifact(tmp_path / "artifact", 0)
    runtime = Runtime.open(tmp_path / "artifact")
    assert check_latency(runtime, 1000.0) <= 2000.0
    with pytest.raises(RegistryError, match=r"of 5 rounds, at most 2e-06 ms are allowed \(twice the budget\)"):
        check_latency(runtime, 1e-6)


def test_a_rollback_goes_to_an_earlier_champion_only(workshop):
    with pytest.raises(RegistryError, match=r"no champion before no champion to go back to. Earlier champions: none"):
        roll_back(workshop)
    promote(workshop, 1)
    with pytest.raises(RegistryError, match="no champion before version 1"):
        roll_back(workshop)
    with pytest.raises(RegistryError, match="version 4 has never been the champion"):
        roll_back(workshop, 4)
    with pytest.raises(ConfigError, match="a rollback needs a reason"):
        roll_back(workshop, reason="")
    promote(workshop, 2)
    promote(workshop, 3)
    assert roll_back(workshop).champion == 2
    assert roll_back(workshop).champion == 1
    assert not roll_back(workshop, 1).changed
    assert roll_back(workshop, 3).champion == 3, "a rollback of the rollback"
    assert aliases(workshop) == {"champion": 3, "previous": 1}
    assert [r.op for r in workshop.ledger.chain().records] == [*["promote"] * 3, *["rollback"] * 3]


def test_a_rollback_brings_catalog_and_answers_back(workshop):
    """Each version has a catalog and weights of its own: what serves after the rollback is the earlier artifact."""

    def serving() -> Runtime:
        version, _ = chosen_version(workshop, "champion")
        return Runtime.open(workshop.store.open("artifact", version.digest))

    histories = [[], ["item-3"], ["item-1", "item-5", "item-2"]]
    promote(workshop, 1)
    first = serving()
    before = first.recommend(histories, 8)
    promote(workshop, 4)
    assert serving().item_ids != first.item_ids
    assert serving().recommend(histories, 8) != before
    roll_back(workshop)
    after = serving()
    assert after.item_ids == first.item_ids
    assert after.recommend(histories, 8) == before
    assert np.array_equal(after.scores([after.codes(histories[2])]), first.scores([first.codes(histories[2])]))


def test_random_moves_agree_with_the_model(workshop):
    assert len(walk(workshop.settings, [1, 2, 3, 4], 8, seed=3)) == 8


# --- the fold alone ----------------------------------------------------------------------------------------------


def written(chain, number: int, op: str, to: int) -> str:
    seal = chain.records[-1].seal if chain.records else ""
    record = Record(number, str(number), op, to, chain.champion, chain.last, "", f"d{to}", "a", "", seal, "")
    return record.text()


@given(seed=st.integers(0, 2**32), moves=st.integers(1, 40), rivals=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_walk_of_promotions_and_rollbacks_folds_to_the_model(seed, moves, rivals):
    """Rival writers who saw an older chain lose, whatever they wanted."""
    draw, podium, texts = random.Random(seed), Podium(), []
    rival = random.Random(rivals)
    for _ in range(moves):
        chain = fold(texts)
        if chain.records and rival.random() < 0.3:
            texts.append((len(texts) + 1, texts[0][1].replace('"intent":"1"', f'"intent":"stale {len(texts)}"')))
        wish = wishes(podium, [1, 2, 3, 4, 5], draw)
        to = chain.previous if wish.to is None else wish.to
        follow(podium, wish)
        texts.append((len(texts) + 1, written(chain, len(texts) + 1, wish.op, to)))
        chain = fold(texts)
        assert chain.broken == ""
        assert (chain.champion, chain.previous) == (podium.aliases["champion"], podium.aliases.get("previous"))
        assert set(chain.served) == podium.served - {chain.champion}
        assert chain.champion_digest == f"d{chain.champion}"
        assert chain.champion_digest not in chain.withdrawn


def test_files_that_were_taken_back_are_known_until_somebody_wants_them_again():
    texts = []
    for op, to in [("promote", 1), ("promote", 2), ("rollback", 1), ("promote", 3), ("rollback", 1), ("promote", 2)]:
        texts.append((len(texts) + 1, written(fold(texts), len(texts) + 1, op, to)))
    taken = [sorted(fold(texts[:length]).withdrawn) for length in range(1, 7)]
    assert taken == [[], [], ["d2"], ["d2"], ["d2", "d3"], ["d3"]]


def test_a_repair_renames_a_champion_and_uncovers_nothing():
    texts = []
    for op, to in [("promote", 1), ("promote", 2), ("repair", 3)]:
        texts.append((len(texts) + 1, written(fold(texts), len(texts) + 1, op, to)))
    chain = fold(texts)
    assert (chain.champion, chain.previous) == (3, 1)
    assert chain.withdrawn == {}


# --- what people do in MLflow ------------------------------------------------------------------------------------


def test_a_hand_moved_alias_is_adopted_before_anything_else(workshop):
    promote(workshop, 1)
    workshop.registry.set_alias(STUDENT, "champion", 3)
    moved = promote(workshop, 2)
    assert "moved by hand from 1 to 3: adopted" in moved.notes[0]
    assert [(r.op, r.to) for r in workshop.ledger.chain().records] == [("promote", 1), ("manual", 3), ("promote", 2)]
    assert "no statistical gate" in workshop.ledger.chain().records[1].reason
    assert settle_alias(workshop) is None


def test_a_hand_moved_alias_is_put_back_when_the_version_does_not_load(workshop):
    promote(workshop, 1)
    shutil.rmtree(packages(workshop, 3))
    workshop.registry.set_alias(STUDENT, "champion", 3)
    settled = settle_alias(workshop)
    assert settled.outcome == "put back"
    assert "cannot be had" in settled.sentence
    assert aliases(workshop) == {"champion": 1}


def test_a_deleted_champion_is_told_with_the_way_back_and_registered_again(workshop):
    promote(workshop, 1)
    promote(workshop, 2)
    digest = workshop.ledger.chain().champion_digest
    workshop.registry.client.delete_model_version(STUDENT, "2")
    settled = settle_alias(workshop)
    assert settled.outcome == "gone"
    assert "version 2 of recsys-student, the champion, was deleted in MLflow" in settled.sentence
    assert "recsys fsck --repair" in settled.sentence
    with pytest.raises(RegistryError, match="was deleted in MLflow"):
        chosen_version(workshop, "champion")
    number = reregister(workshop, digest)
    assert number == 6
    chain = workshop.ledger.chain()
    assert (chain.champion, chain.previous, chain.records[-1].op) == (6, 1, "repair")
    assert aliases(workshop) == {"champion": 6, "previous": 1}
    assert settle_alias(workshop) is None
    assert roll_back(workshop).champion == 1


def test_from_a_deleted_champion_one_can_roll_back(workshop):
    promote(workshop, 1)
    promote(workshop, 2)
    workshop.registry.client.delete_model_version(STUDENT, "2")
    moved = roll_back(workshop)
    assert moved.champion == 1
    assert "was deleted in MLflow" in moved.notes[0]
    assert aliases(workshop) == {"champion": 1}
    with pytest.raises(RegistryError, match=r"version 2 was deleted. Earlier champions: none"):
        roll_back(workshop, 2)
