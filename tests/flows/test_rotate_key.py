"""The key is changed between two nights: no old token is left, the forgotten stay out, and the next night teaches the same."""

import shutil

import pyarrow.parquet as pq
import pytest

from recsys.door import Door
from tests.faults.night import Shop
from tests.flows.test_forget import command, found_in, learnt, night


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop")).make()


def test_after_a_change_of_the_key_the_next_night_comes_to_the_same_teacher_and_student(shop, orchestrator, tmp_path):
    home, key = tmp_path / "home", shop.folder / "key"
    users = sorted(set(pq.read_table(shop.folder / "events.parquet")["user_id"].to_pylist()))
    forgotten = users[7]

    def done(*words: str) -> str:
        ended = command(shop, [*words, "--home", str(home)], orchestrator)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    night(shop, home, orchestrator)
    done("forget", forgotten, "--yes")
    night(shop, home, orchestrator)
    before, old = learnt(home), {Door(key.read_bytes()).token(user) for user in users}
    assert {name.split("/")[0] for name in found_in(home, old)} >= {"store", "vault"}, "the search finds them"
    shutil.copy(key, tmp_path / "old")

    said = " ".join(done("rotate-key", "--reason", "a test", "--yes").split())
    assert "New tokens: 119 users" in said
    assert "Forgotten as before: 1 user, by the old key" in said
    assert str(key) in said
    assert key.read_bytes() != (tmp_path / "old").read_bytes()
    assert found_in(home, old) == set()
    assert "a test" in done("doctor")

    night(shop, home, orchestrator)
    assert found_in(home, old) == set()
    after = learnt(home)
    assert not steps(before - after) & {"teach", "label", "distil"}, (
        "teacher, labels and student are the same to the bit"
    )
    done("score", "--users", "all", "--out", str(tmp_path / "recs.parquet"))
    assert set(pq.read_table(tmp_path / "recs.parquet")["user_id"].to_pylist()) == set(users) - {forgotten}
    done("fsck")


def steps(objects: set[tuple[str, str]]) -> set[str]:
    return {step for step, _ in objects}
