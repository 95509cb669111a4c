"""fsck on a real home: clean it says nothing, damaged it says what, and with --repair it mends what it can."""

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import pytest

from tasks.adapters.registry import STUDENT, TEACHER
from tasks.adapters.store import Store
from tasks.check_home import check_home
from tasks.check_store import read_store
from tasks.fault import Line
from tasks.workshop import Workshop


def fsck(workshop: Workshop, *, repair: bool = False) -> list[Line]:
    fresh = dataclasses.replace(workshop, store=Store(workshop.settings.store))  # which has verified nothing yet
    return list(check_home(fresh, read_store(fresh), repair=repair))


@pytest.fixture
def workshop(released) -> Workshop:
    released.settings.export()
    return Workshop.of(released.settings)


def damage(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def blob_of(workshop: Workshop, step: str, digest: str, name: str) -> Path:
    files = workshop.store.manifest(step, digest).files
    return workshop.store.blob(next(file.sha256 for file in files if file.name == name))


def test_everything_at_once_is_found_and_mended(workshop):
    assert fsck(workshop) == []
    settings, store = workshop.settings, workshop.store
    champion = workshop.registry.version(STUDENT, 1)
    damage(blob_of(workshop, "artifact", champion.digest, "model.onnx"))
    damage(blob_of(workshop, "build", champion.tags["recsys.dataset"], "catalog.parquet"))
    mirror = next(settings.ledger.glob("*/000001.json"))
    mirror.write_text("{")
    settings.servers_file.write_text(json.dumps({"mlflow": {"url": "http://127.0.0.1:1", "pid": 2**22 + 1}}))
    (store.root / "heads" / "catalog.json").write_text("{")
    workshop.registry.set_alias(STUDENT, "champion", None)

    found = fsck(workshop)
    said = "\n".join(line.fault.what for line in found)
    assert not any(line.mended for line in found)
    for words in (
        "artifact/model.onnx",
        "build/catalog.parquet",
        "is damaged: its contents are others",
        "the head catalog cannot be read",
        "names mlflow, whose process is gone",
        "record 1 of the ledger's mirror cannot be read",
        "record 1 was changed after it was written",
        "the files of recsys-student version 1 in the store",
    ):
        assert words in said
    assert all(line.fault.mend for line in found)

    mended = fsck(workshop, repair=True)
    assert all(line.mended for line in mended), [line for line in mended if not line.mended]
    assert fsck(workshop) == []
    assert workshop.registry.aliases(STUDENT)["champion"] == 1
    assert len(list((store.root / "bad").iterdir())) >= 4, "the evidence is kept"
    assert store.open("artifact", champion.digest).is_dir(), "copied from MLflow"


def test_a_deleted_champion_is_registered_again_from_the_store(workshop):
    before = workshop.registry.version(STUDENT, 1)
    digest = before.digest
    workshop.registry.client.delete_model_version(STUDENT, "1")
    (line,) = fsck(workshop)
    assert "version 1 of recsys-student, the champion, was deleted in MLflow" in line.fault.what
    assert "recsys fsck --repair" in line.fault.mend
    (mended,) = fsck(workshop, repair=True)
    assert mended.mended
    chain = workshop.ledger.chain().require_intact()
    again = workshop.registry.version(STUDENT, chain.champion)
    assert again.digest == digest
    assert again.sentence == before.sentence
    assert again.description.startswith(f"PROMOTE: {before.sentence}\n\n### What it is"), "with a card"
    assert workshop.registry.aliases(STUDENT)["champion"] == chain.champion != 1
    assert "was deleted in MLflow" in chain.records[-1].reason
    assert fsck(workshop) == []


def test_files_that_were_swapped_in_mlflow_are_told(workshop):
    weights = next((workshop.settings.mlflow / "artifacts").glob("models/*/artifacts/data/*/weights.safetensors"))
    damage(weights)
    teacher = next((workshop.settings.mlflow / "artifacts").glob("models/*/artifacts/data/*/teacher.safetensors"))
    damage(teacher)
    said = [line.fault.what for line in fsck(workshop)]
    assert f"the files of {STUDENT} version 1 in MLflow are not those that were registered" in said
    assert f"the files of {TEACHER} version 1 in MLflow are not those that were registered" in said
    assert any("fails the load test" in what for what in said)


def test_a_broken_ledger_and_a_lost_key_are_for_a_person(workshop):
    with sqlite3.connect(workshop.settings.mlflow / "mlflow.db") as database:
        database.execute(
            "UPDATE model_version_tags SET value = replace(value, 'promote', 'rollback') WHERE key = 'recsys.record'"
        )
    os.rename(workshop.settings.vault_key, workshop.settings.home / "elsewhere")
    lines = fsck(workshop, repair=True)
    assert not any(line.mended for line in lines)
    said = "\n".join(line.fault.what for line in lines)
    assert "the ledger contradicts itself: record 1 was changed after it was written" in said
    assert "the key of the vault's users is gone" in said


def test_a_moved_home_finds_its_models_again(workshop, tmp_path):
    from recsys.errors import HomeError
    from tasks.adapters.settings import Settings

    os.rename(workshop.settings.home, tmp_path / "moved")
    for name in ("RECSYS_HOME", "RECSYS_STORE", "RECSYS_VAULT_KEY"):
        os.environ.pop(name, None)
    moved = Workshop.of(Settings.from_environment(tmp_path / "moved").prepare().export())
    with pytest.raises(HomeError, match="the home was moved"):
        _ = moved.tracking.experiment_id
    (line,) = [line for line in fsck(moved, repair=True) if line.fault.part == "home"]
    assert line.mended
    assert fsck(moved) == []
    moved.registry.load_check(STUDENT, 1)
