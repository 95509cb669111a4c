"""What accepted events must satisfy, put to Great Expectations part by part; verdict and report are ours.

Most expectations hold of no rows at all, and nulls pass nearly all of them: so the suite is generated, always
with a floor of rows, the column's type and not-null beside every rule about values. Great Expectations' own
`success` ignores the severity, and its Data Docs show values unescaped: neither is used.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.events import ACCEPTED, Validation
from recsys.fields import MAX_ID_LENGTH
from recsys.small_cells import FEW, FEWEST
from recsys.wording import many

Severity = Literal["stop", "warn"]

_LARGEST_FLOAT32 = 3.4028234663852886e38
_SEVERITIES = {"stop": "critical", "warn": "warning"}
_DTYPES = {pa.string(): "str", pa.int64(): "int64", pa.float32(): "float32"}
_MOST_SHOWN = 100
_TEMPLATE = Path(__file__).with_name("validation_report.html.j2")


@dataclass(frozen=True)
class Expectation:
    """One rule, over all parts of a file."""

    rule: str
    column: str  # empty: the table
    severity: Severity
    passed: bool
    observed: str


@dataclass(frozen=True)
class Expectations:
    """All rules of a file."""

    rows: int
    parts: int
    rules: tuple[Expectation, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule that stops is broken. True only if there are rules and rows."""
        return bool(self.rules) and all(rule.passed for rule in self.rules if rule.severity == "stop")

    def require(self, file: Path) -> None:
        """Raises DataError when a rule that stops is broken; `file` is the one the events came from."""
        broken = [rule for rule in self.rules if rule.severity == "stop" and not rule.passed]
        if broken or not self.rules:
            what = "; ".join(f"{rule.column or 'table'}: {rule.rule}, {rule.observed}" for rule in broken[:3])
            raise DataError(
                f"the accepted events break {len(broken)} of {len(self.rules)} expectations: {what}",
                where=file.name,
                mend="Look at the validation report, and deliver a whole file.",
            )

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(value["rows"], value["parts"], tuple(Expectation(**rule) for rule in value["rules"]))

    def save(self, path: Path) -> None:
        """Writes them as JSON."""
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps(self.as_json(), sort_keys=True, indent=1, allow_nan=False))
        draft.rename(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        return cls.from_json(json.loads(path.read_text()))


def check(
    accepted: Path, *, oldest: int | None, newest: int | None, min_rows: int = 1, part_rows: int = 1_000_000
) -> Expectations:
    """Checks an accepted.parquet, `part_rows` rows at a time.

    `oldest` and `newest` (seconds UTC) are what validation says of the times; `min_rows` is the floor of the
    file's rows. A rule holds if it holds of every part. Raises DataError for a Parquet file that cannot be
    read.
    """
    rules = _rules(oldest or 0, newest or 0)
    outcomes, rows, parts = [_Outcome() for _ in rules], 0, 0
    validator = _Validator(rules)
    try:
        for part in _parts(accepted, part_rows):
            rows, parts = rows + part.num_rows, parts + 1
            for outcome, result in zip(outcomes, validator.results(part), strict=True):
                outcome.add(result)
    except (OSError, pa.ArrowException) as error:
        mend = "Validate the file again."
        raise DataError(f"the accepted events cannot be read: {error}", where=accepted.name, mend=mend) from error
    floor = Expectation(f"at least {min_rows:,} rows", "", "stop", rows >= max(1, min_rows), f"{rows:,} rows")
    found = (
        Expectation(rule.words, rule.column, rule.severity, outcome.passed, outcome.observed)
        for rule, outcome in zip(rules, outcomes, strict=True)
    )
    return Expectations(rows, parts, (floor, *found))


@dataclass(frozen=True)
class _Rule:
    """One expectation to be: our words, and Great Expectations' class and arguments."""

    words: str
    column: str
    severity: Severity
    kind: str
    arguments: Mapping[str, Any]


def _rules(oldest: int, newest: int) -> list[_Rule]:
    """The suite: every rule about values has the type and not-null of its column beside it."""
    rules = [_Rule("a part has rows", "", "stop", "ExpectTableRowCountToBeBetween", {"min_value": 1})]
    for field in ACCEPTED:
        dtype = _DTYPES[field.type]
        rules.append(_Rule(f"is of type {dtype}", field.name, "stop", "ExpectColumnValuesToBeOfType", {"type_": dtype}))
        words = "is a number where there is one" if field.name == "rating" else "is never missing"
        rules.append(_Rule(words, field.name, "stop", "ExpectColumnValuesToNotBeNull", {}))

    def add(column: str, words: str, kind: str, severity: Severity = "stop", **arguments: Any) -> None:
        rules.append(_Rule(words, column, severity, kind, arguments))

    matches, between = "ExpectColumnValuesToMatchRegex", "ExpectColumnValuesToBeBetween"
    lengths, several = "ExpectColumnValueLengthsToBeBetween", "ExpectColumnUniqueValueCountToBeBetween"
    add("token", "is 32 hex characters", matches, regex=r"\A[0-9a-f]{32}\Z")
    add("item_id", "has no control characters", matches, regex=r"\A[^\x00-\x1f\x7f]+\Z")
    add("item_id", f"has 1 to {MAX_ID_LENGTH} characters", lengths, min_value=1, max_value=MAX_ID_LENGTH)
    add("timestamp", f"lies in {oldest} to {newest}", between, min_value=oldest, max_value=newest)
    add("event", f"has at most {MAX_ID_LENGTH} characters", lengths, max_value=MAX_ID_LENGTH)
    add("rating", "is finite", between, min_value=-_LARGEST_FLOAT32, max_value=_LARGEST_FLOAT32)
    add("row", "is counted from 1", between, min_value=1)
    add("row", "occurs once", "ExpectColumnValuesToBeUnique")
    for column in ("token", "item_id", "timestamp"):
        add(column, "is not the same in every row", several, "warn", min_value=2)
    return rules


def _parts(accepted: Path, part_rows: int) -> Iterator[pa.Table]:
    """The file in parts; without rows it is one part without rows, so that the rules are put to it too."""
    file = pq.ParquetFile(accepted, page_checksum_verification=True)
    seen = False
    for batch in file.iter_batches(part_rows):
        seen = True
        yield pa.table(batch)
    if not seen:
        yield file.schema_arrow.empty_table()


def imported() -> None:
    """Import Great Expectations, which takes two seconds and which only a validation needs."""
    import great_expectations  # noqa: F401


class _Validator:
    """The suite in an ephemeral context of Great Expectations, without telemetry and progress bars."""

    def __init__(self, rules: Sequence[_Rule]) -> None:
        # Imported here, as in `imported`.
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        logging.getLogger("great_expectations").setLevel(logging.ERROR)
        context = gx.get_context(mode="ephemeral")
        context.enable_analytics(False)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        suite = gx.ExpectationSuite(name="accepted events")
        for place, rule in enumerate(rules):
            arguments = {**rule.arguments, "column": rule.column} if rule.column else rule.arguments
            expectation = getattr(gx.expectations, rule.kind)
            suite.add_expectation(expectation(**arguments, severity=_SEVERITIES[rule.severity], meta={"place": place}))
        asset = context.data_sources.add_pandas("accepted").add_dataframe_asset("events")
        batch = asset.add_batch_definition_whole_dataframe("part")
        suite = context.suites.add(suite)
        definition = gx.ValidationDefinition(name="accepted events", data=batch, suite=suite)
        self._definition = context.validation_definitions.add(definition)

    def results(self, part: pa.Table) -> list[Any]:
        """Great Expectations' result for each rule, in the order of the rules."""
        frame = _without_allowed_nulls(part).to_pandas()
        found = self._definition.run(batch_parameters={"dataframe": frame}, result_format="BASIC")
        return sorted(found.results, key=lambda result: result.expectation_config.meta["place"])


def _without_allowed_nulls(part: pa.Table) -> pa.Table:
    """Fills what may be missing, so that only what may not is: to pandas a NaN rating looks like a null."""
    for name, filler in (("event", ""), ("rating", 0.0)):
        if name in part.column_names:
            place = part.column_names.index(name)
            part = part.set_column(place, part.schema.field(name), part[name].fill_null(filler))
    return part


class _Outcome:
    """What became of one rule, over the parts so far."""

    def __init__(self) -> None:
        self._parts = self._failed = self._values = self._unexpected = 0
        self._seen: str | None = None

    def add(self, result: Any) -> None:
        """Takes in one part's result."""
        self._parts += 1
        self._failed += result.success is not True
        self._values += result.result.get("element_count", 0)
        self._unexpected += result.result.get("unexpected_count", 0)
        broken = [cause["exception_message"] for cause in result.exception_info.values() if isinstance(cause, dict)]
        value = broken[0] if broken else result.result.get("observed_value")
        if value is not None and (self._seen is None or result.success is not True):
            self._seen = str(value)[:200]

    @property
    def passed(self) -> bool:
        """Whether it was put to a part, and held of all."""
        return self._parts > 0 and self._failed == 0

    @property
    def observed(self) -> str:
        """In words."""
        if self._seen is not None:
            return f"found {self._seen}"
        return f"{self._unexpected:,} of {self._values:,} break it"


def validation_report(validation: Validation, expectations: Expectations, quarantine: Path) -> str:
    """A self-contained HTML page about one file: counts, expectations and the first quarantined rows.

    Every value is escaped, wherever it came from; nothing is loaded from elsewhere. Tokens and user ids are
    not shown.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text())
    refused = pq.ParquetFile(quarantine, page_checksum_verification=True)
    rows = next(refused.iter_batches(_MOST_SHOWN), None)
    return page.render(
        validation=validation,
        users=FEW if validation.users < FEWEST else f"{validation.users:,}",
        expectations=expectations,
        parts=many(expectations.parts, "part"),
        oldest=_day(validation.oldest),
        newest=_day(validation.newest),
        refused=rows.to_pylist() if rows else [],
    )


def _day(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ")
