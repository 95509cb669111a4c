"""Decides whether a model may replace the champion. Pure: reports in, verdict out.

Two kinds of criteria. A proof must be shown: it passes when its bound clears the margin, fails when the other
bound does not reach it, and is unproven between. A guard must not be broken: it fails when the point estimate
does not clear the margin. Bounds are one-sided, 95 %, by the paired bootstrap over users.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recsys.config import GateConfig, LimitsConfig
from recsys.evaluate import ModelReport
from recsys.membership import LEAST_USERS
from recsys.slices import MIN_USERS, SLICES, SliceTest, compare, slices_of
from recsys.small_cells import FEW, FEWEST, told
from recsys.statistics import Interval, paired_difference, paired_ratio
from recsys.verdict import Criterion, Kind, Margin, Outcome, Verdict, decide
from recsys.wording import plain

__all__ = ["METRIC", "Criterion", "Evidence", "Verdict", "judge", "judge_teacher"]

METRIC = "ndcg_at_10"
"""The metric every comparison of quality is made in."""
_MB = 1e6
_SUDDEN = 2  # times the champion's exposure of an item from which on its rise counts

_STUDENT_ADVICE: Mapping[str, str] = {
    "finite": "A model gave something that is not a number; look at its curves and train it anew.",
    "comparable": "Evaluate all models again on tonight's dataset.",
    "teacher_kept": "Let the student follow its teacher longer: search.trials, search.epochs, search.widths.",
    "float_student": "Compress less: compress.keep_ffn, compress.table_bits, compress.recovery_epochs.",
    "most_popular": "The model has learnt nothing personal; look at the events and at the teacher's report.",
    "neighbours": "Train longer or refresh the teacher; the shop may be too small for more than neighbours.",
    "champion": "The champion stays; look at what changed in the data, or search more (search.trials).",
    **{
        f"slice_{name}": "A group of users pays for the mean; see it in the report, and search more." for name in SLICES
    },
    "unseen_items": "Items get their first row from their text: give them titles, or search more (search.trials).",
    "size_ratio": "Try smaller search.widths, or 4 bits in compress.table_bits.",
    "size_mb": "Try smaller search.widths, or 4 bits in compress.table_bits.",
    "latency": "Try smaller search.widths or data.history_length, or a larger limits.latency_ms.",
    "coverage": "The student shows everybody the same; search more, or keep more soft labels (labels.top_k).",
    "popularity": "The student leans on popular items; search more, or keep more soft labels (labels.top_k).",
    "exposure": "Look at who took that item lately: a campaign is approved by hand, made-up users are taken out of the events.",
    "membership": "The student knows its events by heart: fewer search.epochs, larger search.dropouts, smaller search.widths.",
}
_TEACHER_ADVICE: Mapping[str, str] = {
    "finite": _STUDENT_ADVICE["finite"],
    "comparable": _STUDENT_ADVICE["comparable"],
    "most_popular": "The teacher has learnt nothing personal; look at the events, then at teacher.epochs.",
    "neighbours": "Train a longer or wider teacher (teacher.epochs, teacher.width), or with more dropout.",
    "previous": "The teacher before stays; look at what changed in the data.",
}


_TITLES: Mapping[str, str] = {
    "float_student": "its float student",
    "most_popular": "most-popular",
    "neighbours": "the neighbours",
    "champion": "the champion",
    "previous": "the teacher before",
}


@dataclass(frozen=True)
class Evidence:
    """All that a student is judged on: reports on the same users of one dataset, and one measurement."""

    artifact: ModelReport
    student: ModelReport  # the float student the artifact was compressed from
    teacher: ModelReport
    most_popular: ModelReport
    neighbours: ModelReport
    champion: ModelReport | None  # None on the first night
    latency_p99_ms: float
    item_ids: Sequence[str] = ()  # of the catalog, to name an item by

    @property
    def reports(self) -> list[ModelReport]:
        """All that are compared."""
        always = [self.artifact, self.student, self.teacher, self.most_popular, self.neighbours]
        return always if self.champion is None else [*always, self.champion]


def judge(evidence: Evidence, gate: GateConfig, limits: LimitsConfig) -> Verdict:
    """The verdict on an artifact. Without sound and sufficient evidence only the conditions are looked at."""
    criteria = _conditions(evidence.reports, gate.min_users, {"latency": evidence.latency_p99_ms})
    if all(condition.outcome == "pass" for condition in criteria):
        criteria += _quality(evidence, gate, "proof" if limits.strict else "guard")
        criteria += _unseen_items(evidence.artifact, evidence.teacher, gate.unseen_retention)
        criteria += _costs(evidence, limits) + _breadth(evidence.artifact, evidence.teacher, limits)
        if evidence.champion is not None:
            criteria.append(_exposure(evidence.artifact, evidence.champion, limits.exposure_rise, evidence.item_ids))
        criteria += _membership(evidence.artifact, limits)
    return decide(criteria, _STUDENT_ADVICE)


def judge_teacher(
    teacher: ModelReport,
    most_popular: ModelReport,
    neighbours: ModelReport,
    previous: ModelReport | None,
    gate: GateConfig,
) -> Verdict:
    """The verdict on a teacher: above both baselines, and not worse than the teacher before it."""
    reports = [teacher, most_popular, neighbours, *([] if previous is None else [previous])]
    criteria = _conditions(reports, gate.min_users, {})
    if all(condition.outcome == "pass" for condition in criteria):
        criteria.append(_above("most_popular", "proof", teacher, most_popular))
        criteria.append(_above("neighbours", "guard", teacher, neighbours))
        if previous is not None:
            criteria.append(_change("previous", "guard", teacher, previous, gate.champion_loss))
    return decide(criteria, _TEACHER_ADVICE)


def _conditions(reports: Sequence[ModelReport], min_users: int, measurements: Mapping[str, float]) -> list[Criterion]:
    """What must hold before any number may be compared."""
    candidate, users = reports[0], len(reports[0].users)
    broken = [f"{name} of {report.model}" for report in reports for name in _not_finite(report)]
    broken += [f"{name} of {candidate.model}" for name, value in measurements.items() if not np.isfinite(value)]
    strangers = [reason for other in reports[1:] for reason in _differences(candidate, other)]
    min_users = max(min_users, FEWEST)  # of fewer no figure may be shown, and so none decides
    enough = users >= min_users
    return [
        Criterion.condition(
            "finite", [f"{name} is missing or not finite" for name in broken], "all numbers are finite"
        ),
        Criterion.condition("comparable", strangers, "the same as-of, users and catalog for all models"),
        Criterion(
            name="test_users",
            kind="condition",
            value=users if users >= FEWEST else None,
            threshold=min_users,
            low=None,
            high=None,
            outcome="pass" if enough else "unproven",
            proven=enough,
            sentence=f"{f'{users} test users' if users >= FEWEST else FEW}, at least {min_users} asked",
        ),
    ]


def _not_finite(report: ModelReport) -> list[str]:
    """Names of the numbers of a report that are missing or not finite."""
    arrays = {**report.metrics, "history_lengths": report.history_lengths, "tail_share": report.tail_share}
    bad = [] if METRIC in report.metrics else [METRIC]
    bad += [
        name for name, values in arrays.items() if not np.isfinite(values).all() or len(values) != len(report.users)
    ]
    scalars = {"coverage_at_10": report.coverage_at_10, "popularity_at_10": report.popularity_at_10}
    return bad + [name for name, value in scalars.items() if not np.isfinite(value)]


def _differences(first: ModelReport, other: ModelReport) -> list[str]:
    """Why two reports may not be compared."""
    pair = f"{first.model} and {other.model}"
    reasons = []
    if first.as_of != other.as_of:
        reasons.append(f"{pair} have different as-of times ({first.as_of} and {other.as_of})")
    if first.catalog_items != other.catalog_items:
        reasons.append(f"{pair} have different catalogs ({first.catalog_items} and {other.catalog_items} items)")
    if not np.array_equal(first.users, other.users):
        reasons.append(f"{pair} have different test users ({len(first.users)} and {len(other.users)})")
    return reasons


def _quality(evidence: Evidence, gate: GateConfig, guard: Kind) -> list[Criterion]:
    """The criteria estimated from the users' NDCG@10; `guard` is "proof" where the gate is strict."""
    artifact = evidence.artifact
    criteria = [
        _kept(artifact, evidence.teacher, gate.teacher_retention),
        _change("float_student", "proof", artifact, evidence.student, gate.quantization_loss),
        _above("most_popular", "proof", artifact, evidence.most_popular),
        _change("neighbours", guard, artifact, evidence.neighbours, gate.neighbours_loss),
    ]
    if evidence.champion is not None:
        criteria.append(_change("champion", guard, artifact, evidence.champion, gate.champion_loss))
    peer, name = (evidence.champion, "champion") if evidence.champion is not None else (evidence.teacher, "teacher")
    slices = slices_of(artifact.history_lengths, artifact.tail_share)
    tests = compare(slices, artifact.metrics[METRIC], peer.metrics[METRIC], gate.slice_loss)
    return criteria + [_slice(test, guard, name, gate.slice_loss) for test in tests]


