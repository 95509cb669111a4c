"""The newest event that may be known."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import DataError
from recsys.known import newest_before


@pytest.fixture
def files(tmp_path):
    for number, times in enumerate(([10, 30], [20, 5], [])):
        table = pa.table({"timestamp": pa.array(times, pa.int64())})
        pq.write_table(table, tmp_path / f"{number}.parquet", write_page_checksum=True)
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize(("until", "as_of"), [(30, 21), (20, 11), (21, 21), (6, 6), (31, None), (10**12, None)])
def test_as_of_is_just_after_the_newest_event_before_the_bound(files, until, as_of):
    assert newest_before(files, until).as_of == as_of


def test_a_bound_before_everything_is_refused(files):
    with pytest.raises(DataError, match="no accepted event is from before"):
        newest_before(files, 5)
