"""How a champion fares: what the monitor saw, what alarms it raises, in plain numbers and words, kept as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self

from recsys.config import MonitorConfig
from recsys.drift import Drift
from recsys.prequential import PEERS, Aftermath, Decay
from recsys.small_cells import FEWEST
from recsys.split import DAY
from recsys.statistics import Interval, mean_interval
from recsys.wording import many

Kind = Literal["decayed", "drifted", "stale", "missed"]


@dataclass(frozen=True)
class FollowUp:
    """What became of recommendations that were served: rates over the users who had been served and came back."""

    version: int
    as_of: int  # seconds UTC: served from what was known before
    until: int  # exclusive: later events are looked at up to here
    served: int | None  # users; None: so few that they are not counted out
    unserved: int | None  # users of the window without recommendations
    users: int | None  # served, and with something relevant in the window
    hit_rate: Mapping[str, Interval]  # at 10, by "champion", "most_popular", "neighbours"
    ndcg: Mapping[str, Interval]  # at 10
    against: Mapping[str, Interval]  # relative change of the champion's hit rate to each peer's

    @classmethod
    def of(cls, aftermath: Aftermath) -> Self:
        """The same without its users, and without rates of so few that they tell about single ones."""
        told = aftermath.users >= FEWEST
        return cls(
            version=aftermath.version,
            as_of=aftermath.as_of,
            until=aftermath.until,
            served=_counted(aftermath.served),
            unserved=_counted(aftermath.unserved),
            users=_counted(aftermath.users),
            hit_rate={name: mean_interval(values) for name, values in aftermath.hits.items()} if told else {},
            ndcg={name: mean_interval(values) for name, values in aftermath.ndcg.items()} if told else {},
            against={peer: aftermath.against(peer) for peer in PEERS} if told else {},
        )


@dataclass(frozen=True)
class Age:
    """How old something is that should be young."""

    what: str
    at: int | None  # seconds UTC; None: there is none
    days: float | None
    stale: bool

    @classmethod
    def of(cls, what: str, at: int | None, now: int, config: MonitorConfig, *, needed: bool = True) -> Self:
        """Stale when older than `config.max_age_days`, or when it is `needed` and there is none."""
        if at is None:
            return cls(what, None, None, needed)
        days = max(0.0, (now - at) / DAY)
        return cls(what, at, days, days > config.max_age_days)

    @property
    def sentence(self) -> str:
        """For people."""
        return f"there is no {self.what}" if self.days is None else f"the {self.what} is {self.days:.1f} days old"


@dataclass(frozen=True)
class Alarm:
    """Something is not as it should be, and what to do about it."""

    kind: Kind
    sentence: str
    advice: str


@dataclass(frozen=True)
class Health:
    """What one look came to. Parts that could not be looked at are None, and `notes` says why."""

    shop: str
    now: int  # seconds UTC: ages are counted to here
    champion: int | None
    follow_up: FollowUp | None
    decay: Decay
    decay_advice: str
    drift: Drift | None
    ages: tuple[Age, ...]
    missed: tuple[int, ...]  # nights that should have ended well and have not, seconds UTC
    notes: tuple[str, ...]

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The most pressing first."""
        found = []
        if self.decay.decayed:
            found.append(Alarm("decayed", self.decay.sentence, self.decay_advice))
        if self.missed:
            nights = many(len(self.missed), "night")
            advice = "Look at the failed runs in Prefect; recsys doctor says whether the schedule is alive."
            found.append(Alarm("missed", f"{nights} should have ended well and did not", advice))
        if stale := [age.sentence for age in self.ages if age.stale]:
            advice = "See whether events still arrive and whether nights and scoring still run: recsys doctor, recsys status."
            found.append(Alarm("stale", "; ".join(stale), advice))
        if self.drift and self.drift.drifted:
            advice = "Look at what changed in the shop or in its files; a fresh teacher learns what is new."
            found.append(Alarm("drifted", f"{_listed(self.drift)} drifted from the champion's training data", advice))
        return tuple(found)

    @property
    def sentence(self) -> str:
        """All of it in one."""
        if alarms := self.alarms:
            return ". ".join(_capital(alarm.sentence) for alarm in alarms)
        return "Nothing is wrong" if self.champion else "There is no champion yet"

    def metrics(self) -> dict[str, float]:
        """For a run in MLflow."""
        metrics: dict[str, float] = {"monitor/alarms": len(self.alarms), "monitor/nights_missed": len(self.missed)}
        for age in self.ages:
            if age.days is not None:
                metrics[f"age_days/{age.what.replace(' ', '_')}"] = age.days
        if self.follow_up and self.follow_up.users is not None:
            metrics["served/users"] = self.follow_up.users
            for name, values in (("hr_at_10", self.follow_up.hit_rate), ("ndcg_at_10", self.follow_up.ndcg)):
                metrics |= {f"served/{model}/{name}": interval.value for model, interval in values.items()}
        if self.decay.change:
            bounds = asdict(self.decay.change)
            metrics |= {f"decay/{name}": value for name, value in bounds.items()}
        if self.drift:
            metrics |= {f"psi/{field.field.replace(' ', '_')}": field.psi for field in self.drift.fields}
            for name in ("new_users", "new_user_events", "new_items", "new_item_events", "events_a_day"):
                if (value := getattr(self.drift, name)) is not None:
                    metrics[f"drift/{name}"] = value
        return metrics

    def to_json(self) -> str:
        """Canonical JSON, with the alarms spelt out."""
        whole = {**asdict(self), "alarms": [asdict(alarm) for alarm in self.alarms], "sentence": self.sentence}
        return json.dumps(whole, sort_keys=True, indent=1, allow_nan=False)


def _counted(users: int) -> int | None:
    return None if 0 < users < FEWEST else users


def _listed(drift: Drift) -> str:
    found = [f"{field.field} (PSI {field.psi:.2f})" for field in drift.fields if field.drifted]
    return " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
