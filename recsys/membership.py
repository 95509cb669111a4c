"""Whether a model tells what it learnt from: a membership attack by its loss, calibrated by popularity. Numpy only.

Each user gives two events: the last that the model learnt to predict (the member) and the first that it never learnt
from. Both are asked in the same way: the first item of a purchase, given all that came before that purchase. The attacker
knows the model's log-probability of the item and how popular the item is, and says "member" where the model is surer than
popularity explains.

    score = log p(item | history) - (a + b log(1 + n)),   n: training events of the item without the one that is asked

The loss is the attack of Yeom et al. 2018 (section 3.2). What is taken from it is what a model knows that has learnt from
neither event: calibration by difficulty (Watson et al. 2022; Carlini et al. 2022, LiRA, with models in the reference's
place). Without that a split in time tells members apart by itself: what is sold after the cut is newer, and no model,
however discreet, has seen it sell. a and b are fitted to members and others together, so that the fit knows no side.

What it can show: that single events of the training leave a trace in the answers, and that one model leaves more than
another. What it cannot: that there is none. It is one attack, of somebody who asks about one event; items that nobody else
took are left out, for there a memory looks like a new item. A drift that popularity does not explain stays in it, in both
directions: `control` is the same attack on neighbours that never learnt from the user who is asked about, so what it
is away from .5 is of the data. Whether a person was in the training at all is another question, and needs models that were
trained without them: benchmarks/membership.py.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from recsys.dataset import Dataset
from recsys.histories import Cases, Histories
from recsys.metrics import cross_entropy
from recsys.recommender import BATCH_SCORES, Recommender
from recsys.statistics import CONFIDENCE, RESAMPLES, Interval, paired_difference

LEAST_USERS = 100
"""Fewer say nothing: the bounds of an AUC would be .07 away."""
MOST_USERS = 2_000
"""More are not asked, which bounds what it costs."""
FALSE_ALARMS = 0.01
LEAST_ALARMED = 500
"""Users from whom on the share caught at FALSE_ALARMS is given: with fewer it hangs on four of them."""
_FLOOR = 0.01  # the similarity that counts as one unit of evidence, as in neighbourhood.py
_BATCH = 256


@dataclass(frozen=True)
class Membership:
    """What the attack came to. 95 % bounds, one-sided, by the bootstrap over users."""

    users: int
    auc: Interval  # the chance that a member scores above another event; .5: guessing
    advantage: Interval  # true less false positive rate, its threshold chosen on other users; 0: guessing
    caught: Interval | None  # true positive rate where FALSE_ALARMS are false; None: too few users
    control: Interval  # AUC against neighbours that learnt from none of the events asked

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        intervals = {name: each and Interval(**each) for name, each in value.items() if name != "users"}
        return cls(users=value["users"], **intervals)


@dataclass(frozen=True)
class Suspects:
    """C users, with an event that was learnt from and one that was not; one target each."""

    members: Cases
    others: Cases
    learnt: Histories  # whose first `train_end` events of a user are those learnt from
    counts: np.ndarray  # (N,) events learnt from, of each item

    @classmethod
    def of(cls, dataset: Dataset, learnt_until: int | None = None) -> Self:
        """Of a model trained on the events before `learnt_until` (seconds UTC), or on the dataset's training part.

        Only items that somebody else took in the training are asked about. Of more than MOST_USERS users evenly spaced
        ones are taken.
        """
        histories = dataset.histories if learnt_until is None else _cut(dataset.histories, learnt_until)
        ends, lengths = histories.train_end, np.diff(histories.offsets)
        users = np.flatnonzero((ends > 1) & (lengths > ends))
        users = users[np.linspace(0, len(users) - 1, min(MOST_USERS, len(users))).astype(np.int64)]
        counts = histories.training_counts(dataset.catalog.items)
        found = [
            (member, other)
            for user in users.tolist()
            if (member := _asked(dataset, histories, user, int(ends[user]) - 1, counts > 1))
            and (other := _asked(dataset, histories, user, int(ends[user]), counts > 0))
        ]
        members, others = ([pair[side] for pair in found] for side in (0, 1))
        return cls(_cases(dataset, members), _cases(dataset, others), histories, counts)

    def popularity(self) -> np.ndarray:
        """(2, C) log(1 + n): n training events of each target without the one that is asked about."""
        members, others = (self.counts[_targets(cases) - 1] for cases in (self.members, self.others))
        known: np.ndarray = np.log(np.stack([members, others + 1]))
        return known

    @cached_property
    def by_neighbours(self) -> np.ndarray:
        """(2, C) log of the evidence that the history's items give for the target, by the other users alone.

        The mean over the items i of the history of c_ij / sqrt(n_i n_j), as in neighbourhood.py: c_ij users have both.
        The user who is asked about is taken out of both numbers of the target. Not the sum, for the other event comes
        after a longer history.
        """
        matrix = _owners(self.learnt, len(self.counts))
        buyers = np.asarray(matrix.sum(axis=0)).ravel()
        return np.stack([_heard(matrix, buyers, cases) for cases in (self.members, self.others)])


def attack(model: Recommender, suspects: Suspects) -> Membership | None:
    """The attack on a model of the whole catalog. None where fewer than LEAST_USERS users give two sound answers."""
    said = np.stack([log_probabilities(model, cases) for cases in (suspects.members, suspects.others)])
    popular, control = suspects.popularity(), suspects.by_neighbours
    sound = np.isfinite(said).all(axis=0)
    if sound.sum() < LEAST_USERS:
        return None
    members, others = unexplained(said[:, sound], popular[:, sound])
    return Membership(
        users=int(sound.sum()),
        auc=auc(members, others),
        advantage=advantage(members, others),
        caught=caught(members, others) if len(members) >= LEAST_ALARMED else None,
        control=auc(*unexplained(control[:, sound], popular[:, sound])),
    )


def log_probabilities(model: Recommender, cases: Cases) -> np.ndarray:
    """(C,) log softmax of the scores at each case's target, in nats, over what may be recommended; NaN without one."""
    size, exclusions = max(1, min(_BATCH, BATCH_SCORES // model.items)), cases.exclusions()
    values = [np.empty(0)]
    for start in range(0, len(cases), size):
        some = slice(start, start + size)
        scores = model.scores(cases.histories[some])
        for row, codes in zip(scores, exclusions[some], strict=True):
            row[codes - 1] = -np.inf
        values.append(-cross_entropy(scores, cases.targets[some]))
    return np.concatenate(values)


def unexplained(said: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(2, C): what is left of `said` (2, C) after a line through `known` (2, C), by least squares over both rows."""
    said, known = said - said.mean(), known - known.mean()
    spread = float((known**2).sum())
    left: np.ndarray = said - known * ((said * known).sum() / spread if spread else 0.0)
    return left


def auc(members: np.ndarray, others: np.ndarray) -> Interval:
    """P(member > other) + P(equal) / 2 over all pairs of the users' scores (C,) and (C,) (Mann and Whitney 1947).

    The bounds draw users, both scores together, by each user's own share in it (DeLong et al. 1988; Obuchowski 1997).
    """
    above = ranks_among(members, others)  # (C,) share of the others below each member
    below = 1 - ranks_among(others, members)  # (C,) share of the members above each other
    return paired_difference(above + below, np.full(len(members), above.mean()))


def advantage(members: np.ndarray, others: np.ndarray) -> Interval:
    """True less false positive rate (Yeom et al. 2018, definition 4) at the best threshold of the other half of the users.

    The largest difference on the same users would be above 0 for a model of pure noise.
    """
    half = np.arange(len(members)) % 2 == 0
    hits = np.empty((2, len(members)))
    for mine in (half, ~half):
        threshold = _best_threshold(members[~mine], others[~mine])
        hits[:, mine] = members[mine] > threshold, others[mine] > threshold
    return paired_difference(hits[0], hits[1])


def caught(members: np.ndarray, others: np.ndarray, seed: int = 0) -> Interval:
    """The share of members above all but FALSE_ALARMS of the others (Carlini et al. 2022, section III).

    The threshold is drawn anew with the users.
    """
    rng, users = np.random.default_rng(seed), len(members)
    drawn = [
        share_caught(members[rows], others[rows]) for rows in (rng.integers(0, users, users) for _ in range(RESAMPLES))
    ]
    low, high = np.quantile(drawn, [1 - CONFIDENCE, CONFIDENCE])
    return Interval(share_caught(members, others), float(low), float(high))


def share_caught(members: np.ndarray, others: np.ndarray) -> float:
    """The share of `members` above all but FALSE_ALARMS of the `others`, as it is found, without bounds."""
    allowed = int(FALSE_ALARMS * len(others))
    return float((members > np.partition(others, -allowed - 1)[-allowed - 1]).mean())


def ranks_among(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(C,): the share of `among` below each score, ties by half."""
    ordered = np.sort(among)
    below, upto = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    ranks: np.ndarray = (below + upto) / 2 / len(ordered)
    return ranks


def _best_threshold(members: np.ndarray, others: np.ndarray) -> float:
    """Above it there are most members for the others; half-way to the next score."""
    scores = np.concatenate([members, others])
    order = np.argsort(-scores, kind="stable")
    lead = np.cumsum(np.where(order < len(members), 1, -1))
    best = int(lead.argmax())
    return float(np.append(scores[order], -np.inf)[best : best + 2].mean())


@dataclass(frozen=True)
class _Event:
    """An item that a user took after the first `start` events."""

    user: int
    start: int
    code: int


def _cases(dataset: Dataset, events: list[_Event]) -> Cases:
    return Cases(
        np.array([event.user for event in events], np.int64),
        [dataset.histories.until(event.user, event.start) for event in events],
        [np.array([event.code], np.int32) for event in events],
        dataset.repeats == "exclude",
    )


def _asked(dataset: Dataset, histories: Histories, user: int, event: int, known: np.ndarray) -> _Event | None:
    """The first item that is `known` (N,) of the purchase that holds a user's `event`; None without one.

    What was bought at one moment has no order, and its later items are easier to guess: only a purchase's first is asked.
    """
    base, end = int(histories.offsets[user]), int(histories.offsets[user + 1])
    start, stop = event, event + 1
    if dataset.has_baskets:
        times = histories.times[base:end]
        start, stop = (int(np.searchsorted(times, times[event], side=side)) for side in ("left", "right"))
    codes = histories.items[base + start : base + stop]
    fit = codes[known[codes - 1]]
    return _Event(user, start, int(fit[0])) if start > 0 and len(fit) else None


def _cut(histories: Histories, until: int) -> Histories:
    """The histories with a training part that ends before `until` (seconds UTC)."""
    running = np.concatenate([[0], np.cumsum(histories.times < until)])
    before = running[histories.offsets[1:]] - running[histories.offsets[:-1]]
    return replace(histories, train_end=np.minimum(histories.train_end, before).astype(np.int32))


def _targets(cases: Cases) -> np.ndarray:
    return np.array([codes[0] for codes in cases.targets], np.int64)


def _owners(histories: Histories, items: int) -> csr_array:
    """(U, N) float32: 1 where a user has an item in the part that was learnt from."""
    lengths = np.diff(histories.offsets)
    users = np.repeat(np.arange(histories.users), lengths)
    learnt = np.arange(len(users)) - histories.offsets[users] < histories.train_end[users]
    owners, columns = np.divmod(np.unique(users[learnt] * items + histories.items[learnt] - 1), items)
    return csr_array((np.ones(len(owners), np.float32), (owners, columns)), shape=(histories.users, items))


def _heard(matrix: csr_array, buyers: np.ndarray, cases: Cases) -> np.ndarray:
    """(C,): log(1 + s / floor) of the evidence s for each target, its user left out."""
    targets, by_item = _targets(cases) - 1, matrix.T.tocsr()
    size = max(1, min(_BATCH, BATCH_SCORES // len(buyers)))
    values = np.empty(len(targets))
    for start in range(0, len(targets), size):
        some = range(len(targets))[start : start + size]
        both = (by_item[targets[start : start + size]] @ matrix).toarray()  # (B, N) users with the target and the item
        for row, case in enumerate(some):
            items, target = np.unique(cases.histories[case]) - 1, targets[case]
            own = float(matrix[cases.users[case], target])
            others = np.maximum(both[row, items] - own, 0)
            evidence = others / np.sqrt(np.maximum(buyers[items], 1) * max(buyers[target] - own, 1))
            values[case] = np.log1p(evidence.mean() / _FLOOR)
    return values
