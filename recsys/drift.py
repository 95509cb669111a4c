"""How far new events lie from those a model learnt from: the population stability index, field by field.

PSI = sum over bins of (q - p) ln(q / p), with p the share of a bin in the reference and q in the new events; above 0.25 a
shift is usually called major (Siddiqi 2006, Credit Risk Scorecards, chapter 10). Bins are fixed on the reference. Half an
event is added to each bin, so that an empty one is no division by zero.

Small samples differ by chance: without any shift PSI is about chi-square with B - 1 degrees of freedom, times
1/n + 1/m (Yurdakul 2018, Statistical Properties of Population Stability Index). A field has drifted only when its PSI is
also above that value's quantile, at 5 % over all fields. Events of one user are alike, so n and m are not events but
Kish's effective number of users, (sum of w)^2 / sum of w^2 for w events a user (1965): the worst case of likeness.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.event_log import EventLog
from recsys.small_cells import withheld
from recsys.split import DAY

WEEK = 7 * DAY
HOUR = 3_600

_HOURS_A_BIN = 3
_BUCKETS = 5
_MOST_CATEGORIES = 20
_FAMILY = 6  # fields at most
_ALPHA = 0.05
_WEEKDAYS = ("Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed")  # 1970 began on a Thursday


@dataclass(frozen=True)
class FieldDrift:
    """One field: the shares of its bins before and now, and whether they differ by more than chance."""

    field: str
    psi: float
    by_chance: float  # PSI that chance alone exceeds in fewer than one of a hundred looks, in samples of this size
    drifted: bool
    bins: tuple[str, ...]
    reference: tuple[float | None, ...]  # shares; None where they are of so few users that they tell about single ones
    new: tuple[float | None, ...]


@dataclass(frozen=True)
class Drift:
    """New events against the champion's training data. Shares are of those in the window."""

    since: int  # seconds UTC: the new events begin here
    until: int  # exclusive
    events: int
    fields: tuple[FieldDrift, ...]
    new_users: float | None  # share of the window's users; None where they, or the others, are too few to be told of
    new_user_events: float | None  # share of the window's events
    new_items: float
    new_item_events: float
    events_a_day: float
    reference_events_a_day: float

    @property
    def drifted(self) -> tuple[str, ...]:
        """The fields that have."""
        return tuple(field.field for field in self.fields if field.drifted)


@dataclass(frozen=True)
class _Counts:
    """A field, counted in the reference and in the new events, and how many of each are worth believing."""

    field: str
    bins: tuple[str, ...]
    reference: np.ndarray  # (B,) counts
    new: np.ndarray  # (B,)
    sizes: tuple[float, float]  # effective
    users: tuple[np.ndarray, np.ndarray]  # (B,) users of each bin, in both


def drift_of(log: EventLog, trained_until: int, window_days: int, threshold: float) -> Drift | None:
    """The last `window_days` of `log`, after `trained_until` (seconds UTC), against everything before that.

    None when either is without events.
    """
    since = max(trained_until, log.as_of - window_days * DAY)
    reference, new = log.until(trained_until), log.between(since, log.as_of)
    if not len(reference.times) or not len(new.times):
        return None
    users, items = np.unique(new.users), np.unique(new.codes)
    known_users, known_items = len(reference.tokens), len(reference.item_ids)
    few = (
        withheld([int((users >= known_users).sum()), int((users < known_users).sum())])[0] and users[-1] >= known_users
    )
    return Drift(
        since=since,
        until=log.as_of,
        events=len(new.times),
        fields=tuple(_judged(counts, threshold) for counts in _fields(reference, new, since)),
        new_users=None if few else float((users >= known_users).mean()),
        new_user_events=None if few else float((new.users >= known_users).mean()),
        new_items=float((items > known_items).mean()),
        new_item_events=float((new.codes > known_items).mean()),
        events_a_day=_rate(new, since),
        reference_events_a_day=_rate(reference, int(reference.times[0])),
    )


