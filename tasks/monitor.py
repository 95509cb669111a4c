"""monitor: how the champion fares with what came after it, and whom to tell. Three tasks of one watch."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import task
from prefect.exceptions import ObjectNotFound

from recsys.artifact import CARD, Card, verify
from recsys.config import DataConfig, MonitorConfig
from recsys.dataset import BuildPlan
from recsys.drift import Drift, drift_of
from recsys.errors import ArtifactError, StoreError
from recsys.event_log import EventLog, read_log
from recsys.health import Age, FollowUp, Health
from recsys.known import as_of_time
from recsys.prequential import Aftermath, Decay, ServedLists, decay_of, look_back
from tasks.adapters.registry import STUDENT, Version
from tasks.adapters.vault import Vault
from tasks.approval import expire_waiting
from tasks.build_dataset import accepted_files, effective_as_of
from tasks.last_night import HEAD
from tasks.night import TASK_OPTIONS, Night, Step, step
from tasks.opening import open_build
from tasks.refs import AcceptedRef
from tasks.served import at_gate, batches, worth_following
from tasks.settle_alias import settle_alias
from tasks.turns import missed_nights
from tasks.watch import Reign
from tasks.workshop import Workshop

_UNJUDGED = "nothing is concluded"


@task(name="settle", **TASK_OPTIONS)
def settle_champion(night: Night) -> str:
    """Adopts an alias that a person moved, or puts it back, and rejects what nobody approved in time.

    Says what it did; empty when there was nothing to do.
    """
    with step(night, "settle", "Looking whether the alias was moved, and who waits for approval") as at:
        settled = settle_alias(Workshop.here())
        said = [settled.sentence] if settled else []
        said += [question.sentence for question in expire_waiting(Workshop.here(), datetime.now(UTC))]
        at.idle = not said
        for sentence in said:
            at.tell(sentence)
        return "; ".join(said)


@task(name="look", **TASK_OPTIONS)
def look(night: Night, accepted: AcceptedRef, settled: str, monitor: MonitorConfig) -> Health:
    """Served recommendations against later events, drift against the champion's training data, ages."""
    with step(night, "look", "Comparing what was served with what came after") as at:
        workshop = Workshop.here()
        reign = Reign.now(workshop)
        log = _read_log(at, accepted)
        at.progress(0.4, f"{len(log.times):,} events up to {datetime.fromtimestamp(log.as_of, UTC):%Y-%m-%d %H:%M}")
        followed = _follow(at, log, reign.champion, monitor)
        at.progress(0.8, "comparing the new events with those the champion learnt from")
        drift, why = _drift(at, log, reign.champion, monitor)
        now = int(as_of_time(night.source.as_of).timestamp()) if night.source.as_of else int(time.time())
        return Health(
            shop=night.source.events_path().name if night.source.events else "Online Retail (built-in sample)",
            now=now,
            champion=reign.champion.number if reign.champion else None,
            follow_up=FollowUp.of(followed.aftermath) if followed.aftermath else None,
            decay=followed.decay,
            decay_advice=_advice(reign, monitor),
            drift=drift,
            ages=_ages(at, log, now, monitor),
            missed=_missed(),
            notes=tuple(filter(None, (settled, why))),
        )


def _read_log(at: Step, accepted: AcceptedRef) -> EventLog:
    """Every event that counts, repeats too: what a model may recommend again is decided where its lists are scored."""
    items = accepted.items
    plan = BuildPlan(
        events=at.night.config.events,
        data=DataConfig(repeats="allow"),
        as_of=effective_as_of(at.store, accepted, at.night.source),
        shards=at.settings.shards,
        memory_mb=at.settings.memory_mb,
        temp=at.settings.temp,
        threads=at.settings.threads,
    )
    texts = at.store.open(items.step, items.digest) / "items.parquet" if items else None
    return read_log(accepted_files(at.store, accepted), texts, plan)


@dataclass(frozen=True)
class _Followed:
    """Lists that were served, scored by what came after; and what that says of the champion."""

    decay: Decay
    aftermath: Aftermath | None = None


def _follow(at: Step, log: EventLog, champion: Version | None, monitor: MonitorConfig) -> _Followed:
    door = Vault(at.settings.vault, at.settings.vault_key).door
    number = champion.number if champion else None
    lists = worth_following(batches(at.settings), log, door, number, monitor.window_days, monitor.min_users)
    if lists is None:
        return _Followed(Decay(False, f"no batch scores have later events: {_UNJUDGED}; recsys score makes them"))
    try:
        aftermath = _aftermath(at, lists, log, monitor)
    except (StoreError, ArtifactError) as error:
        return _Followed(Decay(False, f"version {lists.version}, which served, is not in this store ({error.what})"))
    if champion is None or lists.version != champion.number:
        became = f"version {number} is champion now" if champion else "there is no champion now"
        return _Followed(Decay(False, f"version {lists.version} had served and {became}: {_UNJUDGED}"), aftermath)
    return _Followed(decay_of(aftermath, at_gate(at.store, champion), monitor), aftermath)


def _aftermath(at: Step, lists: ServedLists, log: EventLog, monitor: MonitorConfig) -> Aftermath:
    folder = at.store.open("artifact", at.registry.version(STUDENT, lists.version).digest)
    card = Card.from_bytes(verify(folder).read(folder, CARD))
    return look_back(lists, log, card.repeats, monitor.window_days)


def _drift(at: Step, log: EventLog, champion: Version | None, monitor: MonitorConfig) -> tuple[Drift | None, str]:
    """And why there is none, where there is none."""
    if champion is None:
        return None, "without a champion there is nothing to have drifted from"
    try:
        build = open_build(at.store, champion.tags["recsys.dataset"])
    except (KeyError, StoreError):
        return None, f"the dataset of version {champion.number} is not in this store: drift is not measured"
    cut = build.as_of if build.validation_start is None else build.validation_start
    drift = drift_of(log, cut, monitor.window_days, monitor.drift)
    return drift, "" if drift else "there are no events after those the champion learnt from: drift is not measured"


def _ages(at: Step, log: EventLog, now: int, monitor: MonitorConfig) -> tuple[Age, ...]:
    """Of what comes in and of what is made of it. The built-in shop's events are old by nature, and not called stale."""
    last, scores, source = at.store.head(HEAD), batches(at.settings), at.night.source
    known = now if source.events or source.as_of else log.as_of
    ended = at.tracking.ended(last["run_id"]) if last else None
    return (
        Age.of("newest event", int(log.times[-1]) if len(log.times) else None, known, monitor),
        Age.of("last night that ended well", ended, now, monitor),
        Age.of("last batch scoring", scores[0].as_of if scores else None, known, monitor, needed=False),
    )


def _missed() -> tuple[int, ...]:
    """Of the deployment nightly; none where nights are not scheduled."""
    try:
        return tuple(int(night.timestamp()) for night in missed_nights())
    except ObjectNotFound:
        return ()


def _advice(reign: Reign, monitor: MonitorConfig) -> str:
    """What to do when the champion has decayed."""
    if monitor.on_decay == "refresh":
        return "The teacher is refreshed, and the next night learns from it: nothing to do but to look at the verdict."
    if monitor.on_decay == "propose_rollback" and reign.previous:
        return f"Roll back: recsys rollback --to {reign.previous} --reason 'decayed since it was promoted'."
    if monitor.on_decay == "propose_rollback":
        return "There is no earlier champion to roll back to: run recsys nightly with refresh.max_age_days=0."
    return "Run a night with a fresh teacher, or roll back: recsys history shows to what."
