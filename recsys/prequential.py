"""Recommendations that were served, against what users did afterwards; and whether the champion has decayed.

First predict, then look (Dawid 1984: prequential): lists made as of a moment are scored by the events from that moment
on. Beside them stand most-popular and the neighbours, made from the events before the same moment, for the same users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.baselines import MostPopular, Neighbours
from recsys.config import MonitorConfig
from recsys.event_log import EventLog
from recsys.metrics import Hits, hit, ndcg
from recsys.recommender import History, Recommender
from recsys.small_cells import FEW, FEWEST
from recsys.split import DAY
from recsys.statistics import CONFIDENCE, RESAMPLES, Interval, paired_ratio, resampled_means

K = 10
"""Items of a list that are looked at."""

_BATCH = 256  # users
_SEEDS = (0, 1)  # of the two samples of users, which are drawn apart

Peer = Literal["most_popular", "neighbours"]
PEERS: tuple[Peer, ...] = ("most_popular", "neighbours")


@dataclass(frozen=True)
class ServedLists:
    """What a version recommended to S users, from their histories before `as_of`."""

    as_of: int  # seconds UTC
    version: int
    tokens: np.ndarray  # (S,) S32, each once
    item_ids: list[list[str]]  # best first, at most K each

    @classmethod
    def of(cls, as_of: int, version: int, rows: pa.Table) -> Self:
        """From (R,) rows of token, item_id and rank (from 1), in any order. Ranks beyond K are left out."""
        rows = rows.filter(pc.less_equal(rows["rank"], K)).sort_by([("token", "ascending"), ("rank", "ascending")])
        tokens = np.array(rows["token"].to_pylist(), "S32")
        distinct, first = np.unique(tokens, return_index=True)
        item_ids, ends = rows["item_id"].to_pylist(), [*first[1:], len(tokens)]
        lists = [item_ids[start:end] for start, end in zip(first, ends, strict=False)]
        return cls(as_of, version, distinct, lists)


@dataclass(frozen=True)
class Aftermath:
    """How C users who had been served behaved afterwards: each has at least one relevant event in the window."""

    version: int
    as_of: int  # seconds UTC: the lists know what came before, the window begins here
    until: int  # seconds UTC, exclusive: the window ends here
    served: int  # users who got a list
    unserved: int  # users with events in the window who had got none
    hits: Mapping[str, np.ndarray]  # (C,) 1.0 where one of ten items was taken, by "champion" and each peer
    ndcg: Mapping[str, np.ndarray]  # (C,) NDCG@10, by the same names

    @property
    def users(self) -> int:
        """C."""
        return len(self.hits["champion"])

    def hit_rate(self, model: str) -> float:
        """Share of the users who took one of the model's ten items; 0 without users."""
        return float(self.hits[model].mean()) if self.users else 0.0

    def against(self, peer: Peer) -> Interval:
        """The relative change of the champion's hit rate to a peer's, over the same users."""
        return paired_ratio(self.hits["champion"], self.hits[peer])


def look_back(lists: ServedLists, log: EventLog, repeats: Literal["exclude", "allow"], window_days: int) -> Aftermath:
    """Scores `lists` and both peers by the events of [lists.as_of, lists.as_of + window_days), as far as `log` goes.

    Relevant are the distinct items of the window, with `repeats: exclude` those new to the user; seen items are then kept
    out of the peers' lists as they are out of the model's. Raises ValueError when the log lacks repeats that count.
    """
    if repeats == "allow" and log.repeats == "exclude":
        raise ValueError("the log has left repeated items out, and they are relevant here")
    past = log.until(lists.as_of)
    until = min(log.as_of, lists.as_of + window_days * DAY)
    window = log.between(lists.as_of, until)
    targets = _targets(past, window, repeats)
    users = np.array(sorted(targets), np.int64)
    row_of = {token: row for row, token in enumerate(lists.tokens)}
    rows = np.array([row_of.get(token, -1) for token in window.tokens[users]], np.int64)
    asked, rows = users[rows >= 0], rows[rows >= 0]
    top = {"champion": _codes([lists.item_ids[row] for row in rows], log.item_ids)}
    top |= _peers(past, asked, repeats)
    wanted = [targets[int(user)] for user in asked]
    found = {name: Hits.of(codes, wanted) for name, codes in top.items()}
    return Aftermath(
        version=lists.version,
        as_of=lists.as_of,
        until=until,
        served=len(lists.tokens),
        unserved=len(users) - len(asked),
        hits={name: hit(hits.at_rank, K) for name, hits in found.items()},
        ndcg={name: ndcg(hits.at_rank, hits.targets, K) for name, hits in found.items()},
    )