def psi(reference: np.ndarray, new: np.ndarray) -> float:
    """The index of two (B,) counts over the same bins."""
    p, q = _shares(reference), _shares(new)
    return float(((q - p) * np.log(q / p)).sum())


def effective_size(users: np.ndarray) -> float:
    """Kish's effective number of users among events of `users` (E,): U when all have equally many; 0 without any."""
    weights = np.unique(users, return_counts=True)[1].astype(np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0


def by_chance(bins: int, sizes: tuple[float, float]) -> float:
    """PSI of `bins` that samples of the given effective sizes exceed by chance, all fields together, in 5 %."""
    if min(sizes) <= 0:
        return float("inf")
    return _chi_square(bins - 1, 1 - _ALPHA / _FAMILY) * (1 / sizes[0] + 1 / sizes[1])


def _judged(counts: _Counts, threshold: float) -> FieldDrift:
    index, chance = psi(counts.reference, counts.new), by_chance(len(counts.bins), counts.sizes)
    return FieldDrift(
        field=counts.field,
        psi=index,
        by_chance=chance,
        drifted=index > threshold and index > chance,
        bins=counts.bins,
        reference=_of_all(counts.reference, counts.users[0]),
        new=_of_all(counts.new, counts.users[1]),
    )


def _fields(reference: EventLog, new: EventLog, since: int) -> Iterator[_Counts]:
    """Every field that has two bins or more."""
    yield from _hours(reference, new)
    yield from _weekdays(reference, new, since)
    yield from _texts("event", [reference.kinds, new.kinds], (reference, new))
    yield from _popularity(reference, new)
    yield from _activity(reference, new, since)
    categories = [log.categories.take(pa.array(log.codes - 1)) for log in (reference, new)]
    yield from _texts("category", categories, (reference, new))


def _hours(reference: EventLog, new: EventLog) -> Iterator[_Counts]:
    """In bins of three hours, UTC."""
    length = _HOURS_A_BIN * HOUR
    names = tuple(f"{hour:02}-{hour + _HOURS_A_BIN:02}" for hour in range(0, 24, _HOURS_A_BIN))
    yield _counted("hour", names, [log.times % DAY // length for log in (reference, new)], (reference, new))


def _weekdays(reference: EventLog, new: EventLog, since: int) -> Iterator[_Counts]:
    """Of the last whole weeks only: half a week differs from a week without any drift."""
    weeks = (new.as_of - since) // WEEK
    if weeks:
        new = new.between(new.as_of - weeks * WEEK, new.as_of)
        yield _counted("weekday", _WEEKDAYS, [log.times // DAY % 7 for log in (reference, new)], (reference, new))


def _texts(field: str, values: Sequence[pa.Array], logs: tuple[EventLog, EventLog]) -> Iterator[_Counts]:
    """The most frequent values of the reference, and all others together."""
    texts = [pc.fill_null(each, "(none)") for each in values]
    counted = pc.value_counts(texts[0])
    numbers = counted.field("counts").to_numpy(zero_copy_only=False)
    names = counted.field("values").take(pa.array(np.argsort(-numbers, kind="stable")[:_MOST_CATEGORIES]))
    places = [pc.fill_null(pc.index_in(each, names), len(names)).to_numpy() for each in texts]
    counted = _counted(field, (*names.to_pylist(), "other"), places, logs)
    if len(names) > 1 or counted.new[-1]:
        yield counted


def _counted(
    field: str, bins: tuple[str, ...], places: Sequence[np.ndarray], logs: tuple[EventLog, EventLog]
) -> _Counts:
    """The bins that the events of both logs lie in, by their `places` (E,) among them."""
    reference, new = (np.bincount(each, minlength=len(bins)) for each in places)
    before, now = (_users_of(each, log.users, len(bins)) for each, log in zip(places, logs, strict=True))
    return _Counts(field, bins, reference, new, _sizes(*logs), (before, now))


def _popularity(reference: EventLog, new: EventLog) -> Iterator[_Counts]:
    """Events by the popularity of their item, head to tail, in buckets of about as many events. New items are apart.

    Items are ranked by every second event of the reference and its shares are those of the others: were they ranked by the
    events that are counted, the luckiest items would stand on top and every sample after it would seem to drift.
    """
    items = len(reference.item_ids)
    ranked = np.bincount(reference.codes[::2], minlength=items + 1)[1:]
    order = np.argsort(-ranked, kind="stable")
    before = np.cumsum(ranked[order]) - ranked[order]
    bucket = np.empty(items, np.int64)
    bucket[order] = np.minimum(before * _BUCKETS // max(ranked.sum(), 1), _BUCKETS - 1)
    known = new.codes <= items
    places = [bucket[codes - 1] for codes in (reference.codes[1::2], new.codes[known])]
    counts = [np.bincount(each, minlength=_BUCKETS) for each in places]
    filled = counts[0] > 0
    if filled.sum() > 1 and known.any():
        names = tuple(f"{number} of {_BUCKETS}" for number in np.flatnonzero(filled) + 1)
        users = (reference.users[1::2], new.users[known])
        before, now = (_users_of(each, of, _BUCKETS)[filled] for each, of in zip(places, users, strict=True))
        sizes = (effective_size(users[0]), effective_size(users[1]))
        yield _Counts("item popularity", names, counts[0][filled], counts[1][filled], sizes, (before, now))


def _activity(reference: EventLog, new: EventLog, since: int) -> Iterator[_Counts]:
    """Events a user in a window as long as the new one; the reference is cut in such windows from its end backwards."""
    length = new.as_of - since
    number = (reference.as_of - 1 - reference.times) // length
    whole = number < (reference.as_of - reference.times[0]) // length
    if not whole.any():
        return
    pairs = reference.users[whole] * (int(number.max()) + 1) + number[whole]
    windows, before = np.unique(pairs, return_counts=True)
    users, now = np.unique(new.users, return_counts=True)
    edges = np.unique(np.quantile(before, np.arange(1, _BUCKETS) / _BUCKETS, method="lower"))
    edges = edges[edges < before.max()]
    if len(edges):
        places, bins = [np.searchsorted(edges, each) for each in (before, now)], len(edges) + 1
        counts = [np.bincount(each, minlength=bins) for each in places]
        lows = [1, *(int(edge) + 1 for edge in edges)]
        names = (*(f"{low}-{int(edge)}" for low, edge in zip(lows, edges, strict=False)), f"{lows[-1]} or more")
        sizes = (effective_size(pairs // (int(number.max()) + 1)), float(len(now)))
        owners = (windows // (int(number.max()) + 1), users)
        told = [_users_of(each, of, bins) for each, of in zip(places, owners, strict=True)]
        yield _Counts("user activity", names, counts[0], counts[1], sizes, (told[0], told[1]))


def _sizes(reference: EventLog, new: EventLog) -> tuple[float, float]:
    return effective_size(reference.users), effective_size(new.users)


def _rate(log: EventLog, start: int) -> float:
    """Events a day since `start`."""
    return len(log.times) * DAY / max(log.as_of - start, 1)


def _shares(counts: np.ndarray) -> np.ndarray:
    smoothed: np.ndarray = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return smoothed


def _of_all(counts: np.ndarray, users: np.ndarray) -> tuple[float | None, ...]:
    """Shares, but of bins whose few users would be told of; an empty bin tells of nobody."""
    hidden = withheld(users) & (users > 0)
    return tuple(
        None if hide else float(share) for share, hide in zip(counts / max(counts.sum(), 1), hidden, strict=True)
    )


def _users_of(places: np.ndarray, users: np.ndarray, bins: int) -> np.ndarray:
    """(bins,) distinct users of the events (E,) in each bin."""
    return np.bincount(np.unique(users.astype(np.int64) * bins + places) % bins, minlength=bins)


def _chi_square(degrees: int, probability: float) -> float:
    """A quantile of chi-square, by Wilson and Hilferty (1931): within 1 % from two degrees on, 3 % for one."""
    spread = 2 / (9 * degrees)
    root = 1 - spread + NormalDist().inv_cdf(probability) * spread**0.5
    return degrees * float(root) ** 3
