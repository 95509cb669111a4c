"""Makes a student smaller: prunes, quantizes and exports every point of a grid, and chooses one of them.

Every point is judged as it would be served, by the runtime on its exported files, on the validation users. A
pruned student is trained a little more to recover; so is an unpruned one, the control, because those epochs
alone can gain more than pruning loses and would pass for a free cut. Where rounding to some number of bits loses too
much of every student of the grid, the best of them is trained a little more with rounded weights. Formulas and measurements: docs/compression.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from recsys.config import CompressConfig
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.fleet import Fleet, threads_each
from recsys.graph import Bits
from recsys.histories import Cases
from recsys.prune import importance, pruned
from recsys.recovery import Crew, Recovered, Recoverer, Recovery, Retrainer, retrained
from recsys.runtime import Runtime
from recsys.score_rounding import score_rounded
from recsys.sequence_model import Scorer, ndcg_of
from recsys.statistics import CONFIDENCE, Interval, paired_ratio
from recsys.student import Student
from recsys.training import never
from recsys.wording import percent

USED = 0.5
"""Share of the loss allowed that a point may use on validation. The chosen point is the luckiest of several there, and
the gate asks for its proof on other users: what is left is for both."""


SIDE_BY_SIDE = 500_000
"""Training positions of all recoveries together from which on workers are started for them: it takes them seconds."""


@dataclass(frozen=True)
class Cut:
    """What is done to a student before its table is rounded."""

    keep_ffn: float  # share of the feed-forward units kept
    keep_heads: float  # share of the attention heads kept
    recovers: bool  # whether it is trained a little more, after pruning or, where nothing goes, as the control
    keep_blocks: float = 1.0  # share of the blocks kept

    @property
    def prunes(self) -> bool:
        """Whether anything goes."""
        return min(self.keep_ffn, self.keep_heads, self.keep_blocks) < 1


@dataclass(frozen=True)
class Point:
    """One way to compress, and what came of it on the validation users."""

    keep_ffn: float  # share of the feed-forward units kept
    table_bits: Bits
    recovery: Recovered  # of soft and hard labels the better on validation; where all is kept, as the control
    bytes: int  # of model.onnx
    ndcg: float  # mean NDCG@10 by the runtime
    change: Interval  # of it relative to the float student
    chosen: bool
    reason: str  # why it was chosen, or why not
    keep_neighbours: float = 1.0  # share of the student's neighbours kept of each item, the nearest
    keep_heads: float = 1.0  # share of the attention heads kept
    keep_blocks: float = 1.0  # share of the blocks kept


@dataclass(frozen=True)
class Compression:
    """Every point in the order tried, the chosen one, and its student, pruned and recovered, not yet rounded by export."""

    points: tuple[Point, ...]
    chosen: Point
    student: Student
    tried: int  # students of the grid and those trained with rounded weights; fewer than asked when time was up
    asked: int


@dataclass(frozen=True)
class _Candidate:
    """A student before quantization, or as it is rounded."""

    cut: Cut
    recovery: Recovered
    student: Student


@dataclass(frozen=True)
class _Tried:
    """A point, and what it was made from."""

    place: int  # of the candidate: in the grid, or behind it
    candidate: _Candidate
    point: Point


def _ignore(point: Point) -> None:
    """Do nothing with a point."""


def compress(
    student: Student,
    publication: Publication,
    recovery: Recovery,
    config: CompressConfig,
    out: Path,
    on_point: Callable[[Point], None] = _ignore,
    enough: Callable[[], bool] = never,
    workers: int = 1,
) -> Compression:
    """Try the grid and write the artifact of the chosen point into the folder `out`.

    Chosen is the smallest point whose loss of NDCG@10 against the float student is, with 95 % confidence, below
    half of `config.max_loss` on validation users, or below all of it where none is below half; of equally small ones
    the better. Where there is none it is the student as it is, its item table in float. `on_point` hears of each point
    as it is judged, before anything is chosen. `enough` is asked before each student but the first whether to choose
    from those that there are. Above one, `workers` processes train students side by side and share torch's present
    threads where there is enough to train; what comes of it is the same to the bit, on one number of threads a training.
    """
    cuts, shares = grid(config, student.shape), neighbours_kept(config, publication)
    tried: list[_Tried] = []
    with ExitStack() as held:
        retrainer = Retrainer(recovery, config.recovery_epochs)
        much = sum(cut.recovers for cut in cuts) * retrainer.positions >= SIDE_BY_SIDE
        recover = Recoverer(recovery, student, _crew(retrainer, workers if much else 1, held))
        judge = _Judge(student, publication, recovery.validation)

        def try_out(place: int, candidate: _Candidate, bits: Bits) -> None:
            served = score_rounded(candidate.student, recovery.histories, bits)
            for share in shares:
                tried.append(_Tried(place, candidate, judge.point(replace(candidate, student=served), bits, share)))
                on_point(tried[-1].point)

        for place, candidate in _candidates(student, cuts, recover, enough):
            for bits in config.table_bits:
                try_out(place, candidate, bits)
        tried.sort(key=lambda one: one.place)  # those that end first come first, which is no order to choose by
        lost = too_rough([one.point for one in tried], config.max_loss) if config.recovery_epochs else []
        rough = [tried[at] for at in lost]
        orders = ((one.candidate.student, one.point.table_bits) for one in rough if not enough())
        for number, again in recover.rounded(orders):
            cut, bits = rough[number].candidate.cut, rough[number].point.table_bits
            try_out(len(cuts) + number, _Candidate(cut, "rounded", again), bits)
    tried.sort(key=lambda one: one.place)
    made = len({one.place for one in tried})
    allowed = margin([one.point.change.low for one in tried], config.max_loss)
    if choice([one.point for one in tried], allowed) is None:
        untouched = _Candidate(Cut(1.0, 1.0, False), "", student)
        tried.append(_Tried(len(tried), untouched, judge.point(untouched, 32, 1.0)))
        on_point(tried[-1].point)
    points = explained([one.point for one in tried], allowed)
    smallest, chosen = next((one.candidate, p) for one, p in zip(tried, points, strict=True) if p.chosen)
    served = score_rounded(smallest.student, recovery.histories, chosen.table_bits)
    export(served, fewer(publication, chosen.keep_neighbours), chosen.table_bits, out)
    return Compression(points, chosen, smallest.student, made, len(cuts) + len(lost))


def neighbours_kept(config: CompressConfig, publication: Publication) -> tuple[float, ...]:
    """The shares of the student's neighbours that are tried, if it has any."""
    return tuple(sorted(set(config.keep_neighbours), reverse=True)) if publication.opinion else (1.0,)


