"""Promoters at once, killed and disturbed: a small round of benchmarks/promoters.py, and the law convicts planted lies."""

import json
import math
import os
import random
from collections.abc import Iterator

import boto3
import pytest

from benchmarks.promoters import (
    Hand,
    Plan,
    against_the_register,
    double_winners,
    held,
    make_ready,
    phantom_hands,
    wrong_beliefs,
)
from benchmarks.promoting import Diaries, Turn, read_back
from benchmarks.promotions import stock
from benchmarks.register import Read, Swap
from tasks.adapters.ledger import Chain, Record
from tasks.adapters.settings import Settings
from tasks.workshop import Workshop
from tests import servers
from tests.bucket import Server


def test_promoters_at_once_are_one_compare_and_set_register(own_environment, workshop, tmp_path):
    make_ready()
    made = held(Plan(seed=3, promoters=3, promotions=12), [workshop.settings], [1, 2, 3, 4, 5], tmp_path)
    assert made.breaches == ()
    assert made.promotions >= 12
    assert made.calls > 3 * made.promotions
    assert made.pauses + made.kills + made.hands > 0


@pytest.fixture
def two_hosts(postgres, own_environment, tmp_path) -> Iterator[list[Settings]]:
    """Two homes that share a bucket, a vault's key and an MLflow over PostgreSQL, and nothing of each other's disk."""
    bucket = Server()  # of a name of its own: all such servers of a process have the same buckets
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_DEFAULT_REGION": "us-east-1"}
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    os.environ.update({**keys, "AWS_ENDPOINT_URL": bucket.url, "RECSYS_STORE": "s3://promoters/store"})
    os.environ["RECSYS_VAULT_KEY"] = str(tmp_path / "key")
    boto3.client("s3", endpoint_url=bucket.url).create_bucket(Bucket="promoters")
    (tmp_path / "mlflow").mkdir()
    with servers.mlflow(tmp_path / "mlflow", f"postgresql://{postgres.database('promoters')}") as url:
        os.environ["MLFLOW_TRACKING_URI"] = url
        yield [Settings.from_environment(tmp_path / name).prepare() for name in ("first", "second")]
    bucket.stop()


def test_promoters_of_two_hosts_over_postgresql_are_one_register_too(two_hosts, tmp_path):
    make_ready()
    (tmp_path / "diaries").mkdir()
    versions = stock(two_hosts[0], 5)
    made = held(Plan(seed=4, promoters=4, promotions=8), two_hosts, versions, tmp_path / "diaries")
    # the limit told in docs/deploying.md: on a machine with much else to do a hand was once seen that nobody had moved
    assert [breach for breach in made.breaches if "says that a hand moved the alias" not in breach] == []
    assert made.promotions >= 8
    ledgers = [Workshop.anew(settings).ledger.chain() for settings in two_hosts]
    assert ledgers[0] == ledgers[1]
    assert all(any(settings.ledger.rglob("*.json")) for settings in two_hosts), "both have looked"


# --- planted ------------------------------------------------------------------------------------------------------


def record(number: int, op: str, to: int, came_from: int | None, reason: str = "") -> Record:
    return Record(number, f"intent {number}", op, to, came_from, number - 1, "", "", "a", reason, "", "")


CHAIN = Chain((record(1, "promote", 4, None, "a 1"), record(2, "manual", 2, 4), record(3, "rollback", 4, 2, "b 1")))
CALLS = (
    Swap("a", 0, 5, "", "intent 1", True),
    Swap("b", 1, 6, "", "intent of c", False),
    Swap("b", 20, 25, "intent 1", "intent 2", True),
    Swap("b", 30, math.inf, "intent 2", "intent 3", None),
    Read("a", 40, 41, "intent 3"),
)
TURNS = (
    Turn("a 1", "promoted", "recsys-student version 4 is the champion, after no champion", 4),
    Turn("b 0", "refused", "the champion changed from nothing to 4 meanwhile"),
    Turn("b 1"),  # killed
)
HANDS = [Hand(10, 2)]


def breaches(calls=CALLS, turns=TURNS, hands=HANDS, chain=CHAIN, broken=()) -> list[str]:
    diaries = Diaries(calls, turns, broken)
    return [
        *against_the_register(diaries, chain),
        *double_winners(diaries),
        *wrong_beliefs(diaries, chain),
        *phantom_hands(diaries, chain, hands),
    ]


def test_an_honest_round_has_no_breach():
    assert breaches() == []


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ({"calls": (*CALLS, Swap("c", 2, 7, "", "intent of c", True))}, "two winners over"),
        ({"calls": (*CALLS, Read("c", 50, 51, "intent 1"))}, "seen='intent 1'"),
        ({"chain": Chain(CHAIN.records[:2])}, "explain 3 values"),
        ({"turns": (*TURNS, Turn("c 1", "promoted", "x", 3))}, "c 1 was told promoted"),
        ({"turns": (*TURNS[:2], Turn("b 1", "refused", "the load test"))}, "b 1 was told refused"),
        ({"turns": (Turn("a 1", "promoted", "recsys-student version 4 is the champion, after version 3"),)}, "believes"),
        ({"hands": []}, "record 2 says that a hand moved the alias to 2; none did"),
        ({"hands": [Hand(10, 3)]}, "none did"),
        ({"hands": [Hand(22, 2)]}, "none did"),
        ({"broken": ("record 2 is missing",)}, "record 2 is missing"),
    ],
)  # fmt: skip
def test_a_planted_breach_is_told(planted, told):
    assert any(told in breach for breach in breaches(**planted))


def test_diaries_are_read_back_with_what_was_under_way(tmp_path):
    lines = [
        {"turn": "a 1"},
        {"call": 1, "began": 1, "kind": "read"},
        {"call": 1, "ended": 2, "seen": "", "broken": ""},
        {"call": 2, "began": 3, "kind": "swap", "expected": 0, "value": "x"},
        {"call": 3, "began": 4, "kind": "read"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    diaries = read_back(tmp_path, {})
    assert diaries.calls == (Read("a", 1, 2, ""), Swap("a", 3, math.inf, "", "x", None))
    assert diaries.turns == (Turn("a 1"),)


def test_a_ledger_without_compare_and_set_is_convicted():
    """The control: writers who put their value over whatever is there, as MLflow's aliases do."""
    draw, calls, last, now = random.Random(0), [], "", 0.0
    for turn in range(30):
        seen, now = last, now + 10
        for rival in range(draw.choice([1, 1, 2])):
            last = f"{turn}.{rival}"
            calls.append(Swap(f"writer {rival}", now + rival, now + rival + 2, seen, last, True))
    assert any("two winners" in breach for breach in breaches(calls=tuple(calls)))
    assert any("nothing explains" in breach for breach in breaches(calls=tuple(calls)))
