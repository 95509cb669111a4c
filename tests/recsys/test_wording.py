"""Numbers are rounded with sign and unit, texts are clipped and cleaned."""

import pytest

from recsys import wording
from recsys.story import CriterionRow, Estimate


def spaced(text):
    """Our no-break spaces as blanks, for reading."""
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("slice_long passes; 85.7 % kept", "slice_long passes; 85.7 % kept"),
        ("see [this](http://elsewhere)", r"see \[this\](http://elsewhere)"),
        ("![](http://elsewhere/seen.png)", r"!\[\](http://elsewhere/seen.png)"),
        ("<img src=x> &amp; *all*", r"&#60;img src=x> &#38;amp; \*all\*"),
        ("_so_ it `goes`", r"\_so\_ it \`goes\`"),
        ("# not a title", r"\# not a title"),
        ("a \\ b | c", r"a \\ b \| c"),
        ("NDCG@10, ask @ada", "NDCG@10, ask &#64;ada"),
    ],
)
def test_marks_of_markdown_are_escaped_and_words_left_alone(text, shown):
    assert wording.literal_in_registry(text) == shown


def test_prefects_pages_want_a_backslash_where_mlflows_wants_an_entity():
    assert wording.literal("<img> &amp; @ada *so*") == r"\<img> \&amp; @ada \*so\*"
    assert wording.literal_in_registry("<img> &amp; @ada *so*") == r"&#60;img> &#38;amp; &#64;ada \*so\*"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("  a \t b\nc ", "a b c"),
        ("\u202egnp.exe\u202c\u200f\u2066x\u2069", "gnp.exex"),
        ("nul\x00 bell\x07 esc\x1b[31m", "nul bell esc[31m"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("👩\u200d🚀 می\u200cخواهم", "👩\u200d🚀 می\u200cخواهم"),
        ("a\u2028b", "a b"),
        ("\x00\u200e", ""),
    ],
)
def test_a_text_is_cleaned(text, shown):
    assert wording.plain(text) == shown


def test_a_long_text_is_clipped_to_the_character():
    assert wording.plain("x" * 80) == "x" * 80
    assert wording.plain("x" * 10_000) == "x" * 79 + "…"
    assert wording.plain("abc def", 5) == "abc…"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.percent(0.96134), "96.1 %"),
        (wording.percent(-0.02, signed=True), "−2.0 %"),
        (wording.percent(0.0147, signed=True), "+1.5 %"),
        (wording.percent(-0.0004, signed=True), "0.0 %"),
        (wording.percent(None), "–"),
        (wording.percent(float("nan")), "–"),
        (wording.decimal(0.12344), "0.1234"),
        (wording.count(386278), "386,278"),
        (wording.size(0), "0 B"),
        (wording.size(999), "999 B"),
        (wording.size(142_300), "142 kB"),
        (wording.size(999_600), "1.00 MB"),
        (wording.size(12_830_112), "12.8 MB"),
        (wording.milliseconds(0.4213), "0.421 ms"),
        (wording.milliseconds(12.34), "12.3 ms"),
        (wording.duration(0.02), "0.0 s"),
        (wording.duration(9.97), "10 s"),
        (wording.duration(75.2), "1 min 15 s"),
        (wording.duration(59.7), "1 min 0 s"),
        (wording.duration(7512), "2 h 5 min"),
        (wording.money(0, "EUR"), "0.00 EUR"),
        (wording.money(0.0000412, "EUR"), "0.000041 EUR"),
        (wording.money(0.5, "EUR"), "0.50 EUR"),
        (wording.money(1234.567, "USD"), "1,234.57 USD"),
        (wording.money(None, "EUR"), "–"),
        (wording.times(30.81), "31×"),
        (wording.times(1.24), "1.2×"),
        (wording.moment(1323435000), "9 December 2011, 12:50 UTC"),
        (wording.moment(10**18), "second 1000000000000000000"),
        (wording.bounds(Estimate(0.1, 0.0867, 0.1059)), "0.0867 to 0.1059"),
        (wording.bounds(Estimate(0.0, -0.014, 0.004), "change"), "−1.4 to +0.4 %"),
        (wording.bounds(Estimate(0.0, -0.014, None), "change"), "−1.4 % to –"),
        (wording.bounds(Estimate(0.0)), "–"),
        (wording.measured(1.08, "ratio"), "1.08×"),
    ],
)
def test_a_number_is_rounded_with_its_unit(shown, expected):
    assert spaced(shown) == expected


def criterion(value, threshold, unit, better="higher"):
    return CriterionRow("c", "guard", value, threshold, None, None, "fail", False, "", unit, better)


def test_a_value_never_looks_equal_to_a_threshold_that_it_misses():
    row = criterion(-0.02004, -0.02, "change")
    assert spaced(wording.value_of(row)) == "−2.004 %"
    assert spaced(wording.threshold_of(row)) == "≥ −2.000 %"


def test_a_value_on_its_threshold_needs_no_more_digits():
    row = criterion(20.0, 20.0, "ms", "lower")
    assert (spaced(wording.value_of(row)), spaced(wording.threshold_of(row))) == ("20.0 ms", "≤ 20.0 ms")


def test_an_absent_threshold_is_a_dash():
    assert wording.threshold_of(criterion(1.0, None, "number")) == "–"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 days"), (1, "1 day"), (1.0, "1 day"), (2, "2 days"), (1234, "1,234 days"), (0.5, "0.5 days")],
)
def test_one_is_one_and_everything_else_is_many(number, shown):
    assert wording.many(number, "day") == shown


def test_a_word_with_a_plural_of_its_own():
    assert [wording.many(number, "criterion", "criteria") for number in (1, 2)] == ["1 criterion", "2 criteria"]
