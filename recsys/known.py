"""What may be known: the moments people write, the newest of the accepted events, the newest of those before a moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import ConfigError, DataError


@dataclass(frozen=True)
class Newest:
    """Times of events, seconds UTC."""

    of_all: int
    before: int  # the newest that lies before the moment that was asked for

    @property
    def as_of(self) -> int | None:
        """Just after the newest event that may be known; None where all may be: a bound beyond all is no bound."""
        return None if self.before == self.of_all else self.before + 1


def as_of_time(text: str, where: str = "--as-of") -> datetime:
    """As `moment`; ConfigError also when it is in the future."""
    time = moment(text, where)
    if time > datetime.now(UTC):
        raise ConfigError(f"{text} is in the future", where=where, mend="Leave it out to use the newest event.")
    return time


def moment(text: str, where: str = "--as-of") -> datetime:
    """ISO 8601 (UTC where it names no zone) -> a time with a zone. ConfigError when unreadable."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no ISO 8601 time", where=where, mend=f"Write {where} 2011-12-09 or 2011-12-09T02:00:00+01:00."
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def newest_before(accepted: Sequence[Path], until: int) -> Newest:
    """The newest events of accepted.parquet files; `until` is seconds UTC, exclusive. DataError when none is before."""
    newest: list[int] = []
    before: list[int] = []
    for path in accepted:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        for group in file.iter_batches(columns=["timestamp"]):
            times = group.column(0)
            newest += _largest(times)
            before += _largest(times.filter(pc.less(times, until)))
    if not before:
        raise DataError(
            "no accepted event is from before the moment that bounds this night", mend="Choose a later one."
        )
    return Newest(max(newest), max(before))


def _largest(times: pa.Array) -> list[int]:
    largest = pc.max(times).as_py()
    return [] if largest is None else [int(largest)]