def _crew(retrainer: Retrainer, workers: int, held: ExitStack) -> Crew:
    """This process, or several; they end with `held`."""
    if workers == 1:
        return retrainer.alone
    fleet = held.enter_context(Fleet(retrained, retrainer, workers, threads_each(workers)))
    return lambda orders: fleet.run(orders, lambda place, told: None)


def margin(lows: Iterable[float], max_loss: float) -> float:
    """The loss that the chosen point may have: half of `max_loss`, or all of it where no point is within half.

    `lows` are the lower bounds of the points' changes. Few users prove little: a point without reserve is better than none.
    """
    return USED * max_loss if any(low > -USED * max_loss for low in lows) else max_loss


def too_rough(points: Sequence[Point], max_loss: float) -> list[int]:
    """For each number of bits below 32 in which no point is within the margin, the place of the best one in them.

    The best is whose student is the best in the most bits that were tried: how well few bits turn out is luck by half,
    and it will be rounded anew.
    Only of those smaller than the point that would be chosen now: training makes no file smaller. And only where the best
    one's mean is below the float student's: else the users are too few, not the bits, and training brings no more users.
    """
    allowed = margin([point.change.low for point in points], max_loss)
    chosen = choice(points, allowed)
    places = []
    for bits in dict.fromkeys(point.table_bits for point in points if point.table_bits < 32):
        rough = [place for place, point in enumerate(points) if point.table_bits == bits]
        smaller = [place for place in rough if chosen is None or points[place].bytes < points[chosen].bytes]
        if not smaller or any(_is_within(points[place], allowed) for place in rough):
            continue
        best = max(smaller, key=lambda place: (_least_rounded(points, points[place]), points[place].ndcg, -place))
        if points[best].change.value < 0:
            places.append(best)
    return places


def _least_rounded(points: Sequence[Point], point: Point) -> float:
    """NDCG@10 of the point's student, with as many neighbours, in the most bits that it was tried in."""

    def student(one: Point) -> tuple[object, ...]:
        return one.keep_ffn, one.keep_heads, one.keep_blocks, one.recovery, one.keep_neighbours

    return max((one.table_bits, one.ndcg) for one in points if student(one) == student(point))[1]


def choice(points: Sequence[Point], max_loss: float) -> int | None:
    """The place of the smallest point surely within `max_loss`, of equally small ones the better.

    Where there is none, that of the student as it is, in float; None when that is not among the points either.
    """
    within = [place for place, point in enumerate(points) if _is_within(point, max_loss)]
    if within:
        return min(within, key=lambda place: (points[place].bytes, -points[place].ndcg, place))
    return next((place for place, point in enumerate(points) if _is_untouched(point)), None)


