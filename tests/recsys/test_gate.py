"""The gate: every criterion can turn the verdict, nothing that is not a number gets through, better is never worse."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import GateConfig, LimitsConfig
from recsys.evaluate import ModelReport
from recsys.gate import Evidence, Verdict, judge, judge_teacher
from recsys.membership import Membership
from recsys.statistics import Interval

USERS = 400
GATE, LIMITS = GateConfig(), LimitsConfig()
QUALITY = np.random.default_rng(0).random(USERS)
FEW_HITS = (QUALITY > 0.9).astype(float)


def membership(auc: float) -> Membership:
    guessing = Interval(0.5, 0.46, 0.54)
    return Membership(USERS, Interval(auc, auc - 0.03, auc + 0.03), Interval(0.1, 0.05, 0.15), None, guessing)


def report(model: str, ndcg: np.ndarray, **changes) -> ModelReport:
    users = len(ndcg)
    plain = ModelReport(
        model=model,
        users=np.array([f"{user:032x}" for user in range(users)], "S32"),
        metrics={"ndcg_at_10": np.asarray(ndcg, np.float64)},
        cross_entropy=None,
        coverage_at_10=0.4,
        popularity_at_10=0.7,
        top=np.zeros((users, 20), np.int32),
        bytes=4_000_000,
        history_lengths=np.arange(users) % 40 + 1,
        tail_share=np.where(np.arange(users) % 4 == 0, 1.0, 0.0),
        unseen_hit_at_10=np.full(users, np.nan),
        as_of=1_700_000_000,
        catalog_items=500,
        membership=membership(0.6),
    )
    return replace(plain, **changes)


def evidence(ndcg: np.ndarray = QUALITY, **changes) -> Evidence:
    """A night on which everything is fine, but for the changes."""
    users = len(ndcg)
    fine = Evidence(
        artifact=report("artifact", ndcg, bytes=800_000),
        student=report("student", ndcg),
        teacher=report("teacher", ndcg),
        most_popular=report("most_popular", np.full(users, 0.1)),
        neighbours=report("neighbours", 0.9 * ndcg),
        champion=report("champion", 0.95 * ndcg),
        latency_p99_ms=2.0,
    )
    return replace(fine, **changes)


def criterion(verdict: Verdict, name: str):
    return next(row for row in verdict.criteria if row.name == name)


def outcomes(verdict: Verdict, outcome: str) -> list[str]:
    return [row.name for row in verdict.criteria if row.outcome == outcome]


def test_a_good_artifact_is_promoted_and_the_verdict_says_what_was_proven():
    verdict = judge(evidence(), GATE, LIMITS)
    assert verdict.decision == "PROMOTE"
    assert all(row.proven for row in verdict.criteria)
    assert "all of them proven" in verdict.sentence
    assert "keeps 100.0 % of the teacher's NDCG@10" in verdict.sentence


def test_the_criteria_are_those_of_the_design():
    assert [(row.name, row.kind) for row in judge(evidence(), GATE, LIMITS).criteria] == [
        ("finite", "condition"),
        ("comparable", "condition"),
        ("test_users", "condition"),
        ("teacher_kept", "proof"),
        ("float_student", "proof"),
        ("most_popular", "proof"),
        ("neighbours", "guard"),
        ("champion", "guard"),
        ("slice_cold", "guard"),
        ("slice_short", "guard"),
        ("slice_long", "guard"),
        ("slice_heavy", "guard"),
        ("slice_tail", "guard"),
        ("size_ratio", "guard"),
        ("size_mb", "guard"),
        ("latency", "guard"),
        ("coverage", "guard"),
        ("popularity", "guard"),
        ("exposure", "guard"),
        ("membership", "guard"),
    ]


def worse_than_its_student():
    return {"student": report("student", np.minimum(QUALITY * 1.05, 2))}


def pushed(share: float) -> ModelReport:
    """Item 7 comes into the lists of a share of the users."""
    fine = report("artifact", QUALITY, bytes=8)
    top = fine.top.copy()
    top[: round(share * len(top)), 9] = 7
    return replace(fine, top=top)


RED = {
    "teacher_kept": {"teacher": report("teacher", 1.2 * QUALITY)},
    "float_student": worse_than_its_student(),
    "most_popular": {"most_popular": report("most_popular", QUALITY + 0.1)},
    "neighbours": {"neighbours": report("neighbours", 1.06 * QUALITY)},
    "champion": {"champion": report("champion", 1.03 * QUALITY)},
    "size_ratio": {"artifact": report("artifact", QUALITY, bytes=1_000_001)},
    "size_mb": {
        "artifact": report("artifact", QUALITY, bytes=100_000_001),
        "teacher": report("teacher", QUALITY, bytes=10**9),
    },
    "latency": {"latency_p99_ms": 20.1},
    "coverage": {"artifact": report("artifact", QUALITY, bytes=8, coverage_at_10=0.19)},
    "popularity": {"artifact": report("artifact", QUALITY, bytes=8, popularity_at_10=0.88)},
    "exposure": {"artifact": pushed(0.11)},
    "membership": {"artifact": report("artifact", QUALITY, bytes=8, membership=membership(0.81))},
}


@pytest.mark.parametrize("name", RED)
def test_each_criterion_alone_can_reject(name):
    verdict = judge(evidence(**RED[name]), GATE, LIMITS)
    assert verdict.decision == "REJECT"
    assert outcomes(verdict, "fail") == [name]
    assert verdict.sentence.startswith(f"Rejected: {name}: ")
    assert verdict.advice


def test_the_margins_themselves_are_allowed():
    on_the_edge = evidence(
        artifact=report("artifact", QUALITY, bytes=1_000_000, coverage_at_10=0.2, popularity_at_10=0.875),
        latency_p99_ms=20.0,
    )
    assert judge(on_the_edge, GATE, LIMITS).decision == "PROMOTE"


def test_an_item_that_is_pushed_is_named_without_what_its_id_might_do_to_a_reader():
    ids = [f"item-{code}" for code in range(1, 101)]
    ids[6] = "<b>seven\x1b[31m"
    row = criterion(judge(evidence(artifact=pushed(0.5), item_ids=ids), GATE, LIMITS), "exposure")
    assert (row.value, row.outcome) == (pytest.approx(0.5), "fail")
    assert "seven" in row.sentence
    assert "\x1b" not in row.sentence
    shown = replace(pushed(0.3), model="champion", metrics=evidence().champion.metrics)
    grown = criterion(judge(evidence(artifact=pushed(0.5), champion=shown), GATE, LIMITS), "exposure")
    assert (grown.value, grown.outcome) == (0, "pass"), "less than doubled: of a small catalog that is chance"
    first_night = judge(evidence(artifact=pushed(0.5), champion=None), GATE, LIMITS)
    assert "exposure" not in {each.name for each in first_night.criteria}, "there is nothing to compare with"


def test_membership_is_a_guard_that_strict_makes_a_proof_and_one_turns_off():
    near = evidence(artifact=report("artifact", QUALITY, bytes=8, membership=membership(0.79)))
    row = criterion(judge(near, GATE, LIMITS), "membership")
    assert (row.outcome, row.proven, row.kind) == ("pass", False, "guard")
    assert row.sentence == (
        "tells events it learnt from with an AUC of 0.790, a model that never learnt from them with 0.500; "
        "at most 0.820 with 95 % confidence; at most 0.800 asked"
    )
    assert criterion(judge(near, GATE, LimitsConfig(strict=True)), "membership").outcome == "unproven"
    assert criterion(judge(near, GATE, LimitsConfig(membership_auc=0.83)), "membership").proven
    far = evidence(artifact=report("artifact", QUALITY, bytes=8, membership=membership(0.9)))
    assert criterion(judge(far, GATE, LimitsConfig(strict=True)), "membership").outcome == "fail"
    off = judge(far, GATE, LimitsConfig(membership_auc=1))
    assert off.decision == "PROMOTE"
    assert "membership" not in [row.name for row in off.criteria]


def test_membership_that_was_not_measured_is_not_taken_for_proven():
    verdict = judge(evidence(artifact=report("artifact", QUALITY, bytes=8, membership=None)), GATE, LIMITS)
    assert verdict.decision == "PROMOTE"
    assert "measured but not proven: membership" in verdict.sentence
    assert "membership is not measured" in criterion(verdict, "membership").sentence


def test_the_size_is_told_as_a_share_of_the_teachers():
    row = criterion(judge(evidence(artifact=report("artifact", QUALITY, bytes=800_000)), GATE, LIMITS), "size_ratio")
    assert (row.value, row.threshold) == (pytest.approx(0.2), LIMITS.size_ratio)


def test_sentences_are_for_people():
    noisy = evidence(teacher=report("teacher", QUALITY[::-1] * 1.02))
    row = criterion(judge(noisy, GATE, LIMITS), "teacher_kept")
    assert row.sentence == (
        f"keeps {100 * row.value:.1f} % of the teacher's NDCG@10; at least {100 * row.low:.1f} % with 95 % confidence; "
        "at least 90.0 % asked"
    )
    assert row.value == pytest.approx(QUALITY.mean() / (1.02 * QUALITY.mean()))


def test_an_unproven_proof_holds():
    teacher = report("teacher", np.roll(FEW_HITS, 7) * 1.05)
    verdict = judge(evidence(FEW_HITS, teacher=teacher, champion=None), GATE, LIMITS)
    row = criterion(verdict, "teacher_kept")
    assert row.low < 0.9 < row.value < row.high
    assert row.outcome == "unproven"
    assert not row.proven
    assert verdict.decision == "HOLD"
    assert "teacher_kept" in verdict.sentence
    assert "data.test_days" in verdict.advice


def test_a_proof_whose_value_misses_the_margin_still_holds_until_it_is_disproven():
    teacher = report("teacher", np.roll(FEW_HITS, 7) * 1.15)
    row = criterion(judge(evidence(FEW_HITS, teacher=teacher), GATE, LIMITS), "teacher_kept")
    assert row.value < 0.9 < row.high
    assert row.outcome == "unproven"


def test_equal_to_most_popular_is_disproven():
    verdict = judge(evidence(most_popular=report("most_popular", QUALITY)), GATE, LIMITS)
    assert criterion(verdict, "most_popular").outcome == "fail"


def test_a_guard_goes_by_its_value_and_says_that_it_is_not_proven():
    champion = report("champion", np.roll(FEW_HITS, 7) * 0.99)
    verdict = judge(evidence(FEW_HITS, champion=champion, most_popular=report("m", 0 * FEW_HITS)), GATE, LIMITS)
    row = criterion(verdict, "champion")
    assert (row.outcome, row.proven) == ("pass", False)
    assert verdict.decision == "PROMOTE"
    assert "measured but not proven: champion" in verdict.sentence


def test_a_strict_gate_wants_guards_proven():
    champion = report("champion", np.roll(FEW_HITS, 7) * 0.99)
    verdict = judge(
        evidence(FEW_HITS, champion=champion, most_popular=report("m", 0 * FEW_HITS)), GATE, LimitsConfig(strict=True)
    )
    assert criterion(verdict, "champion").outcome == "unproven"
    assert verdict.decision == "HOLD"


def test_a_strict_gate_promotes_what_is_proven():
    assert judge(evidence(), GATE, LimitsConfig(strict=True)).decision == "PROMOTE"


# Conditions


@pytest.mark.parametrize("users", [1, 12, 99])
def test_too_few_users_hold_whatever_the_numbers_say(users):
    for ndcg in (QUALITY[:users], 0 * QUALITY[:users]):
        verdict = judge(evidence(ndcg), GATE, LIMITS)
        assert verdict.decision == "HOLD"
        who = f"{users} test users" if users >= 10 else "fewer than 10 users"
        assert f"{who}, at least 100 asked" in verdict.sentence
        assert "Wait for more days, or widen data.test_days" in verdict.advice


def test_a_hundred_users_are_enough_to_be_judged():
    assert judge(evidence(QUALITY[:100]), GATE, LIMITS).decision == "PROMOTE"


MODELS = ["artifact", "student", "teacher", "most_popular", "neighbours", "champion"]


def with_report(name: str, **changes) -> Evidence:
    fine = evidence()
    return replace(fine, **{name: replace(getattr(fine, name), **changes)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", MODELS)
def test_a_metric_that_is_not_a_number_never_passes(name, bad):
    spoilt = QUALITY.copy()
    spoilt[17] = bad
    other = {"ndcg_at_10": QUALITY, "hr_at_1": spoilt}
    for metrics in ({"ndcg_at_10": spoilt}, other):
        verdict = judge(with_report(name, metrics=metrics), GATE, LIMITS)
        assert verdict.decision == "REJECT"
        assert f"of {name} is missing or not finite" in verdict.sentence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("number", ["coverage_at_10", "popularity_at_10"])
def test_a_number_of_a_report_that_is_not_finite_never_passes(name, number, bad):
    verdict = judge(with_report(name, **{number: bad}), GATE, LIMITS)
    assert verdict.decision == "REJECT"
    assert f"{number} of {name} is missing or not finite" in verdict.sentence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_latency_that_is_not_finite_never_passes(bad):
    verdict = judge(evidence(latency_p99_ms=bad), GATE, LIMITS)
    assert verdict.decision == "REJECT"
    assert "latency of artifact" in verdict.sentence


def test_a_slice_key_that_is_not_finite_never_passes():
    verdict = judge(with_report("artifact", tail_share=np.full(USERS, np.nan)), GATE, LIMITS)
    assert "tail_share of artifact" in verdict.sentence


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_or_short_metric_never_passes(name):
    for metrics in ({}, {"ndcg_at_10": QUALITY[:-1]}):
        verdict = judge(with_report(name, metrics=metrics), GATE, LIMITS)
        assert verdict.decision == "REJECT"
        assert f"ndcg_at_10 of {name} is missing" in verdict.sentence


@pytest.mark.parametrize("name", MODELS[1:])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"as_of": 1_600_000_000}, "different as-of times (1700000000 and 1600000000)"),
        ({"catalog_items": 501}, "different catalogs (500 and 501 items)"),
        ({"users": report("x", QUALITY).users[::-1]}, "different test users (400 and 400)"),
    ],
)
def test_reports_of_different_nights_are_not_compared(name, changes, said):
    verdict = judge(with_report(name, **changes), GATE, LIMITS)
    assert verdict.decision == "REJECT"
    assert f"artifact and {name} have {said}" in verdict.sentence


def test_an_infinite_limit_is_no_limit_and_is_refused():
    with pytest.raises(ValueError, match="finite number"):
        LimitsConfig(size_mb=np.inf)


# First night and slices


def test_on_the_first_night_there_is_no_champion_and_slices_face_the_teacher():
    verdict = judge(evidence(champion=None), GATE, LIMITS)
    assert verdict.decision == "PROMOTE"
    assert "champion" not in {row.name for row in verdict.criteria}
    assert "against the teacher" in criterion(verdict, "slice_cold").sentence
    close = report("teacher", 1.05 * QUALITY)
    verdict = judge(evidence(champion=None, teacher=close), GATE, LIMITS)
    assert criterion(verdict, "slice_heavy").value == pytest.approx(1 / 1.05 - 1)


def test_on_the_first_night_too_little_of_the_teacher_is_refused():
    verdict = judge(evidence(champion=None, teacher=report("teacher", 1.3 * QUALITY)), GATE, LIMITS)
    assert "teacher_kept" in outcomes(verdict, "fail")


def lopsided(collapsed: np.ndarray) -> np.ndarray:
    """A better mean, paid by half the quality of the collapsed users."""
    return np.where(collapsed, 0.5 * QUALITY, 1.3 * QUALITY)


@pytest.mark.parametrize(
    ("slice_name", "collapsed"),
    [
        ("cold", report("x", QUALITY).history_lengths <= 10),
        ("heavy", report("x", QUALITY).history_lengths >= 31),
        ("tail", report("x", QUALITY).tail_share > 0.5),
    ],
)
def test_a_collapsed_slice_is_rejected_by_name_though_the_mean_is_better(slice_name, collapsed):
    ndcg = lopsided(collapsed)
    assert ndcg.mean() > QUALITY.mean()
    night = evidence(
        artifact=report("artifact", ndcg, bytes=8),
        student=report("student", ndcg),
        champion=report("champion", QUALITY),
    )
    verdict = judge(night, GATE, LIMITS)
    assert verdict.decision == "REJECT"
    assert outcomes(verdict, "fail") == [f"slice_{slice_name}"]
    assert "proven worse than -10.0 %" in verdict.sentence


def test_a_slice_that_only_looks_worse_is_tolerated():
    rng = np.random.default_rng(5)
    ours, theirs = ((rng.random(USERS) < 0.1).astype(float) for _ in range(2))
    night = evidence(theirs, artifact=report("artifact", ours, bytes=8), student=report("student", ours))
    rows = [row for row in judge(night, GATE, LIMITS).criteria if row.name.startswith("slice_")]
    assert min(row.value for row in rows) < -0.1
    assert all(row.outcome == "pass" for row in rows)


def test_a_slice_of_a_few_users_is_shown_and_not_tested():
    few = np.where(np.arange(USERS) < 29, 1.0, 0.0)
    ndcg = np.where(few > 0, 0, QUALITY)
    night = evidence(
        artifact=report("artifact", ndcg, bytes=8, tail_share=few),
        student=report("student", ndcg),
        champion=report("champion", QUALITY),
    )
    row = criterion(judge(night, GATE, LIMITS), "slice_tail")
    assert (row.value, row.outcome, row.proven) == (-1, "pass", False)
    assert "29 users" in row.sentence
    assert "too few to be tested (30 asked)" in row.sentence


def test_users_with_one_history_length_are_cold_and_heavy_at_once():
    same = np.full(USERS, 3)
    verdict = judge(with_report("artifact", history_lengths=same), GATE, LIMITS)
    assert verdict.decision == "PROMOTE"
    assert "0 users" in criterion(verdict, "slice_short").sentence


# Verdicts


def test_a_verdict_survives_its_json():
    for verdict in (judge(evidence(), GATE, LIMITS), judge(evidence(QUALITY[:5]), GATE, LIMITS)):
        text = verdict.to_json()
        assert Verdict.from_json(text) == verdict
        assert Verdict.from_json(text).to_json() == text
        assert json.loads(text)["decision"] == verdict.decision


def test_a_model_of_nothing_but_zeros_is_rejected_without_a_fault():
    zeros = 0 * QUALITY
    night = evidence(zeros, most_popular=report("most_popular", zeros))
    verdict = judge(night, GATE, LIMITS)
    assert outcomes(verdict, "fail") == ["most_popular"]
    verdict.to_json()


POPULAR = report("most_popular", np.full(USERS, 0.2))


def test_a_teacher_above_both_baselines_is_promoted():
    teacher, near = report("teacher", QUALITY), report("neighbours", 0.9 * QUALITY)
    for previous in (None, teacher, report("previous", 1.02 * QUALITY)):
        assert judge_teacher(teacher, POPULAR, near, previous, GATE).decision == "PROMOTE"


def test_a_teacher_no_better_than_most_popular_is_rejected():
    shuffled = report("teacher", np.full(USERS, 0.19))
    verdict = judge_teacher(shuffled, POPULAR, report("neighbours", np.full(USERS, 0.1)), None, GATE)
    assert verdict.decision == "REJECT"
    assert outcomes(verdict, "fail") == ["most_popular"]


def test_a_teacher_not_proven_better_than_most_popular_waits():
    popular = report("most_popular", np.roll(FEW_HITS, 7) * 0.99)
    near = report("neighbours", 0.5 * FEW_HITS)
    assert judge_teacher(report("teacher", FEW_HITS), popular, near, None, GATE).decision == "HOLD"


def test_a_teacher_must_be_above_the_neighbours_proven_or_not():
    teacher = report("teacher", FEW_HITS)
    popular = report("most_popular", 0 * FEW_HITS)
    barely = judge_teacher(teacher, popular, report("neighbours", np.roll(FEW_HITS, 7) * 0.99), None, GATE)
    assert barely.decision == "PROMOTE"
    assert not criterion(barely, "neighbours").proven
    level = judge_teacher(teacher, popular, report("neighbours", FEW_HITS), None, GATE)
    assert outcomes(level, "fail") == ["neighbours"]


def test_a_teacher_worse_than_the_one_before_is_rejected():
    teacher, near = report("teacher", QUALITY), report("neighbours", 0.9 * QUALITY)
    verdict = judge_teacher(teacher, POPULAR, near, report("previous", 1.03 * QUALITY), GATE)
    assert outcomes(verdict, "fail") == ["previous"]


def test_a_teacher_on_few_users_waits_and_one_with_nan_is_rejected():
    few = [report(name, QUALITY[:50]) for name in ("teacher", "most_popular", "neighbours")]
    assert judge_teacher(*few, None, GATE).decision == "HOLD"
    broken = replace(few[0], metrics={"ndcg_at_10": np.full(50, np.nan)})
    assert judge_teacher(broken, *few[1:], None, GATE).decision == "REJECT"


# Properties

RANK = {"REJECT": 0, "HOLD": 1, "PROMOTE": 2}
scale = st.floats(0.3, 1.5)


@settings(deadline=None, max_examples=40)
@given(
    scales=st.tuples(scale, scale, scale, scale),
    noise=st.integers(0, 2**16),
    gains=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    strict=st.booleans(),
)
def test_a_better_artifact_never_gets_a_worse_decision(scales, noise, gains, strict):
    rng = np.random.default_rng(noise)
    ours, *others = (rng.random(120) * factor for factor in (1.0, *scales))
    night = evidence(
        ours,
        student=report("student", ours * 1.01),
        teacher=report("teacher", others[0]),
        most_popular=report("most_popular", others[1] * 0.5),
        neighbours=report("neighbours", others[2]),
        champion=report("champion", others[3]),
    )
    better = ours + np.resize(gains, 120) * (1 - np.minimum(ours, 1))
    limits = LimitsConfig(strict=strict)
    before = judge(night, GATE, limits)
    after = judge(replace(night, artifact=replace(night.artifact, metrics={"ndcg_at_10": better})), GATE, limits)
    assert RANK[after.decision] >= RANK[before.decision]


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_users_does_not_change_the_values(seed):
    order = np.random.default_rng(seed).permutation(USERS)

    def shuffled(model: ModelReport) -> ModelReport:
        return replace(
            model,
            users=model.users[order],
            metrics={name: values[order] for name, values in model.metrics.items()},
            history_lengths=model.history_lengths[order],
            tail_share=model.tail_share[order],
        )

    night = evidence()
    other = replace(night, **{name: shuffled(getattr(night, name)) for name in MODELS})
    before, after = judge(night, GATE, LIMITS), judge(other, GATE, LIMITS)
    assert after.decision == before.decision
    assert [row.value for row in after.criteria] == pytest.approx([row.value for row in before.criteria])


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(MODELS),
    where=st.sampled_from(["metric", "coverage_at_10", "popularity_at_10", "latency"]),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    user=st.integers(0, USERS - 1),
)
def test_nothing_that_is_not_finite_ever_passes(name, where, bad, user):
    night = evidence()
    model = getattr(night, name)
    spoilt = model.metrics["ndcg_at_10"].copy()
    spoilt[user] = bad
    if where == "latency":
        night = replace(night, latency_p99_ms=bad)
    elif where == "metric":
        night = replace(night, **{name: replace(model, metrics={"ndcg_at_10": spoilt})})
    else:
        night = replace(night, **{name: replace(model, **{where: bad})})
    verdict = judge(night, GATE, LIMITS)
    assert verdict.decision == "REJECT"
    verdict.to_json()


def test_items_without_training_events_are_compared_where_it_is_asked():
    some = np.where(np.arange(USERS) % 8 == 0, 1.0, np.nan)
    worse = np.where(np.arange(USERS) % 16 == 0, 0.0, some)
    blind = evidence(
        artifact=report("artifact", QUALITY, bytes=800_000, unseen_hit_at_10=worse),
        teacher=report("teacher", QUALITY, unseen_hit_at_10=some),
    )
    assert "unseen_items" not in [row.name for row in judge(blind, GATE, LIMITS).criteria]
    asked = GATE.model_copy(update={"unseen_retention": 0.6})
    verdict = judge(blind, asked, LIMITS)
    assert verdict.decision == "REJECT"
    row = criterion(verdict, "unseen_items")
    assert (row.value, row.outcome) == (pytest.approx(0.5), "fail")
    assert "of 50 users" in row.sentence
    few = judge(evidence(), asked, LIMITS)
    assert few.decision == "PROMOTE"
    assert (criterion(few, "unseen_items").outcome, criterion(few, "unseen_items").proven) == ("pass", False)
