"""Numbers and texts as people read them: rounded, with sign and unit; clipped and cleaned."""

import math
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeGuard

from recsys.story import CriterionRow, Estimate, Unit

ABSENT = "–"
"""Stands where there is no number."""

_MINUS = "\u2212"
_NO_BREAK = "\u00a0"
_JOINERS = "\u200c\u200d"  # kept: Persian, Indic scripts and emoji are spelt with them
_MOST_DIGITS = 4
_MARKS = re.compile(r"[\\`*<\[\]&~|]|(?<!\w)_|_(?!\w)|^[#>+-]")
_ENTITIES = re.compile(r"\\([&<])|(?<!\w)(@)")


def plain(text: str, most: int = 80) -> str:
    """A text from the data, fit for one line: at most `most` characters, the last "…" where it was clipped.

    Control characters and marks of the writing direction are taken out, half a surrogate pair becomes U+FFFD,
    a run of white space one blank. It is not escaped: that is the page's or the terminal's work.
    """
    text = re.sub(r"\s+", " ", text[: 20 * most])
    text = "".join(_shown(character) for character in text).strip()
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def literal(text: str) -> str:
    """A text in Markdown as it is, never obeyed: every mark of Markdown and HTML escaped.

    An underscore within a word is none, as in slice_long.
    """
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", text)


def literal_in_registry(text: str) -> str:
    """The same for MLflow's page, which shows a backslash before & as it stands and makes a link of @name.

    Prefect's pages in turn show entities as they stand.
    """
    return _ENTITIES.sub(lambda found: f"&#{ord(found[1] or found[2])};", literal(text))


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        return "\ufffd"
    return "" if category == "Cc" or (category == "Cf" and character not in _JOINERS) else character


def percent(share: float | None, *, signed: bool = False, digits: int = 1) -> str:
    """0.9613 -> "96.1 %"; signed, -0.02 -> "−2.0 %"."""
    if not present(share):
        return ABSENT
    text = f"{share * 100:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", _MINUS) + _NO_BREAK + "%"


def decimal(value: float | None, digits: int = 4) -> str:
    """0.12344 -> "0.1234"."""
    return f"{value:.{digits}f}".replace("-", _MINUS) if present(value) else ABSENT


def count(number: float | None) -> str:
    """386278 -> "386,278"."""
    return f"{round(number):,}".replace("-", _MINUS) if present(number) else ABSENT


def many(number: float, one: str, several: str = "") -> str:
    """1, "day" -> "1 day"; 1234, "day" -> "1,234 days"; `several` where it is not `one` with an s."""
    said = f"{number:,.0f}" if round(number) == number else f"{number:g}"
    return f"{said} {one if number == 1 else several or one + 's'}"


def size(number: float | None) -> str:
    """Bytes, in decimal units and three digits: 142_300 -> "142 kB"."""
    if not present(number):
        return ABSENT
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{_three(value) if unit != 'B' else round(value)}{_NO_BREAK}{unit}"


def milliseconds(value: float | None) -> str:
    """0.4213 -> "0.421 ms"."""
    return f"{_three(value)}{_NO_BREAK}ms" if present(value) else ABSENT


def duration(seconds: float | None) -> str:
    """75.2 -> "1 min 15 s"; below ten seconds with one decimal."""
    if not present(seconds):
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f}{_NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (number, _) in enumerate(parts) if number), 2)
    return " ".join(f"{number}{_NO_BREAK}{unit}" for number, unit in parts[first : first + 2])


def money(amount: float | None, currency: str) -> str:
    """0.000041 -> "0.000041 EUR": at least cents, else two significant digits, for a step costs a fraction of one."""
    if not present(amount):
        return ABSENT
    digits = 2 if not amount else max(2, 1 - math.floor(math.log10(abs(amount))))
    return f"{amount:,.{digits}f}{_NO_BREAK}{plain(currency, 8)}"


def times(ratio: float | None) -> str:
    """30.81 -> "31×"; below ten with one decimal."""
    if not present(ratio):
        return ABSENT
    return f"{ratio:,.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×"


def moment(timestamp: int) -> str:
    """Seconds UTC -> "9 December 2011, 12:50 UTC". Out of the calendar's range: the seconds themselves."""
    try:
        at = datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        return f"second {timestamp}"
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def measured(value: float | None, unit: Unit, digits: int = 1) -> str:
    """A number in its unit. `digits` are the decimals of a percentage or ratio."""
    if unit in ("share", "change"):
        return percent(value, signed=unit == "change", digits=digits)
    if unit == "ratio":
        return f"{value:.{max(2, digits)}f}×" if present(value) else ABSENT
    return {"count": count, "ms": milliseconds, "bytes": size, "number": decimal}[unit](value)


def digits_apart(values: Iterable[float | None], threshold: float | None, unit: Unit) -> int:
    """How many decimals it takes so that no value looks equal to a threshold which it is not equal to."""
    others = [value for value in values if present(value) and value != threshold]
    for digits in range(1, _MOST_DIGITS):
        if measured(threshold, unit, digits) not in {measured(value, unit, digits) for value in others}:
            return digits
    return _MOST_DIGITS


def bounds(estimate: Estimate, unit: Unit = "number", digits: int = 1) -> str:
    """The two bounds of an estimate: "−1.4 to +0.4 %". Where only one is known the other is shown as absent."""
    if not (present(estimate.low) or present(estimate.high)):
        return ABSENT
    low, high = (measured(bound, unit, digits) for bound in (estimate.low, estimate.high))
    number, space, name = low.partition(_NO_BREAK)
    return f"{number if space and high.endswith(space + name) else low} to {high}"


def value_of(row: CriterionRow) -> str:
    """A criterion's value, with as many digits as tell it from its threshold."""
    return measured(row.value, row.unit, _digits(row))


def threshold_of(row: CriterionRow) -> str:
    """A criterion's threshold, with the side it is to be met from."""
    if not present(row.threshold):
        return ABSENT
    return f"{'≥' if row.better == 'higher' else '≤'} {measured(row.threshold, row.unit, _digits(row))}"


def bounds_of(row: CriterionRow) -> str:
    """A criterion's bounds in its unit."""
    return bounds(Estimate(row.value, row.low, row.high), row.unit, _digits(row))


def _digits(row: CriterionRow) -> int:
    return digits_apart((row.value, row.low, row.high), row.threshold, row.unit)


def present(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


def _three(value: float) -> str:
    """Three significant digits, none of them an exponent."""
    magnitude = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, min(3, 2 - magnitude))}f}"
