"""Twenty users are forgotten: nothing of theirs is left, and the next night comes to the bytes of a home that never had them."""

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.door import Door
from tasks.adapters.vault import Vault, forgotten
from tests import fork_server
from tests.faults.night import Shop, Truth, rows

FORGOTTEN = 20
LEARNT = ("build", "label", "teach", "distil", "compress", "artifact")


def command(shop: Shop, words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return fork_server.run(words, shop.environment(env))


def night(shop: Shop, home: Path, env: dict[str, str], events: str = "events.parquet") -> None:
    done = command(shop, shop.words(home, events=events), env)
    assert done.returncode == 0, done.stdout + done.stderr


def learnt(home: Path) -> set[tuple[str, str]]:
    """Step and digest of what was made from events."""
    objects = {(name.split()[0], digest) for name, digest in Truth.of(home).objects.items()}
    return {each for each in objects if each[0] in LEARNT}


def found_in(home: Path, names: set[str]) -> set[str]:
    """Every file of a home in which one of the names stands: in bytes, in a column of Parquet, or in a table of SQLite."""
    return {str(file.relative_to(home)) for file in home.rglob("*") if file.is_file() and _holds(file, names)}


def _holds(file: Path, names: set[str]) -> bool:
    content = file.read_bytes()
    if content[:4] == b"PAR1":
        table = pq.read_table(file)
        texts = [column for column in table.columns if pa.types.is_string(column.type)]
        return any(pc.any(pc.is_in(column, pa.array(sorted(names)))).as_py() for column in texts)
    return any(name.encode() in content or _as_bytes(name) in content for name in names)


def _as_bytes(name: str) -> bytes:
    """A token as the vault keeps it; of a user id, whose digits are few, only the id itself is looked for."""
    return bytes.fromhex(name) if len(name) == 32 else name.encode()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop")).make()


@pytest.fixture(scope="module")
def gone(shop) -> list[str]:
    """The first that ever came, so that item codes depend on them."""
    events = pq.read_table(shop.folder / "events.parquet").sort_by("timestamp")
    users = pc.unique(events["user_id"]).to_pylist()[:FORGOTTEN]
    (shop.folder / "never").mkdir()
    others = events.filter(pc.invert(pc.is_in(events["user_id"], pa.array(users))))
    pq.write_table(others, shop.folder / "never" / "events.parquet")
    return users


@pytest.fixture(scope="module")
def env(orchestrator) -> dict[str, str]:
    return orchestrator


@pytest.fixture(scope="module")
def before(shop, gone, env, tmp_path_factory) -> Path:
    """A home with a champion and a night after it, both of which knew them."""
    home = tmp_path_factory.mktemp("homes") / "home"
    night(shop, home, env, "early/events.parquet")
    night(shop, home, env)
    # whatever the gate said: so there is a version that has served before
    second = command(shop, ["promote", "--version", "2", "--approve", "Ada", "--reason", "x", "--home", str(home)], env)
    assert second.returncode == 0, second.stderr
    assert command(shop, ["score", "--home", str(home), "--users", "all", "--out", str(home / "recs.parquet")], env)
    return home


@pytest.fixture(scope="module")
def names(shop, gone) -> set[str]:
    door = Door((shop.folder / "key").read_bytes())
    return {*gone, *(door.token(user) for user in gone)}


@pytest.fixture(scope="module")
def forgot(shop, gone, env, before, names) -> tuple[Path, set[str], subprocess.CompletedProcess[str]]:
    held = found_in(before, names)
    done = command(shop, ["forget", *gone, "--yes", "--home", str(before)], env)
    assert done.returncode == 0, done.stdout + done.stderr
    return before, held, done


def test_nothing_of_theirs_is_left_but_their_tokens_on_the_list_of_the_forgotten(shop, forgot, names, gone):
    home, held, done = forgot
    (home / "recs.parquet").unlink()  # it was asked for by the user, who keeps it where they like
    assert {name.split("/")[0] for name in held} >= {"store", "vault"}, "the search finds them where they are"
    assert found_in(home, names) == {"vault/users.sqlite"}
    with closing(sqlite3.connect(home / "vault" / "users.sqlite")) as table:
        tokens = [token for (token,) in table.execute("SELECT lower(hex(token)) FROM users")]
    assert len(forgotten(home / "vault")) == FORGOTTEN
    kept = set(Vault(home / "vault", shop.folder / "key").user_ids(tokens).values())
    assert not kept & set(gone)
    assert len(kept) == 100
    assert f"{FORGOTTEN} users forgotten" in done.stdout
    assert "still serves" in done.stdout


def test_the_champion_serves_on_and_nothing_else_of_before_may(shop, forgot, env):
    home = forgot[0]
    doctor = json.loads(command(shop, ["doctor", "--json", "--home", str(home)], env).stdout)
    lines = {line["name"]: line for line in doctor["lines"]}
    assert lines["champion's files"]["tone"] == "green"
    assert lines["forgotten users"]["tone"] == "yellow"
    back = command(shop, ["promote", "--version", "1", "--approve", "Ada", "--reason", "x", "--home", str(home)], env)
    assert back.returncode != 0
    assert "forgotten" in back.stdout + back.stderr


def test_an_unknown_user_is_refused_and_nothing_is_touched(shop, forgot, env):
    home = forgot[0]
    there = Truth.of(home)
    done = command(shop, ["forget", "nobody we know", "--yes", "--home", str(home)], env)
    assert done.returncode == 2
    assert "nobody we know" not in done.stderr
    assert Truth.of(home) == there


def test_the_next_night_is_that_of_a_home_that_never_had_them(shop, forgot, env, tmp_path):
    home = forgot[0]
    never = tmp_path / "never"
    night(shop, never, env, "never/events.parquet")
    night(shop, home, env)
    ours, theirs = learnt(home), learnt(never)
    assert {step for step, _ in theirs} == set(LEARNT)
    assert theirs <= ours
    assert {step for step, _ in ours - theirs} <= {"artifact"}, "the champion's"
    compared = rows(home, "SELECT DISTINCT key FROM metrics WHERE key = 'champion/ndcg_at_10' AND step = 0")
    assert compared, "the champion of before was scored in tonight's item codes"
    checked = command(shop, ["fsck", "--home", str(home)], env)
    assert checked.returncode == 0, checked.stdout
    again = command(shop, shop.words(home), env)
    assert "NO CHANGE" in again.stdout
