"""The terminal tells the verdict first, fits 80 columns, and reads no markup out of the data."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from flows.cli.terminal import INTERRUPTED, follow
from recsys.story import CriterionRow, Estimate, ModelRow, StepRow, Story


def model(name, role, quality, size=None, p99=None):
    metrics = {"ndcg_at_10": Estimate(quality, quality - 0.01, quality + 0.01), "hr_at_10": Estimate(2 * quality)}
    return ModelRow(name, role, metrics, 0.41, 0.8, size, 0.2, p99)


HOLD = Story(
    shop="the shop",
    as_of=1_323_435_000,
    decision="HOLD",
    sentence="It is not proven that enough is kept.",
    advice="Wait for more users.",
    registry="version 12 stays the champion",
    models=(
        model("teacher", "teacher", 0.10, 12_000_000, 6.0),
        model("artifact", "artifact", 0.096, 400_000, 0.5),
        model("item-to-item neighbours", "baseline", 0.07),
    ),
    criteria=(
        CriterionRow("teacher kept", "proof", 0.95, 0.9, 0.88, 0.98, "unproven", False, "keeps 95 %", "share"),
        CriterionRow("the champion", "guard", 0.01, -0.02, -0.03, 0.05, "pass", False, "a bit better", "change"),
        CriterionRow("p99 of one request", "guard", 0.5, 20, None, None, "pass", True, "", "ms", "lower"),
    ),
    steps=(StepRow("teach", 0.0, True, 0.0, 0.0, 0.0), StepRow("distil", 229.0, False, 400.0, 0.0, 0.0044)),
    currency="EUR",
)


def shown(story, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with follow(console) as screen:
        screen.show(story)
    return console.file.getvalue().replace("\u00a0", " ")


def cells(text, beginning):
    """The cells of the first line that begins so, blanks made single."""
    line = next(line for line in text.splitlines() if line.startswith(beginning))
    return " ".join(line.split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_verdict_comes_first_and_nothing_is_cut(width):
    text = shown(HOLD, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    first = [
        text.index(part)
        for part in ("HOLD", HOLD.sentence, "What to do: Wait", "version 12", "Models", "Gate", "Steps")
    ]
    assert first == sorted(first)
    assert "the shop, as of 9 December 2011, 12:50 UTC" in text


def test_models_have_bounds_size_and_latency():
    text = shown(HOLD, 120)
    assert cells(text, "artifact") == "artifact 0.0960 0.0860 to 0.1060 0.1920 41 % 400 kB 0.500 ms"
    assert cells(text, "item-to-item neighbours") == "item-to-item neighbours 0.0700 0.0600 to 0.0800 0.1400 41 % – –"


def test_the_gate_shows_criterion_kind_threshold_value_bounds_and_outcome():
    text = shown(HOLD, 120)
    assert cells(text, "teacher kept") == "teacher kept proof ≥ 90.0 % 95.0 % 88.0 to 98.0 % ? unproven"
    assert cells(text, "the champion") == "the champion guard ≥ −2.0 % +1.0 % −3.0 to +5.0 % ✓ pass, not proven"
    assert cells(text, "p99 of one request") == "p99 of one request guard ≤ 20.0 ms 0.500 ms – ✓ pass"


def test_what_did_not_pass_is_said_below_the_gate():
    text = shown(HOLD)
    assert "? teacher kept: keeps 95 %" in text
    assert "a bit better" not in text


def test_bounds_stand_below_the_value_when_there_is_little_room():
    lines = shown(HOLD, 80).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("teacher kept"))
    assert lines[row].split()[-3:] == ["%", "?", "unproven"]
    assert lines[row + 1].strip() == "88.0 to 98.0 %"


def test_steps_have_seconds_cost_and_reuse():
    text = shown(HOLD)
    assert cells(text, "teach  ") == "teach 0.0 s 0.0 s 0.00 EUR reused"
    assert cells(text, "distil") == "distil 3 min 49 s 6 min 40 s 0.0044 EUR"
    assert cells(text, "all") == "all 3 min 49 s 6 min 40 s 0.0044 EUR"
    assert "GPU" not in text


def test_the_gpu_has_a_column_where_one_was_used_and_an_older_story_has_no_cost():
    on_gpu = replace(HOLD, steps=(StepRow("teach", 60.0, False, 20.0, 60.0, 0.04),))
    assert cells(shown(on_gpu), "teach  ") == "teach 1 min 0 s 20 s 1 min 0 s 0.040 EUR"
    older = replace(HOLD, steps=(StepRow("teach", 60.0, False),), currency="")
    assert cells(shown(older), "all") == "all 1 min 0 s – –"


@pytest.mark.parametrize("decision", ["PROMOTE", "HOLD", "REJECT", "NO CHANGE"])
def test_each_decision_can_be_told_without_parts(decision):
    text = shown(Story("the shop", 0, decision, "So it is.", ""))
    assert decision in text
    assert "So it is." in text
    assert "Gate" not in text
    assert "What to do" not in text


def test_texts_from_the_data_are_no_markup_and_no_commands():
    hostile = "[red]x[/red] [link=http://e.example]y[/] \x1b[31m \u202e" + "z" * 10_000
    story = replace(
        HOLD,
        shop=hostile,
        sentence=hostile,
        advice=hostile,
        models=(replace(HOLD.models[0], name=hostile),),
        criteria=(replace(HOLD.criteria[0], name=hostile, sentence=hostile),),
        steps=(StepRow(hostile, 1.0, False),),
    )
    text = shown(story, 100)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("z") < 4_000


def test_an_interrupt_ends_as_a_sentence():
    console = Console(file=io.StringIO(), width=100)
    with pytest.raises(SystemExit) as stopped, follow(console):
        raise KeyboardInterrupt
    assert stopped.value.code == INTERRUPTED
    assert "the same command goes on from there" in console.file.getvalue()
