"""The ledger: a chain that one of two writers extends, and aliases that follow it."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from recsys.errors import RegistryError
from tasks.adapters.connection import RefusedError
from tasks.adapters.ledger import Entry, Ledger, Record, fold
from tasks.adapters.registry import Registry
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import Tracking


def texts(*entries: tuple[str, int, int]) -> list[tuple[int, str]]:
    """Records of (op, to, expected) as an honest writer makes them, with their numbers."""
    made: list[tuple[int, str]] = []
    for number, (op, to, expected) in enumerate(entries, start=1):
        chain = fold(made)
        record = Record(
            number, f"intent {number}", op, to, chain.champion, expected, "", "", "a", "", seal_of(chain, expected), ""
        )
        made.append((number, record.text()))
    return made


def seal_of(chain, expected: int) -> str:
    return next((r.seal for r in chain.records if r.number == expected), "")


def test_an_empty_ledger_has_no_champion():
    chain = fold([])
    assert (chain.last, chain.champion, chain.previous, chain.broken) == (0, None, None, "")


def test_a_stale_record_is_passed_over():
    chain = fold(texts(("promote", 1, 0), ("promote", 2, 1), ("promote", 3, 1), ("promote", 4, 2)))
    assert [r.number for r in chain.records] == [1, 2, 4]
    assert (chain.champion, chain.previous, chain.broken) == (4, 2, "")
    assert [r.came_from for r in chain.records] == [None, 1, 2]


def test_a_repeated_intent_counts_once():
    first = texts(("promote", 1, 0))[0][1]
    chain = fold([(1, first), (2, first)])
    assert [r.number for r in chain.records] == [1]
    assert chain.broken == ""


def test_rolling_back_uncovers_one_champion_after_the_other():
    entries = [("promote", 1, 0), ("promote", 2, 1), ("promote", 3, 2)]
    walk = [(fold(texts(*entries)).champion, fold(texts(*entries)).previous)]
    for _ in range(2):
        entries.append(("rollback", walk[-1][1], len(entries)))
        chain = fold(texts(*entries))
        walk.append((chain.champion, chain.previous))
    assert walk == [(3, 2), (2, 1), (1, None)]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda t: [(1, t[0][1].replace('"to":1', '"to":7')), *t[1:]], "record 1 was changed after record 2"),
        (lambda t: [t[0], t[2]], "record 2 is missing"),
        (lambda t: [t[0], (2, "{"), t[2]], "record 2 cannot be read"),
        (lambda t: [t[0], (2, '{"to": 1}'), t[2]], "record 2 cannot be read"),
    ],
    ids=["edited", "deleted", "torn", "foreign"],
)
def test_a_chain_that_was_tampered_with_is_broken(harm, told):
    honest = texts(("promote", 1, 0), ("promote", 2, 1), ("promote", 3, 2))
    assert fold(honest).broken == ""
    chain = fold(harm(honest))
    assert chain.broken == told
    with pytest.raises(RegistryError, match=told):
        chain.require_intact()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    settings = Settings.from_environment(tmp_path_factory.mktemp("home")).prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking = Tracking(settings)
        _ = tracking.client
        yield tracking


@pytest.fixture(scope="module")
def registry(tracking):
    return Registry(tracking.settings, tracking.client, lambda: tracking.experiment_id)


@pytest.fixture
def ledger(registry, request):
    """The ledger of a model with five versions."""
    model = f"shop-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    registry.require(model)
    for number in range(1, 6):
        tags = {"recsys.intent": str(number), "recsys.digest": f"d{number}"}
        registry.create(model, "file:///nowhere", tags, "")
    return Ledger(registry.settings, registry, model)


def promotion(to: int, expected: int, op: str = "promote") -> Entry:
    return Entry(op, to, expected, "e" * 64, "ann", "every criterion holds")


def aliases(ledger: Ledger) -> dict[str, int]:
    return dict(ledger.registry.aliases(ledger.model))


def test_a_promotion_is_recorded_and_the_aliases_follow(ledger):
    assert ledger.append(promotion(2, 0)).won
    assert aliases(ledger) == {"champion": 2}
    outcome = ledger.append(promotion(3, 1))
    assert outcome.won
    assert aliases(ledger) == {"champion": 3, "previous": 2}
    last = outcome.chain.records[-1]
    assert (last.op, last.came_from, last.to, last.expected, last.digest) == ("promote", 2, 3, 1, "d3")
    assert last.previous == outcome.chain.records[0].seal
    assert ledger.append(promotion(2, 2, "rollback")).won
    assert aliases(ledger) == {"champion": 2}
    assert ledger.drift() is None


def test_a_loser_is_told_what_the_champion_became(ledger):
    ledger.append(promotion(1, 0))
    ledger.append(promotion(2, 1))
    outcome = ledger.append(promotion(3, 1))
    assert not outcome.won
    assert "the champion changed from 1 to 2 meanwhile" in outcome.sentence
    assert aliases(ledger)["champion"] == 2


def test_the_same_entry_sent_again_is_recorded_once(ledger):
    first = ledger.append(promotion(1, 0))
    again = ledger.append(promotion(1, 0))
    assert first.won
    assert again.won
    assert len(ledger.registry.all_versions(ledger.name)) == 1


def test_a_lost_response_is_one_promotion(ledger):
    class Dropping:
        def __init__(self, client) -> None:
            self.client, self.uri = client, client.uri

        def __getattr__(self, name):
            return getattr(self.client, name)

        def create_model_version(self, *args, **kwargs):
            self.client.create_model_version(*args, **kwargs)
            self.client.create_model_version(*args, **kwargs)
            raise RefusedError("INTERNAL_ERROR", "the connection was dropped", self.uri)

    registry = ledger.registry
    dropping = Registry(registry.settings, Dropping(registry.client), lambda: "")
    assert Ledger(registry.settings, dropping, ledger.model).append(promotion(1, 0)).won
    assert len(registry.all_versions(ledger.name)) == 2
    assert [r.number for r in ledger.chain().records] == [1]
    assert ledger.append(promotion(2, 1)).won
    assert [r.number for r in ledger.chain().records] == [1, 3]


def test_a_version_that_is_not_there_cannot_be_promoted(ledger):
    with pytest.raises(RegistryError, match=r"has no version 9.*There are: 1, 2, 3, 4, 5"):
        ledger.append(promotion(9, 0))
    assert ledger.chain().records == ()


def test_an_edited_last_record_contradicts_its_mirror(ledger):
    ledger.append(promotion(1, 0))
    record = ledger.chain().records[0]
    ledger.registry.set_tags(ledger.name, 1, {"recsys.record": replace(record, to=5).text()})
    with pytest.raises(RegistryError, match="record 1 was changed after it was written"):
        ledger.append(promotion(2, 1))


def test_a_deleted_last_record_contradicts_its_mirror(ledger):
    ledger.append(promotion(1, 0))
    ledger.append(promotion(2, 1))
    ledger.registry.client.delete_model_version(ledger.name, "2")
    with pytest.raises(RegistryError, match="record 2 is missing"):
        ledger.append(promotion(3, 1))


@pytest.mark.parametrize("bit", range(8))
def test_a_bit_of_the_mirror_is_told_with_its_file(ledger, bit):
    ledger.append(promotion(1, 0))
    copy = ledger.settings.ledger / ledger.name / "000001.json"
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    copy.write_bytes(content)
    with pytest.raises(
        RegistryError, match=r"record 1 was changed after it was written, or its copy .*000001\.json was"
    ):
        ledger.append(promotion(2, 1))
    copy.unlink()
    assert ledger.append(promotion(2, 1)).won, "copied again"


def test_a_hand_moved_alias_is_adopted_when_it_loads(ledger):
    ledger.append(promotion(1, 0))
    ledger.registry.set_alias(ledger.model, "champion", 4)
    drift = ledger.drift()
    assert (drift.alias, drift.champion) == (4, 1)
    loaded = []
    settled = ledger.settle(loaded.append)
    assert settled.adopted
    assert loaded == [4]
    chain = ledger.chain()
    assert (chain.records[-1].op, chain.champion, chain.previous) == ("manual", 4, 1)
    assert aliases(ledger) == {"champion": 4, "previous": 1}
    assert ledger.settle(loaded.append) is None


def test_a_hand_moved_alias_is_put_back_when_it_does_not_load(ledger):
    ledger.append(promotion(1, 0))
    ledger.registry.set_alias(ledger.model, "champion", 4)

    def fails(version: int) -> None:
        raise RegistryError(f"version {version} fails the load test")

    settled = ledger.settle(fails)
    assert not settled.adopted
    assert "version 4 fails the load test" in settled.sentence
    assert aliases(ledger) == {"champion": 1}
    assert len(ledger.chain().records) == 1


def test_an_alias_that_was_deleted_is_put_back(ledger):
    ledger.append(promotion(1, 0))
    ledger.registry.set_alias(ledger.model, "champion", None)
    assert not ledger.settle(lambda version: None).adopted
    assert aliases(ledger) == {"champion": 1}


def test_a_champion_set_by_hand_before_the_first_night_is_adopted(ledger):
    ledger.registry.set_alias(ledger.model, "champion", 3)
    assert ledger.settle(lambda version: None).adopted
    assert ledger.chain().champion == 3


def test_an_alias_that_a_killed_promotion_never_set_is_no_hand_move(ledger):
    ledger.append(promotion(1, 0))
    ledger.mend = lambda: os._exit(9)  # killed between the record and the alias
    child = os.fork()
    if child == 0:
        ledger.append(promotion(2, 1))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    del ledger.mend
    assert aliases(ledger) == {"champion": 1}
    assert ledger.drift() is None
    assert aliases(ledger) == {"champion": 2, "previous": 1}


def killed_over_an_overtaken_record(ledger: Ledger, to: int, by: int) -> None:
    """A host that promotes `to`, is overtaken by a promotion of `by`, sets the alias all the same and dies at once."""
    last, late = ledger.chain().last, Registry.set_alias

    def overtaken(registry: Registry, model: str, alias: str, number: int | None) -> None:
        registry.set_alias = partial(late, registry)
        elsewhere = ledger.settings.home / "elsewhere"
        assert (
            Ledger(replace(ledger.settings, home=elsewhere).prepare(), registry, model)
            .append(promotion(by, last + 1))
            .won
        )
        late(registry, model, alias, number)
        os._exit(9)

    child = os.fork()
    if child == 0:
        ledger.registry.set_alias = partial(overtaken, ledger.registry)
        ledger.append(promotion(to, last))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (ledger.chain().champion, aliases(ledger)["champion"]) == (by, to)


def test_an_alias_that_a_killed_host_set_too_late_is_no_hand_move(ledger):
    ledger.append(promotion(1, 0))
    killed_over_an_overtaken_record(ledger, to=2, by=3)
    assert ledger.drift() is None
    assert aliases(ledger) == {"champion": 3, "previous": 2}


def test_a_host_that_died_long_ago_moves_nothing_any_more(ledger, monkeypatch):
    ledger.append(promotion(1, 0))
    killed_over_an_overtaken_record(ledger, to=2, by=3)
    now = time.time()
    monkeypatch.setattr("tasks.adapters.ledger.time.time", lambda: now + 301)
    assert ledger.drift().alias == 2


def test_nobody_is_moving_once_both_aliases_were_read_back(ledger):
    ledger.append(promotion(1, 0))
    ledger.append(promotion(2, 1))
    assert ledger.chain().moving == set()
    ledger.registry.set_alias(ledger.model, "champion", 1)
    assert ledger.drift().alias == 1


def test_an_alias_that_a_slow_host_has_mended_by_now_is_no_hand_move(ledger):
    ledger.append(promotion(1, 0))
    ledger.append(promotion(2, 1))
    ledger.registry.set_alias(ledger.model, "champion", 1)

    class Slow(Ledger):
        def chain(self):
            self.registry.set_alias(self.model, "champion", 2)
            return super().chain()

    assert Slow(ledger.settings, ledger.registry, ledger.model).drift() is None


def test_a_record_that_another_writes_while_the_ledger_is_read_is_not_missing(ledger):
    """Read, then another's record and its copy in the mirror, then the comparison: the copy is ahead of what was read."""

    class Slow(Ledger):
        def _mirror(self, texts):
            if len(texts) < 3:
                ledger.append(promotion(len(texts) + 1, len(texts)))
            return super()._mirror(texts)

    chain = Slow(ledger.settings, ledger.registry, ledger.model).chain()
    assert chain.broken == ""
    assert [r.to for r in chain.records] == [1, 2, 3]


