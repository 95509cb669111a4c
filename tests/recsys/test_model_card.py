"""A model card says the verdict first, follows the numbers it is told, and obeys no text of the data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt

from recsys.artifact import Card
from recsys.config import GateConfig, LimitsConfig
from recsys.dataset import Build
from recsys.evaluate import ModelReport
from recsys.gate import Evidence, judge, judge_teacher
from recsys.membership import Membership
from recsys.model_card import FEW_USERS, Judged, StudentFacts, TeacherFacts, student_card, teacher_card
from recsys.statistics import Interval, mean_interval
from recsys.story import Estimate, MembershipRow, ModelRow

USERS = 400
QUALITY = np.random.default_rng(0).random(USERS)
CARD = Card(items=500, length=50, width=32, heads=(1,), ffn=(64,), bits=8, repeats="exclude", lineage={})
BLENDED = replace(CARD, neighbours=20, newest=5, neighbours_weight=0.3, repeats="allow", heads=(1, 1), ffn=(64, 64))
TEACHER = TeacherFacts("a transformer decoder of 2 blocks, width 64", 480, 50, 1_699_000_000, 0.4)
STUDENT = StudentFacts(trials=8, weight=0.9, k=50)
BUILD = Build(
    accepted=9_000, kept=8_000, duplicates=500, left_out=500, repeats=0, after_as_of=0, capped=0, users=900, items=500,
    as_of=1_700_000_000, test_start=1_700_000_000 - 7 * 86_400, validation_start=1_690_000_000, test_users=USERS,
    validation_users=300, notes=("the test window is extended from 7 to 9 days",),
)  # fmt: skip
HOSTILE = "![x](http://elsewhere/a.png) <img src='http://elsewhere/b.png'> @ada\n# a | title `code` <script"


def report(model: str, ndcg: np.ndarray, **changes) -> ModelReport:
    users = len(ndcg)
    plain = ModelReport(
        model=model,
        users=np.array([f"{user:032x}" for user in range(users)], "S32"),
        metrics={"ndcg_at_10": np.asarray(ndcg, np.float64), "hr_at_10": (ndcg > 0.3).astype(float)},
        cross_entropy=None,
        coverage_at_10=0.4,
        popularity_at_10=2.5,
        top=np.zeros((users, 20), np.int32),
        bytes=4_000_000,
        history_lengths=np.arange(users) % 40 + 1,
        tail_share=np.where(np.arange(users) % 4 == 0, 1.0, 0.0),
        unseen_hit_at_10=np.full(users, np.nan),
        as_of=1_700_000_000,
        catalog_items=500,
        membership=Membership(300, Interval(0.61, 0.58, 0.64), *[Interval(0.1, 0.0, 0.2)] * 2, Interval(0.5, 0.4, 0.6)),
    )
    return replace(plain, **changes)


def row(made: ModelReport) -> ModelRow:
    """As a night tells a report."""
    metrics = {}
    for name, values in made.metrics.items():
        finite = np.isfinite(values).all()
        interval = mean_interval(values) if finite else None
        metrics[name] = Estimate(interval.value, interval.low, interval.high) if interval else Estimate(None)
    role = made.model if made.model in ("artifact", "student", "teacher", "champion") else "baseline"
    return ModelRow(made.model, role, metrics, made.coverage_at_10, made.popularity_at_10, made.bytes, 0.2, 0.4)


def judged(artifact: np.ndarray = QUALITY, gate: GateConfig | None = None, **changes) -> Judged:
    """A night with these users for the artifact; the others have QUALITY. `champion=None`: a first night."""
    evidence = Evidence(
        artifact=report("artifact", artifact, bytes=800_000),
        student=report("student", QUALITY),
        teacher=report("teacher", QUALITY),
        most_popular=report("most-popular", np.full(USERS, 0.1)),
        neighbours=report("neighbours", 0.9 * QUALITY),
        champion=report("champion", 0.95 * QUALITY),
        latency_p99_ms=2.0,
    )
    evidence = replace(evidence, **changes)
    verdict = judge(evidence, gate or GateConfig(), LimitsConfig())
    return Judged(verdict, tuple(row(each) for each in evidence.reports), "a shop", "ab" * 32, BUILD)


def card(of: Judged, about: Card = CARD, student: StudentFacts = STUDENT) -> str:
    return student_card(of, about, student, TEACHER)


def part(text: str, title: str) -> str:
    return text.split(f"### {title}\n")[1].split("\n###")[0]


def test_a_promotion_begins_with_its_sentence_and_says_all_that_is_in_a_card():
    found = judged()
    text = card(found).replace("\u00a0", " ")
    assert text.startswith(f"PROMOTE: {found.verdict.sentence}\n")
    assert "What to do" not in text
    titles = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert titles == [
        "What it is", "Data", "Figures", "Groups of users", "Gate", "Intended use", "Limits", "Going back",
    ]  # fmt: skip
    assert "1 block, width 32, item table of 8 bits, in one ONNX graph of 800 kB" in part(text, "What it is")
    assert "newest 50 items of a history and ranks 500 items in 0.400 ms" in part(text, "What it is")
    assert "never shown again" in text
    assert "Best of 8 trials; learnt from soft labels (50 a position, weight 0.9)" in text
    assert "8,000 events (of 9,000 accepted) of 900 users and 500 items" in part(text, "Data")
    assert "before 14 November 2023, 22:13 UTC" in part(text, "Data")
    assert "the last 7 days" in part(text, "Data")
    assert f"`{'ab' * 8}`" in part(text, "Data")
    assert "No group does worse" in part(text, "Groups of users")
    assert "criteria pass" in part(text, "Gate")
    assert "no proof of later clicks" in part(text, "Intended use")
    assert "recsys rollback --reason TEXT" in part(text, "Going back")


def test_the_figures_are_those_of_the_reports_with_their_bounds():
    lines = part(card(judged()), "Figures").strip().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| artifact", "| student", "| teacher", "| most-popular", "| neighbours", "| champion",
    ]  # fmt: skip
    interval = mean_interval(QUALITY)
    assert f"{interval.value:.4f} | {interval.low:.4f} to {interval.high:.4f}" in lines[2]
    assert "40\u00a0% | 800\u00a0kB" in lines[2]


def test_a_hold_says_what_is_unproven_and_what_to_do():
    noisy = np.clip(QUALITY + np.random.default_rng(1).normal(0, 0.4, USERS), 0, None)
    noisy *= 0.93 * QUALITY.mean() / noisy.mean()
    found = judged(noisy, student=report("student", noisy), champion=None)
    assert found.verdict.decision == "HOLD"
    text = card(found)
    assert text.startswith("HOLD: Not enough evidence: ")
    assert "What to do: Wait for more days" in text
    assert "- teacher_kept is unproven: keeps 93.0 %" in part(text, "Gate")


def test_a_rejection_names_the_failed_first_and_the_largest_losses():
    heavy = QUALITY * np.where(np.arange(USERS) % 40 >= 30, 0.2, 0.95)
    found = judged(heavy)
    assert found.verdict.decision == "REJECT"
    text = card(found)
    assert text.startswith("REJECT: Rejected: ")
    gate = [line for line in part(text, "Gate").splitlines() if line.startswith("- ")]
    assert " failed: " in gate[0]
    groups = [line for line in part(text, "Groups of users").splitlines() if line.startswith("- ")]
    assert groups[0].startswith("- heavy users")
    assert len(groups) <= 3


def test_what_could_not_be_judged_is_said_and_nothing_is_made_up():
    broken = np.where(np.arange(USERS) == 3, np.nan, QUALITY)
    text = card(judged(broken))
    assert "| artifact | – | – |" in text
    assert "It gave something that is no number" in part(text, "Limits")
    assert "### Groups of users" not in text
    assert "nan" not in text


def test_a_blended_student_and_one_without_labels_say_so():
    text = card(judged(), BLENDED).replace("\u00a0", " ")
    assert "Neighbours of the newest 5 items, 20 kept of each, have a share of 30 % in its scores." in text
    assert "may be shown again" in text
    assert "2 blocks" in text
    assert "events alone: without a teacher's labels" in card(judged(), student=StudentFacts(1, 0.0, 50))


@pytest.mark.parametrize(("users", "warned"), [(USERS, True), (FEW_USERS, False)])
def test_few_test_users_are_a_limit(users, warned):
    found = judged()
    text = card(replace(found, build=replace(BUILD, test_users=users))).replace("\u00a0", " ")
    estimate = found.models[0].estimate("ndcg_at_10")
    half = f"±{100 * (estimate.high - estimate.low) / 2 / estimate.value:.0f} %"
    assert (f"Only {users} test users: its NDCG@10 is known to {half}." in text) == warned


@pytest.mark.parametrize(
    ("changes", "said", "not_said"),
    [
        ({"coverage": 0.132, "popularity": 3.24}, ["13.2 % of the catalog", "3.2× as popular"], ["does not lean"]),
        ({"coverage": 1.0, "popularity": 0.97}, ["it does not lean"], ["of the catalog to the"]),
    ],
)
def test_the_limits_follow_the_numbers(changes, said, not_said):
    found = judged()
    text = card(replace(found, models=(replace(found.models[0], **changes), *found.models[1:])))
    limits = part(text, "Limits").replace("\u00a0", " ")
    assert all(words in limits for words in said), limits
    assert not any(words in limits for words in not_said), limits
    assert "One seed" in limits
    assert "The test window is extended from 7 to 9 days." in limits


def test_what_an_attacker_learns_is_a_limit():
    found = judged()
    auc, nothing = Estimate(0.613, 0.58, 0.64), Estimate(None)
    attacked = replace(found.models[0], membership=MembershipRow(591, auc, nothing, nothing, nothing))
    text = part(card(replace(found, models=(attacked, *found.models[1:]))), "Limits")
    assert "with an AUC of 0.613 (0.5800 to 0.6400; .5 is guessing), by 591 users" in text
    assert "An attacker" not in part(card(found), "Limits")


def test_split_and_missing_champion_are_limits():
    first = judged(champion=None)
    text = card(replace(first, build=replace(BUILD, test_start=None)))
    assert "last event of each user" in part(text, "Data")
    assert "training may know later events of others" in part(text, "Limits")
    assert "One test window" not in text
    assert "compared with no champion" in part(text, "Limits")
    assert "compared with no champion" not in card(judged())


def test_texts_of_the_data_are_shown_and_not_obeyed():
    build = replace(BUILD, notes=(HOSTILE,))
    text = card(replace(judged(), shop=HOSTILE, build=build))
    assert HOSTILE not in text
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inline = [child for token in tokens for child in (token.children or [])]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"image", "link_open", "html_inline", "html_block"}
    assert [t.tag for t in tokens if t.type == "heading_open"].count("h3") == 8, "no title came in"
    shown = "".join(child.content for child in inline)
    assert "![x](http://elsewhere/a.png) <img src=" in shown, "it is shown as it is"


@pytest.mark.parametrize("gate", [GateConfig(), GateConfig(min_users=10_000)])
def test_a_card_fits_into_a_description(gate):
    bad = judged(QUALITY * 0.2, gate, teacher=report("teacher", QUALITY, bytes=900_000, coverage_at_10=1.0))
    text = card(replace(bad, build=replace(BUILD, notes=("a note of the build",) * 4)), BLENDED)
    assert 2_000 < len(text) < 5_000


def test_a_teachers_card_says_that_it_is_not_for_serving():
    teacher, popular, near = (report(n, f * QUALITY) for n, f in (("teacher", 1), ("most-popular", 0.2), ("near", 0.9)))
    verdict = judge_teacher(teacher, popular, near, None, GateConfig())
    found = Judged(verdict, tuple(map(row, (teacher, popular, near))), "", "ab" * 32, BUILD)
    text = teacher_card(found, TEACHER).replace("\u00a0", " ")
    assert text.startswith("PROMOTE: Fit for promotion")
    assert "A transformer decoder of 2 blocks, width 64; 4.00 MB of weights." in text
    assert "Neighbours have a share of 40 %" in text
    assert "Not for serving" in part(text, "Intended use")
    assert "rollback" not in text
    assert "champion" in part(text, "Going back")
    assert len(text) < len(card(judged()))


def test_the_facts_are_read_beside_the_models(tmp_path):
    shape = {"backbone": "/models/a-[b]", "layers": 2, "lora_rank": 8, "head_width": 64}
    about = {"items": 9, "length": 5, "as_of": 7, "cut": 3, "validation_ndcg": 0.1}  # as before blending
    (tmp_path / "teacher.json").write_text(json.dumps({"kind": "language_model", "shape": shape}))
    (tmp_path / "about.json").write_text(json.dumps(about))
    words = r"2 layers of the language model a-\[b\], with LoRA of rank 8 and a head of width 64"
    assert TeacherFacts.read(tmp_path) == TeacherFacts(words, 9, 5, 7, 0.0)
    decoder = {"kind": "decoder", "shape": {"heads": [1], "width": 16}}
    (tmp_path / "teacher.json").write_text(json.dumps(decoder))
    assert TeacherFacts.read(tmp_path).architecture == "a transformer decoder of 1 block, width 16"
    (tmp_path / "teacher.json").write_text(json.dumps({"kind": "ensemble", "shapes": [decoder["shape"]] * 2}))
    told = "the mean of 2 transformer decoders (1 block, width 16; 1 block, width 16)"
    assert TeacherFacts.read(tmp_path).architecture == told
    trials = [{"best": False, "weight": 0.0, "k": 50}, {"best": True, "weight": 0.5, "k": 20}]
    (tmp_path / "trials.json").write_text(json.dumps(trials))
    assert StudentFacts.read(tmp_path) == StudentFacts(2, 0.5, 20)