def explained(points: Sequence[Point], max_loss: float) -> tuple[Point, ...]:
    """The points with one of them chosen, and the reason of each."""
    best = choice(points, max_loss)
    allowed, surely = percent(max_loss), percent(CONFIDENCE, digits=0)
    reasons = []
    for place, point in enumerate(points):
        if place == best and _is_within(point, max_loss):
            reasons.append(f"the smallest that loses less than {allowed} with {surely} confidence")
        elif place == best:
            reasons.append(f"the student as it is: nothing smaller surely loses less than {allowed}")
        elif _is_within(point, max_loss):
            reasons.append(f"surely loses less than {allowed}, but is larger or no better than the one chosen")
        else:
            reasons.append(f"may lose {percent(-point.change.low)}, {allowed} is allowed")
    return tuple(
        replace(point, chosen=place == best, reason=reason)
        for place, (point, reason) in enumerate(zip(points, reasons, strict=True))
    )


def _is_within(point: Point, max_loss: float) -> bool:
    return point.change.low > -max_loss


def _is_untouched(point: Point) -> bool:
    whole = point.keep_ffn == point.keep_heads == point.keep_blocks == point.keep_neighbours == 1
    return whole and not point.recovery and point.table_bits == 32


def fewer(publication: Publication, share: float) -> Publication:
    """The publication with the nearest of the student's neighbours, or none of them."""
    opinion = publication.opinion
    if opinion is None or share == 1:
        return publication
    if share == 0:
        return replace(publication, opinion=None)
    return replace(publication, opinion=replace(opinion, neighbourhood=opinion.neighbourhood.nearest(share)))


def grid(config: CompressConfig, shape: DecoderShape) -> list[Cut]:
    """The student as it is, the control, then pruned: to each share of units, then of heads beside the fewest units.

    Last, where there are several blocks, one block fewer, two fewer, down to one, beside the fewest units. Heads are
    pruned only where a block has more than one.
    """
    recovers = config.recovery_epochs > 0
    heads = set(config.keep_heads) if max(shape.heads) > 1 else {1.0}
    fewest, blocks = min(config.keep_ffn), len(shape.heads)
    shares = [(units, 1.0, 1.0) for units in sorted(set(config.keep_ffn), reverse=True)] if 1 in heads else []
    shares += [(fewest, share, 1.0) for share in sorted(heads - {1.0}, reverse=True)]
    shares += [(fewest, max(heads), left / blocks) for left in range(blocks - 1, 0, -1)]
    cuts = [Cut(units, some, recovers, left) for units, some, left in shares if (units, some, left) != (1, 1, 1)]
    control = [Cut(1.0, 1.0, True)] if cuts and recovers else []
    return [*([Cut(1.0, 1.0, False)] if (1, 1, 1) in shares else []), *control, *cuts]


def _candidates(
    student: Student, cuts: Sequence[Cut], recover: Recoverer, enough: Callable[[], bool]
) -> Iterator[tuple[int, _Candidate]]:
    """The students of the grid and their places in it, as they are ready: first those that do not recover."""
    recovery, scores = recover.recovery, None

    def cut_down(cuts: Sequence[tuple[int, Cut]]) -> Iterator[Student]:
        nonlocal scores
        for place, cut in cuts:
            if place and enough():
                return
            if not cut.prunes:
                yield student
                continue
            scores = scores or importance(student, recovery.histories, recovery.objective, recovery.seed)
            yield pruned(student, scores, cut.keep_ffn, cut.keep_heads, cut.keep_blocks)

    as_cut = [(place, cut) for place, cut in enumerate(cuts) if not cut.recovers]
    for (place, cut), smaller in zip(as_cut, cut_down(as_cut), strict=False):
        yield place, _Candidate(cut, "", smaller)
    recovering = [(place, cut) for place, cut in enumerate(cuts) if cut.recovers]
    for number, how, again in recover(cut_down(recovering), enough):
        place, cut = recovering[number]
        yield place, _Candidate(cut, how, again)


class _Judge:
    """Exports a candidate and compares what it recommends with the float student, user by user."""

    def __init__(self, student: Student, publication: Publication, cases: Cases) -> None:
        self.publication, self.cases = publication, cases
        self.student_ndcg = ndcg_of(Scorer(student, student.length, "student", opinion=publication.opinion), cases)

    def point(self, candidate: _Candidate, bits: Bits, neighbours: float) -> Point:
        """The candidate with its item table in `bits` bits and a share of the neighbours, not yet chosen or refused."""
        with TemporaryDirectory() as folder:
            manifest = export(candidate.student, fewer(self.publication, neighbours), bits, Path(folder))
            reached = ndcg_of(Runtime.open(Path(folder)), self.cases)
        change = paired_ratio(reached, self.student_ndcg)
        size, mean = manifest.model_bytes, float(reached.mean())
        cut, recovery = candidate.cut, candidate.recovery
        shares = neighbours, cut.keep_heads, cut.keep_blocks
        return Point(cut.keep_ffn, bits, recovery, size, mean, change, False, "", *shares)