RACER = """
import json, pathlib, random, sys
from tasks.adapters.ledger import Entry, Ledger
from tasks.adapters.registry import Registry
from tasks.adapters.settings import Settings
from tasks.adapters.tracking import Tracking
home, model, name = sys.argv[1:]
tracking = Tracking(Settings.from_environment(pathlib.Path(home)))
ledger = Ledger(tracking.settings, Registry(tracking.settings, tracking.client, lambda: ""), model)
draw = random.Random(name)
told = []
for turn in range(10):
    chain = ledger.chain()
    to = draw.choice([v for v in range(1, 6) if v != chain.champion])
    outcome = ledger.append(Entry("promote", to, chain.last, "", name, str(turn)))
    told.append([outcome.won, chain.last, to])
print(json.dumps(told))
"""


def test_of_racing_promotions_none_replaces_a_champion_it_never_saw(ledger):
    command = [sys.executable, "-c", RACER, str(ledger.settings.home), ledger.model]
    racers = [subprocess.Popen([*command, f"racer {n}"], text=True, stdout=subprocess.PIPE) for n in range(4)]
    told = [turn for racer in racers for turn in json.loads(racer.communicate()[0])]
    chain = ledger.chain()
    won = sorted((expected, to) for did, expected, to in told if did)
    assert len(told) == 40
    assert won == [(r.expected, r.to) for r in chain.records]  # the winners, and nobody else, are the chain
    assert len({expected for expected, _ in won}) == len(won)  # no champion was replaced twice
    assert chain.broken == ""
    assert aliases(ledger)["champion"] == chain.champion