def _targets(past: EventLog, window: EventLog, repeats: str) -> dict[int, np.ndarray]:
    """The distinct relevant codes of each user of the window who has any."""
    width = len(window.item_ids) + 1
    pairs = np.unique(window.users * width + window.codes)
    if repeats == "exclude":
        pairs = pairs[~np.isin(pairs, past.users * width + past.codes)]
    owners, starts = np.unique(pairs // width, return_index=True)
    parts = np.split((pairs % width).astype(np.int32), starts[1:])
    return {int(user): codes for user, codes in zip(owners, parts, strict=False)}


def _codes(item_ids: Sequence[Sequence[str]], known: pa.Array) -> np.ndarray:
    """(C, K) int32 codes, 0 for an item that has no event to this day and where a list is shorter."""
    table = np.zeros((len(item_ids), K), np.int32)
    flat = pa.array([item_id for items in item_ids for item_id in items], pa.string())
    codes = pc.fill_null(pc.index_in(flat, known), -1).to_numpy() + 1
    lengths = np.array([len(items) for items in item_ids], np.int64)
    rows = np.repeat(np.arange(len(item_ids)), lengths)
    places = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    table[rows, places] = codes
    return table


def _peers(past: EventLog, asked: np.ndarray, repeats: str) -> dict[str, np.ndarray]:
    """The lists (C, K) of both peers, from the past alone. A user unknown to it has no history."""
    if not len(past.item_ids):
        return {name: np.zeros((len(asked), K), np.int32) for name in PEERS}
    histories, items = (past.once() if repeats == "exclude" else past).histories(), len(past.item_ids)
    nothing = np.empty(0, np.int32)
    read = [
        histories.items[histories.offsets[user] : histories.offsets[user + 1]] if user < histories.users else nothing
        for user in asked
    ]
    models: dict[str, Recommender] = {
        "most_popular": MostPopular(histories.training_counts(items)),
        "neighbours": Neighbours(histories, items),
    }
    return {name: _top(model, read, repeats) for name, model in models.items()}


def _top(model: Recommender, histories: list[History], repeats: str) -> np.ndarray:
    table = np.zeros((len(histories), K), np.int32)
    for start in range(0, len(histories), _BATCH):
        some = histories[start : start + _BATCH]
        codes, _ = model.top(some, K, [np.unique(h) for h in some] if repeats == "exclude" else None)
        table[start : start + len(some), : codes.shape[1]] = codes
    return table


# --- decay --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtGate:
    """What the gate saw of the champion when it was judged: hits@10 of G test users, and the neighbours' on them."""

    champion: np.ndarray  # (G,)
    neighbours: np.ndarray  # (G,)


@dataclass(frozen=True)
class Decay:
    """The answer, the sentence that explains it, and what it rests on."""

    decayed: bool
    sentence: str
    change: Interval | None = None  # relative, of champion over neighbours, now against the gate


def decay_of(now: Aftermath, then: AtGate | None, config: MonitorConfig) -> Decay:
    """Whether the champion lost more than `config.decay` of its standing against the neighbours since the gate.

    Its standing is its hit rate over the neighbours', on the same users. What is tested is standing now / standing at
    the gate - 1; it has decayed when the upper one-sided 95 % bound lies below -`decay`. Users of today and users of the
    gate are drawn anew apart from each other, each with both models' hits: the bound carries the noise of both samples.
    A neighbour for comparison, because a season in which everybody is harder to please is no fault of the model.
    """
    needed = max(config.min_users, FEWEST)
    if now.users < needed:
        return Decay(
            False,
            f"{now.users if now.users >= FEWEST else FEW.removesuffix(' users')} of the users served have new events, {needed} are needed: nothing is concluded",
        )
    if then is None:
        return Decay(False, "what the gate measured is not in this store: nothing is concluded")
    rates = [float(np.mean(each)) for each in (then.champion, then.neighbours, now.hits["neighbours"])]
    if not all(rates):
        return Decay(False, "nobody was hit by one of those to compare with: nothing is concluded")
    change = _change(now, then)
    found = (
        f"the champion's hit rate over the neighbours' changed by {change.value:+.1%} since the gate "
        f"(95 % bounds {change.low:+.1%} to {change.high:+.1%})"
    )
    if change.high < -config.decay:
        return Decay(True, f"{found}: a loss of more than {config.decay:.0%} is proven", change)
    return Decay(False, f"{found}: a loss of more than {config.decay:.0%} is not proven", change)


def _change(now: Aftermath, then: AtGate) -> Interval:
    """Standing now over standing then, less 1. A draw without a divisor counts as a gain: it proves no decay."""
    pairs = [(now.hits["champion"], now.hits["neighbours"]), (then.champion, then.neighbours)]
    draws = []
    for (ours, theirs), seed in zip(pairs, _SEEDS, strict=True):
        values = np.stack([ours, theirs], axis=1)
        draws.append(np.concatenate([values.mean(axis=0)[None], *resampled_means(values, RESAMPLES, seed)]))
    (ours, theirs), (ours_then, theirs_then) = draws[0].T, draws[1].T
    divisor = theirs * ours_then
    sound = (divisor > 0) & (theirs_then > 0)
    changes = np.where(sound, ours * theirs_then / np.where(sound, divisor, 1) - 1, 1.0)
    low, high = np.quantile(changes[1:], [1 - CONFIDENCE, CONFIDENCE])
    return Interval(float(changes[0]), float(low), float(high))
