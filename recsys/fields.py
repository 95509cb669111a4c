"""One column read strictly: exact values, and the rule a row breaks. Ids never pass through a float."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from recsys.errors import DataError

MAX_ID_LENGTH = 512
"""Characters of an id or of a kind of event; longer ones are quarantined."""


class Rule(IntEnum):
    """Why a row is quarantined; the name in lower case is what is written."""

    FINE = 0
    MISSING = 1
    BLANK = 2
    NOT_UTF8 = 3
    TOO_LONG = 4
    CONTROL_CHARACTER = 5
    UNREADABLE = 6
    BEFORE_1970 = 7
    FUTURE = 8
    NOT_FINITE = 9
    UNKNOWN_ITEM = 10
    WRONG_FIELDS = 11
    BROKEN_LINE = 12
    DUPLICATE_ID = 13
    FORGOTTEN = 14

    @property
    def word(self) -> str:
        """As it stands in quarantine and reports."""
        return self.name.lower()


@dataclass(frozen=True)
class TextField:
    """(n,) texts by distinct value: row i is `distinct[codes[i]]`, or null where the code is -1."""

    distinct: pa.Array  # (d,) strings; those that are not UTF-8 stand as null
    codes: np.ndarray  # (n,) int64
    faults: np.ndarray  # (n,) int8 of Rule

    def values(self) -> pa.Array:
        """(n,) strings; what was empty or broken is null."""
        return self.distinct.take(pa.array(self.codes, mask=self.codes < 0))


@dataclass(frozen=True)
class TimeField:
    """(n,) seconds UTC, and what integers the column held, to tell their unit."""

    seconds: np.ndarray  # (n,) int64, 0 where there is a fault
    faults: np.ndarray  # (n,) int8 of Rule
    integers: np.ndarray  # (m,) int64, the values written as integers, whatever their unit
    without_zone: int  # how many were dates or times without a zone, and so read as UTC


@dataclass(frozen=True)
class NumberField:
    """(n,) numbers that may be missing."""

    values: pa.Array  # (n,) float32, null where missing or faulty
    faults: np.ndarray  # (n,) int8 of Rule


# --- what types a column may have ---------------------------------------------------------------------------


def require_id(kind: pa.DataType, where: str) -> None:
    """Raises DataError unless ids of this type are exact: text, integers, or decimals without a fraction."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if _is_text(kind) or types.is_integer(kind) or types.is_null(kind):
        return
    if types.is_decimal(kind) and kind.scale == 0:
        return
    if types.is_floating(kind):
        why = "a float merges large ids and cannot tell 7 from 7.0"
        raise DataError(f"ids of type {kind} are refused, {why}", where=where, mend="Write them as text or int64.")
    raise DataError(f"ids of type {kind} are refused", where=where, mend="Write them as text or int64.")


