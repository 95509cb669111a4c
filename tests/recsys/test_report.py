"""The report reads well for each decision, is one self-contained page, and lets no text from the data out of its place."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from recsys.report import key_figures, leads, render
from recsys.story import (
    CriterionRow,
    CurvePoint,
    DataFlow,
    DisagreementRow,
    Estimate,
    Example,
    FileRow,
    GridPoint,
    KnobRow,
    LineageNode,
    MembershipRow,
    ModelRow,
    Pick,
    ShiftRow,
    SliceRow,
    StepRow,
    Story,
    TrialRow,
)

SCRIPT = "<script>alert(1)</script>"
HANDLER = '"><img src=x onerror=alert(1)>'
MARKS = "safe\u202egpj.exe\u2066\u200f\x00"
LONG = "Z" * 10_000
VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, ids, and the text a reader sees."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words, self.faults = [], [], [], []
        self.feed(html)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, text):
        if "style" not in self.open:
            self.words.append(text)

    def values(self, attribute):
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]


def model(name, role, quality, size=None, p99=None):
    metrics = {
        f"{m}_at_{k}": Estimate(quality, quality - 0.01, quality + 0.01) for m in ("ndcg", "hr") for k in (1, 10)
    }
    return ModelRow(name, role, metrics, 0.4, 0.8, size, 0.2, p99)


def criterion(name, kind, outcome, proven=True):
    return CriterionRow(name, kind, 0.95, 0.9, 0.92, 0.98, outcome, proven, "said so", "share")


PROMOTE = Story(
    shop="the shop",
    as_of=1_323_435_000,
    decision="PROMOTE",
    sentence="The student is fit to serve.",
    advice="Nothing.",
    registry="version 13 is the champion",
    models=(
        model("teacher", "teacher", 0.10, 12_000_000, 6.0),
        model("student", "student", 0.098, 1_600_000),
        model("artifact", "artifact", 0.096, 400_000, 0.5),
        model("champion", "champion", 0.080, 500_000, 0.5),
        model("popular", "baseline", 0.03),
    ),
    teacher_curve=(CurvePoint(1, 7.0, 0.06), CurvePoint(2, 6.5, 0.1)),
    trials=(
        TrialRow(0, 64, 0.0, 50, "complete", 0.08, 61.0, False, (CurvePoint(1, 7.0, 0.08),)),
        TrialRow(1, 64, 0.9, 50, "complete", 0.1, 60.0, True, (CurvePoint(1, 7.0, 0.1),)),
    ),
    grid=(
        GridPoint(1.0, 8, 500_000, Estimate(-0.004, -0.01, 0.002), "larger", True, "larger than needed"),
        GridPoint(0.25, 8, 400_000, Estimate(-0.005, -0.014, 0.004), "chosen", False, "the smallest within"),
        GridPoint(
            0.1, 8, 390_000, Estimate(-0.028, -0.04, -0.016), "refused", False, "its bound is too low", 1.0, 0.5, "hard"
        ),
    ),
    grid_max_loss=0.02,
    criteria=(
        criterion("teacher kept", "proof", "pass"),
        criterion("champion", "guard", "pass", proven=False),
    ),
    slices=(SliceRow("cold users", 88, "champion", Estimate(0.03, -0.08, 0.14), "pass"),),
    slice_max_loss=0.1,
    steps=(StepRow("teach", 0.0, True, 0.0, 0.0, 0.0), StepRow("distil", 229.0, False, 400.0, 0.0, 0.0044)),
    currency="EUR",
    cost_since_promotion=0.0132,
    examples=(
        Example(("Candle", "Bunting"), ("Lunch bag", "Cup"), (Pick("Lunch bag", True),)),
    ),
    data=DataFlow(
        files=(FileRow("dec.parquet", 1_000, 990, 10, {"no user": 7, "time in the future": 3}),),
        kept=900, duplicates=50, left_out=0, repeats=40, after_as_of=0, capped=0,
        users=120, items=80, validation_users=60, test_users=70, notes=("The test window was extended.",),
    ),
    lineage=(LineageNode("build", "a1" * 32, ()), LineageNode("teach", "b2" * 32, ("a1" * 32, "c3" * 32))),
)  # fmt: skip
HOLD = replace(
    PROMOTE,
    decision="HOLD",
    sentence="It is not proven that enough is kept.",
    criteria=(criterion("teacher kept", "proof", "unproven", proven=False),),
)
REJECT = replace(
    PROMOTE,
    decision="REJECT",
    sentence="It is worse than the champion.",
    criteria=(criterion("champion", "guard", "fail", proven=False),),
    slices=(SliceRow("cold users", 88, "champion", Estimate(-0.3, -0.4, -0.2), "fail"),),
)
OLDER = replace(PROMOTE, steps=(StepRow("distil", 229.0, False),), currency="", cost_since_promotion=None)
NO_CHANGE = Story("the shop", 0, "NO CHANGE", "Equal to the champion by bytes.", "", steps=PROMOTE.steps)
FIRST = replace(PROMOTE, models=tuple(m for m in PROMOTE.models if m.role != "champion"))
NIGHTS = {"promote": PROMOTE, "hold": HOLD, "reject": REJECT, "no change": NO_CHANGE, "first night": FIRST}


def spaced(text):
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def pages():
    return {night: render(story) for night, story in NIGHTS.items()}


@pytest.mark.parametrize("night", NIGHTS)
def test_the_page_opens_with_the_verdict_and_is_sound(pages, night):
    page, story = Page(pages[night]), NIGHTS[night]
    assert page.faults == []
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert story.sentence in page.text
    assert page.text.index(story.decision) < page.text.index(story.sentence) < page.text.index("The gate")


@pytest.mark.parametrize("night", NIGHTS)
def test_the_page_is_self_contained_and_runs_nothing(pages, night):
    page = Page(pages[night])
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    }
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert all(value.startswith("#") for name in ("href", "xlink:href", "src") for value in page.values(name))
    assert re.findall(r"url\((?!#)|@import", pages[night]) == []
    policies = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]


def test_equal_stories_give_equal_pages(pages):
    assert render(Story.from_json(PROMOTE.to_json())) == pages["promote"]


@pytest.mark.parametrize(
    "words",
    [
        "What to do: Nothing.",
        "as of 9 December 2011, 12:50 UTC",
        "2 of 2 criteria passed.",
        "✓ pass not proven",
        "≥ 90.0 % 92.0 to 98.0 %",
        "Distillation is worth +25.0 %.",
        "✓ best",
        "no distillation",
        "On none of 1 slice is it proven more than 10 % worse than the champion.",
        "3 points tried, 1 refused. Chosen: 25 % of the feed-forward units, 100 % of the heads, 100 % of the neighbours,",
        "10 % hard labels again 50 % 100 % 8 390 kB",
        "−2.8 % −4.0 to −1.6 % ✗ refused its bound is too low",
        "1,000 rows in: 990 accepted, 10 quarantined (1.0 %)",
        "no user 7 time in the future 3",
        "duplicates: 50",
        "The test window was extended.",
        "2 steps in 3 min 49 s; 1 found in the store and reused. "
        "The night cost 0.0044 EUR; this champion cost 0.013 EUR.",
        "distil 3 min 49 s 6 min 40 s 0.0044 EUR",
        "Candle , Bunting",
        "Lunch bag ✓",
        "NDCG@1 0.1000 0.0900 to 0.1100",
    ],
)
def test_a_promotion_tells_every_part(pages, words):
    assert words in spaced(Page(pages["promote"]).text).replace(" .", ".")


def test_what_an_attacker_learns_is_told_of_each_model_that_was_attacked(pages):
    assert "membership" not in leads(PROMOTE)
    guess = Estimate(0.5, 0.47, 0.53)
    found = MembershipRow(591, Estimate(0.613, 0.58, 0.64), Estimate(0.15, 0.11, 0.19), Estimate(None), guess)
    models = tuple(replace(m, membership=found) if m.role == "artifact" else m for m in PROMOTE.models)
    story = replace(PROMOTE, models=models)
    text = spaced(Page(render(Story.from_json(story.to_json()))).text)
    assert "picks the right one 61.3 % of the time; half is guessing" in text
    assert "says 50.0 %: what that is away from half is of the data. Measured on 591 users" in text
    assert "artifact 0.613 0.5800 to 0.6400 15.0 % 11.0 to 19.0 % – – 0.500 0.4700 to 0.5300" in text


def test_what_the_knobs_mattered_is_one_sentence_where_the_search_was_long_enough_to_say(pages):
    assert "What mattered" not in pages["promote"]
    told = leads(replace(PROMOTE, knobs=(KnobRow("width", 0.63), KnobRow("weight", 0.26), KnobRow("k", 0.11))))
    assert spaced(told["learning"]).endswith(
        " What mattered, roughly: width 63 %, distillation weight 26 %, soft labels K 11 % "
        "(fANOVA over 1 complete distilled trial)."
    )


def test_a_lineage_names_parents_by_step_or_by_the_beginning_of_their_digest(pages):
    text = Page(pages["promote"]).text
    assert f"{'a1' * 32} –" in text
    assert re.search(rf"{'b2' * 32} dataset\s*, {'c3' * 6}\b", text)


def test_key_figures_are_the_ratios_of_the_models():
    told = [(figure.label, spaced(figure.value), spaced(figure.note)) for figure in key_figures(PROMOTE)]
    assert told == [
        ("Teacher’s quality kept", "96.0 %", "NDCG@10 0.0960, the teacher’s 0.1000"),
        ("Size", "400 kB", "30× smaller than the teacher’s 12.0 MB"),
        ("p99 of one request", "0.500 ms", "12× faster than the teacher’s 6.00 ms"),
        ("Against the champion", "+20.0 %", "NDCG@10 0.0800 on the same users"),
    ]


def test_a_larger_and_slower_artifact_is_called_so():
    models = (model("teacher", "teacher", 0.1, 100, 1.0), model("artifact", "artifact", 0.1, 250, 1.5))
    notes = [figure.note for figure in key_figures(replace(PROMOTE, models=models))]
    assert spaced(notes[1]) == "2.5× larger than the teacher’s 100 B"
    assert spaced(notes[2]) == "1.5× slower than the teacher’s 1.00 ms"


def test_a_first_night_says_that_there_is_no_champion(pages):
    assert key_figures(FIRST)[-1].value == "none before"
    assert "none before" in Page(pages["first night"]).text


def test_what_did_not_pass_is_named():
    assert leads(HOLD)["gate"] == "0 of 1 criterion passed. Not passed: teacher kept (unproven)."
    assert leads(REJECT)["gate"] == "0 of 1 criterion passed. Not passed: champion (fail)."
    assert spaced(leads(REJECT)["slices"]) == "Proven more than 10 % worse than the champion: cold users."


def test_a_night_without_change_has_no_empty_parts(pages):
    text = Page(pages["no change"]).text
    assert "Nothing was judged tonight." in text
    for heading in ("From teacher to artifact", "Learning", "Compression", "Data", "Lineage", "What to do"):
        assert heading not in text
    assert key_figures(NO_CHANGE) == ()


def test_an_undistilled_best_student_is_told_as_such():
    trials = (replace(PROMOTE.trials[0], best=True), replace(PROMOTE.trials[1], best=False))
    assert leads(replace(PROMOTE, trials=trials))["learning"].endswith("is the student without distillation.")


@pytest.fixture(scope="module")
def hostile():
    bad = (SCRIPT, HANDLER, MARKS, LONG)
    story = replace(
        PROMOTE,
        shop=SCRIPT,
        sentence=HANDLER,
        advice=SCRIPT,
        registry=MARKS,
        models=tuple(replace(row, name=text) for row, text in zip(PROMOTE.models, (*bad, SCRIPT), strict=True)),
        criteria=tuple(replace(PROMOTE.criteria[0], name=text, sentence=text) for text in bad),
        slices=tuple(replace(PROMOTE.slices[0], name=text, against=text, outcome="fail") for text in bad),
        grid=tuple(replace(PROMOTE.grid[0], reason=text) for text in bad),
        trials=tuple(replace(PROMOTE.trials[0], state=text) for text in bad),
        steps=tuple(StepRow(text, 1.0, False) for text in bad),
        examples=(Example(bad, bad, (*(Pick(t, True, t) for t in bad), Pick("\x00\u202e", False))),),
        data=replace(PROMOTE.data, files=tuple(FileRow(t, 1, 0, 1, {t: 1}) for t in bad), notes=bad),
        lineage=tuple(LineageNode(text, text, bad) for text in bad),
    )
    return render(story)


def test_hostile_texts_stay_texts(hostile):
    page = Page(hostile)
    assert page.faults == []
    assert page.open == []
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert SCRIPT in page.text
    assert HANDLER in page.text


def test_hostile_texts_are_clipped_and_cleaned(hostile):
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]", hostile)
    assert max(map(len, re.findall("Z+", hostile))) < 600
    titles = re.findall(r"<li[^>]*><bdi>(.*?)</bdi>", hostile)
    assert max(map(len, re.findall("Z+", "".join(titles)))) == 79
    assert "safegpj.exe" in hostile
    assert "(no text)" in titles


def test_numbers_that_are_not_finite_are_dashes():
    nan = float("nan")
    broken = replace(
        PROMOTE,
        models=(ModelRow("artifact", "artifact", {"ndcg_at_10": Estimate(nan, nan, nan)}, nan, nan, None, nan, nan),),
        criteria=(CriterionRow("finite", "condition", nan, nan, None, None, "unproven", False, "", "number"),),
        steps=(StepRow("judge", None, False), StepRow("teach", nan, False)),
        grid=(replace(PROMOTE.grid[0], change=Estimate(nan, nan, nan)),),
    )
    html = render(broken)
    text = Page(html).text
    assert not re.search(r"\bnan\b", html.lower())
    assert "–" in text


def test_an_example_says_why_and_that_no_single_user_is_shown():
    picks = (Pick("Lunch bag", True, "Candle"), Pick("Cup", False))
    nothing = Example(("Candle",), (), picks)
    text = " ".join(
        Page(render(replace(PROMOTE, examples=(Example(("Candle",), ("Cup",), picks), nothing)))).text.split()
    )
    assert text.count("because of Candle") == 2
    assert "Because of: the event of the history without which" in text
    assert "Histories that at least 10 test users share" in text
    assert text.count("Nothing that 10 of them took.") == 1


def test_where_artifact_and_teacher_part_is_told_in_sums_of_users():
    more, less = (ShiftRow("Lunch bag", 1200, 9),), (ShiftRow("Cup", 0, 40),)
    parting = DisagreementRow(0.413, 7.25, more, less)
    text = " ".join(Page(render(replace(PROMOTE, disagreement=parting))).text.split())
    assert "the same item first for 41.3 % of the test users, and have 7.2 of ten items in common" in text
    assert "Lunch bag 1,200 users fewer than 10 users Cup 0 users 40 users" in text
    text = Page(render(replace(PROMOTE, disagreement=DisagreementRow(1.0, 10.0, (), ())))).text
    assert "Neither shows an item to 10 test users more than the other." in text
    assert "Where artifact and teacher part" not in Page(render(replace(PROMOTE, disagreement=None))).text


def test_an_example_of_before_reasons_were_kept_is_shown_without(pages):
    assert "ecause of" not in pages["promote"]


def test_long_lists_are_cut_and_say_so():
    files = tuple(FileRow(f"day-{i:03d}.csv", 1, 1, 0, {}) for i in range(100))
    titles = tuple(f"item {i}" for i in range(25))
    example = Example(titles, titles, tuple(Pick(t, False) for t in titles))
    text = Page(render(replace(PROMOTE, data=replace(PROMOTE.data, files=files), examples=(example,)))).text
    assert "The last 30 of 100 files." in text
    assert "day-099.csv" in text
    assert "day-069.csv" not in text
    assert re.search(r"15 more, and\s+item 15", text)
    assert "and 15 more" in text


def test_steps_of_before_costs_were_kept_are_shown_without():
    text = Page(render(OLDER)).text
    assert "1 step in 3 min 49 s; 0 found in the store and reused." in text
    assert "cost" not in leads(OLDER)["steps"]
    assert leads(replace(HOLD, criteria=()))["steps"].endswith("all nights since the last promotion 0.013\u00a0EUR.")
    assert ">GPU<" not in render(PROMOTE)
    assert ">GPU<" in render(replace(PROMOTE, steps=(StepRow("teach", 60.0, False, 20.0, 60.0, 0.04),)))