def _kept(artifact: ModelReport, teacher: ModelReport, asked: float) -> Criterion:
    kept = _share(artifact.metrics[METRIC], teacher.metrics[METRIC])
    said = f"keeps {_percent(kept.value)} of the teacher's NDCG@10"
    return _estimated("teacher_kept", "proof", kept, Margin(asked), (said, _percent))


def _share(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """mean(ours) / mean(theirs) over the same users."""
    change = paired_ratio(ours, theirs)
    return Interval(1 + change.value, 1 + change.low, 1 + change.high)


def _change(name: str, kind: Kind, model: ModelReport, peer: ModelReport, loss: float) -> Criterion:
    change = paired_ratio(model.metrics[METRIC], peer.metrics[METRIC])
    said = f"has {_signed(change.value)} NDCG@10 against {_TITLES[name]}"
    return _estimated(name, kind, change, Margin(-loss), (said, _signed))


def _above(name: str, kind: Kind, model: ModelReport, baseline: ModelReport) -> Criterion:
    ours, theirs = model.metrics[METRIC], baseline.metrics[METRIC]
    said = f"has NDCG@10 {ours.mean():.4f} against {theirs.mean():.4f} of {_TITLES[name]}"
    margin = Margin(0.0, strictly=True)
    return _estimated(name, kind, paired_difference(ours, theirs), margin, (said, lambda value: f"{value:+.4f}"))


def _estimated(
    name: str, kind: Kind, estimate: Interval, margin: Margin, wording: tuple[str, Callable[[float], str]]
) -> Criterion:
    """A criterion on an estimate; `wording` is what is said of its value and how its bounds are written."""
    said, written = wording
    outcome = margin.outcome(kind, estimate)
    bound = f"at most {written(estimate.high)}" if outcome == "fail" else f"at least {written(estimate.low)}"
    asked = "more than 0" if margin.strictly else f"at least {written(margin.threshold)}"
    return Criterion(
        name=name,
        kind=kind,
        value=estimate.value,
        threshold=margin.threshold,
        low=estimate.low,
        high=estimate.high,
        outcome=outcome,
        proven=margin.cleared_by(estimate.low),
        sentence=f"{said}; {bound} with 95 % confidence; {asked} asked",
    )


def _slice(test: SliceTest, kind: Kind, peer: str, loss: float) -> Criterion:
    """A guard breaks when the loss of the slice is proven; a proof must also show that there is none."""
    margin = Margin(-loss)
    outcome: Outcome = "pass"
    if test.worse:
        outcome = "fail"
    elif kind == "proof" and test.tested and not margin.cleared_by(test.change.low):
        outcome = "unproven"
    found = "proven worse than" if test.worse else "not proven worse than"
    if not test.tested:
        found = f"too few to be tested ({MIN_USERS} asked) for"
    judged = Criterion(
        name=f"slice_{test.slice.name}",
        kind=kind,
        value=test.change.value,
        threshold=-loss,
        low=test.change.low,
        high=test.change.high,
        outcome=outcome,
        proven=test.tested and margin.cleared_by(test.change.low),
        sentence=f"{test.slice.title}, {test.users} users: "
        f"{_signed(test.change.value)} NDCG@10 against the {peer}, "
        f"{found} {_signed(-loss)}",
    )
    if not test.withheld:
        return judged
    who = FEW if test.users < FEWEST else f"withheld, or they would tell of a group of {FEW}"
    said = f"{test.slice.title}, {who}: {found} {_signed(-loss)} NDCG@10 against the {peer}"
    return replace(judged, value=None, low=None, high=None, sentence=said)


def _unseen_items(artifact: ModelReport, teacher: ModelReport, asked: float) -> list[Criterion]:
    """Whether users who went on to items without training events are served as by the teacher, where that is asked."""
    users = np.isfinite(artifact.unseen_hit_at_10) & np.isfinite(teacher.unseen_hit_at_10)
    count = int(users.sum())
    if not asked:
        return []
    if count < MIN_USERS:
        said = f"{told(count)} took items without training events, too few to be compared ({MIN_USERS} asked)"
        few = Criterion.fact("unseen_items", count, MIN_USERS, True, said)
        return [replace(few, value=None if 0 < count < FEWEST else count, proven=False)]
    kept = _share(artifact.unseen_hit_at_10[users], teacher.unseen_hit_at_10[users])
    said = f"keeps {_percent(kept.value)} of the teacher's HR@10 on items without training events, of {count} users"
    return [_estimated("unseen_items", "guard", kept, Margin(asked), (said, _percent))]


def _costs(evidence: Evidence, limits: LimitsConfig) -> list[Criterion]:
    """What serving the artifact takes. Plain measurements, nothing is estimated, so strict changes nothing."""
    size_mb = evidence.artifact.bytes / _MB
    allowed_mb = limits.size_ratio * evidence.teacher.bytes / _MB
    return [
        Criterion.fact(
            name="size_ratio",
            value=evidence.artifact.bytes / evidence.teacher.bytes,
            threshold=limits.size_ratio,
            passed=evidence.artifact.bytes <= limits.size_ratio * evidence.teacher.bytes,
            sentence=f"takes {size_mb:.2f} MB, at most {allowed_mb:.2f} MB asked "
            f"({_percent(limits.size_ratio)} of the teacher's)",
        ),
        Criterion.fact(
            name="size_mb",
            value=size_mb,
            threshold=limits.size_mb,
            passed=size_mb <= limits.size_mb,
            sentence=f"takes {size_mb:.2f} MB, at most {limits.size_mb:g} MB asked",
        ),
        Criterion.fact(
            name="latency",
            value=evidence.latency_p99_ms,
            threshold=limits.latency_ms,
            passed=evidence.latency_p99_ms <= limits.latency_ms,
            sentence=f"answers 99 % of requests in {evidence.latency_p99_ms:.2f} ms, "
            f"at most {limits.latency_ms:g} ms asked",
        ),
    ]


def _breadth(artifact: ModelReport, teacher: ModelReport, limits: LimitsConfig) -> list[Criterion]:
    """Whether the artifact shows as much of the catalog as its teacher. Plain measurements too."""
    coverage = limits.coverage_ratio * teacher.coverage_at_10
    popularity = limits.popularity_ratio * teacher.popularity_at_10
    return [
        Criterion.fact(
            name="coverage",
            value=artifact.coverage_at_10,
            threshold=coverage,
            passed=artifact.coverage_at_10 >= coverage,
            sentence=f"shows {_percent(artifact.coverage_at_10)} of the catalog in somebody's first ten, "
            f"at least {_percent(coverage)} asked ({limits.coverage_ratio:g} of the teacher's)",
        ),
        Criterion.fact(
            name="popularity",
            value=artifact.popularity_at_10,
            threshold=popularity,
            passed=artifact.popularity_at_10 <= popularity,
            sentence=f"recommends items {artifact.popularity_at_10:.1f} times as popular as the average item, "
            f"at most {popularity:.1f} asked ({limits.popularity_ratio:g} times the teacher's)",
        ),
    ]


def _exposure(artifact: ModelReport, champion: ModelReport, most: float, item_ids: Sequence[str]) -> Criterion:
    """Whether one item suddenly stands in everybody's list: what made-up users who push it would come to.

    Of a small catalog every item is shown to many, and its share moves by itself: only what more than doubles counts.
    """
    ours, theirs = artifact.exposure_at_10(), champion.exposure_at_10()
    rises = np.where(ours > _SUDDEN * theirs, ours - theirs, 0.0)
    place = int(np.argmax(rises))
    item = plain(item_ids[place]) if item_ids else f"of code {place + 1}"
    rise = float(rises[place])
    said = (
        f"shows the item {item} to {_percent(ours[place])} of the users among their first ten, "
        f"the champion to {_percent(theirs[place])}"
        if rise
        else "shows no item to twice as many users as the champion"
    )
    few = 0 < round(rise * len(artifact.users)) < FEWEST
    return Criterion.fact(
        name="exposure",
        value=None if few else rise,
        threshold=most,
        passed=rise <= most,
        sentence=f"{f'shows an item to {FEW} more' if few else said}; at most {_percent(most)} of the users more asked",
    )


def _membership(artifact: ModelReport, limits: LimitsConfig) -> list[Criterion]:
    """Whether an attacker tells the events that were learnt from others better than is tolerated, where that is asked."""
    found, most = artifact.membership, limits.membership_auc
    if most == 1:
        return []
    if found is None:
        said = f"too few users have an event learnt from and one not, {LEAST_USERS} asked: membership is not measured"
        return [replace(Criterion.fact("membership", 0, LEAST_USERS, True, said), proven=False)]
    # A margin is cleared from above, and here less is better.
    margin, turned = Margin(-most), Interval(-found.auc.value, -found.auc.high, -found.auc.low)
    kind: Kind = "proof" if limits.strict else "guard"
    return [
        Criterion(
            name="membership",
            kind=kind,
            value=found.auc.value,
            threshold=most,
            low=found.auc.low,
            high=found.auc.high,
            outcome=margin.outcome(kind, turned),
            proven=margin.cleared_by(turned.low),
            sentence=f"tells events it learnt from with an AUC of {found.auc.value:.3f}, a model that never learnt from "
            f"them with {found.control.value:.3f}; at most {found.auc.high:.3f} with 95 % confidence; "
            f"at most {most:.3f} asked",
        )
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(change: float) -> str:
    return f"{100 * change:+.1f} %"