def require_time(kind: pa.DataType, where: str) -> None:
    """Raises DataError unless the type is integer, text, timestamp or date."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    accepted = (_is_text, types.is_integer, types.is_timestamp, types.is_date, types.is_null)
    if not any(accepts(kind) for accepts in accepted):
        raise DataError(
            f"times of type {kind} are refused",
            where=where,
            mend="Write int64 seconds UTC, ISO 8601 text or a Parquet timestamp.",
        )


def require_number(kind: pa.DataType, where: str) -> None:
    """Raises DataError unless the type is a number."""
    accepted = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(accepts(kind) for accepts in accepted):
        raise DataError(f"ratings of type {kind} are refused", where=where, mend="Write them as numbers.")


def _is_text(kind: pa.DataType) -> bool:
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    bytes_ = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(accepts(kind) for accepts in texts + bytes_)


# --- texts --------------------------------------------------------------------------------------------------


def read_ids(column: pa.Array, *, required: bool = True) -> TextField:
    """Ids, exactly as written. Missing and whitespace-only ones are faults if `required`, null otherwise."""
    field = read_texts(column)
    distinct = field.distinct
    faults = np.zeros(len(distinct), np.int8)
    faults[_true(pc.greater(pc.utf8_length(distinct), MAX_ID_LENGTH))] = Rule.TOO_LONG
    faults[_true(pc.match_substring_regex(distinct, r"[\x00-\x1f\x7f]"))] = Rule.CONTROL_CHARACTER
    blank = _true(pc.equal(pc.utf8_trim_whitespace(distinct), ""))
    if required:
        faults[blank] = Rule.BLANK
    codes = field.codes
    if not required and blank.any():
        codes = np.where(np.append(blank, False)[codes], -1, codes)
    rows = np.append(faults, np.int8(Rule.MISSING if required else Rule.FINE))[codes]
    return TextField(distinct, codes, np.where(field.faults > 0, field.faults, rows).astype(np.int8))


def read_texts(column: pa.Array) -> TextField:
    """Texts (or integers as texts) of any length. Empty is missing; only broken UTF-8 is a fault."""
    if not _is_text(column.type):
        column = column.cast(pa.string())
    encoded = column.cast(pa.binary()).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    distinct, broken = _decoded(encoded.dictionary)
    empty = _true(pc.equal(distinct, ""))
    unusable = np.append(empty | broken, False)[codes]
    faults = np.where(np.append(broken, False)[codes], Rule.NOT_UTF8, Rule.FINE).astype(np.int8)
    return TextField(distinct, np.where(unusable, -1, codes), faults)


def readable(column: pa.Array) -> list[object]:
    """The values as Python objects, for a quarantine record.

    Texts as bytes where some of them are not UTF-8; times as the numbers they are stored as where Python's calendar or
    its time zones do not hold them.
    """
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, KeyError):
        stored = pa.binary() if _is_text(column.type) else pa.int32() if types.is_date32(column.type) else pa.int64()
        return list(column.cast(stored).to_pylist())


def _decoded(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """(d,) binary as strings, null where it is not UTF-8, and a mask of those places."""
    texts = raw.view(pa.string())
    broken = np.zeros(len(raw), bool)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        broken = np.array([not _is_utf8(value) for value in raw.to_pylist()], bool)
        texts = pa.array([None if bad else v.decode() for v, bad in zip(raw.to_pylist(), broken, strict=True)])
        texts = texts.cast(pa.string())
    return texts, broken


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _true(mask: pa.Array) -> np.ndarray:
    return np.asarray(mask.fill_null(False).to_numpy(zero_copy_only=False), bool)


# --- times --------------------------------------------------------------------------------------------------

_INTEGER = r"\A(-?[0-9]{1,18}|[0-8][0-9]{18})\z"  # always an int64
_DATE_AND_TIME = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
_ZONED = _DATE_AND_TIME + r"(Z|[+-][0-9]{2}:?[0-9]{2}))\z"
_UNZONED = _DATE_AND_TIME + r")?\z"

_A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_times(column: pa.Array, not_after: int) -> TimeField:
    """Seconds UTC from integers, ISO 8601 texts, timestamps or dates; fractions of a second are cut off."""
    missing = _true(column.is_null())
    without_zone, integers = 0, np.empty(0, np.int64)
    if types.is_integer(column.type):
        seconds = _integers(column, 0)
        if types.is_uint64(column.type):
            seconds = np.minimum(seconds, np.uint64(np.iinfo(np.int64).max))
        seconds = seconds.astype(np.int64)
        integers = seconds[~missing]
    elif types.is_date(column.type) or types.is_timestamp(column.type):
        stamps = column.cast(pa.timestamp("ms")) if types.is_date(column.type) else column
        seconds = _integers(stamps.cast(pa.int64()), 0) // _A_SECOND[stamps.type.unit]
        without_zone = int((~missing).sum()) if getattr(stamps.type, "tz", None) is None else 0
    elif types.is_null(column.type):
        seconds = np.zeros(len(column), np.int64)
    else:
        return _times_of_texts(column, not_after)
    return TimeField(seconds, _time_faults(seconds, missing, not_after), integers, without_zone)


def _times_of_texts(column: pa.Array, not_after: int) -> TimeField:
    field = read_texts(column)
    texts = field.values()
    missing = _true(texts.is_null())
    seconds, known = np.zeros(len(texts), np.int64), np.zeros(len(texts), bool)
    integer, zoned, unzoned = (_true(pc.match_substring_regex(texts, p)) for p in (_INTEGER, _ZONED, _UNZONED))
    seconds[integer] = _integers(texts.filter(pa.array(integer)).cast(pa.int64()), 0)
    known |= integer
    for chosen, kind in ((zoned, pa.timestamp("s", "UTC")), (unzoned, pa.timestamp("s"))):
        whole = pc.replace_substring_regex(texts.filter(pa.array(chosen)), r"\.[0-9]+", "")
        seconds[chosen], known[chosen] = _instants(whole, kind)
    faults = _time_faults(seconds, missing, not_after)
    faults[~known & ~missing] = Rule.UNREADABLE
    faults[field.faults > 0] = field.faults[field.faults > 0]
    return TimeField(np.where(faults > 0, 0, seconds), faults, seconds[integer], int((unzoned & known).sum()))


def _instants(texts: pa.Array, kind: pa.DataType) -> tuple[np.ndarray, np.ndarray]:
    """ISO texts of the right shape as seconds UTC, and whether each is a real one (no 30th of February)."""
    try:
        return _integers(texts.cast(kind).cast(pa.int64()), 0), np.ones(len(texts), bool)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return np.zeros(1, np.int64), np.zeros(1, bool)
    half = len(texts) // 2  # one bad text fails the whole cast: halves find it in a few casts
    left, right = _instants(texts[:half], kind), _instants(texts[half:], kind)
    return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])


def _time_faults(seconds: np.ndarray, missing: np.ndarray, not_after: int) -> np.ndarray:
    faults = np.zeros(len(seconds), np.int8)
    faults[seconds > not_after] = Rule.FUTURE
    faults[seconds < 0] = Rule.BEFORE_1970
    faults[missing] = Rule.MISSING
    return faults


def _integers(column: pa.Array, missing: int) -> np.ndarray:
    return np.asarray(column.fill_null(missing).to_numpy(zero_copy_only=False))


class UnitCheck:
    """Watches the integer times of a whole file and tells when they cannot be seconds."""

    _UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
    _BOUNDS = (10**11, 10**14, 10**17)  # seconds of the year 5138; milliseconds, microseconds, nanoseconds of 1973

    def __init__(self) -> None:
        self._counts = np.zeros(4, np.int64)
        self._calendar_days = 0

    def watch(self, integers: np.ndarray) -> None:
        """Takes in (m,) int64 of one batch."""
        self._counts += np.bincount(np.digitize(integers, self._BOUNDS), minlength=4)
        month, day = integers // 100 % 100, integers % 100
        plausible = (integers >= 1900_01_01) & (integers <= 2100_12_31) & (month >= 1) & (month <= 12)
        self._calendar_days += int((plausible & (day >= 1) & (day <= 31)).sum())

    @property
    def seen(self) -> int:
        """How many integers were watched."""
        return int(self._counts.sum())

    def verify(self, where: str) -> None:
        """Raises DataError when most are too large for seconds, or all read as days like 20240131."""
        unit = int(self._counts.argmax())
        if unit:
            mend = f"Divide it by {1000**unit:,}: times are whole seconds since 1970, UTC."
            raise DataError(f"the times look like {self._UNITS[unit]}, not seconds", where=where, mend=mend)
        if self.seen and self._calendar_days == self.seen:
            mend = "Write ISO 8601 text such as 2024-01-31, or seconds since 1970."
            raise DataError("the times look like days written YYYYMMDD, not seconds", where=where, mend=mend)


# --- numbers ------------------------------------------------------------------------------------------------

_NUMBER = r"\A-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?\z"
_NOT_A_NUMBER = r"(?i)\A[+-]?(nan|inf|infinity)\z"


def read_numbers(column: pa.Array) -> NumberField:
    """Numbers as float32; NaN, infinities, what overflows float32 and text that is no number are faults."""
    if _is_text(column.type):
        return _numbers_of_texts(column)
    return _finite(column.cast(pa.float32(), safe=False))


def _numbers_of_texts(column: pa.Array) -> NumberField:
    field = read_texts(column)
    texts = field.values()
    readable = pc.match_substring_regex(texts, _NUMBER)
    numbers = _finite(pc.if_else(readable, texts, None).cast(pa.float64()).cast(pa.float32(), safe=False))
    faults = numbers.faults.copy()
    faults[_true(pc.invert(readable))] = Rule.UNREADABLE
    faults[_true(pc.match_substring_regex(texts, _NOT_A_NUMBER))] = Rule.NOT_FINITE
    faults[field.faults > 0] = field.faults[field.faults > 0]
    return NumberField(numbers.values, faults)


def _finite(numbers: pa.Array) -> NumberField:
    finite = pc.is_finite(numbers)
    faults = np.where(_true(pc.invert(finite)), Rule.NOT_FINITE, Rule.FINE).astype(np.int8)
    return NumberField(pc.if_else(finite, numbers, None), faults)
