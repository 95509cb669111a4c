"""CSV read strictly, under bytes that nobody would write."""

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import csv_rows
from recsys.errors import DataError

FIELDS = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))
HOSTILE = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\r\n", b"a", b'""', b"\xff", b"\0", "é".encode(), b" "])
)


def rows(path):
    batches = list(csv_rows.batches(path, ["a", "b"]))
    return [row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)], batches


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FIELDS, FIELDS)), st.sampled_from(["\n", "\r\n"]))
def test_what_a_writer_wrote_is_read_exactly(tmp_path_factory, written, line_end):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=line_end)
    writer.writerow(["b", "a"])
    writer.writerows([(b, a) for a, b in written])
    path.write_bytes(text.getvalue().encode())
    found, batches = rows(path)
    assert found == written
    assert not any(batch.broken for batch in batches)


@settings(max_examples=300, deadline=None)
@given(HOSTILE.map(b"".join))
def test_every_line_is_a_row_or_a_broken_line_or_the_file_is_refused(tmp_path_factory, body):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(b"a,b\n" + body)
    try:
        _, batches = rows(path)
    except DataError as error:
        assert "a quote is opened and not closed (x.csv, line " in str(error)  # noqa: PT017
        return
    lines = body.count(b"\n") + (not body.endswith(b"\n") and body != b"")
    seen = sorted(
        [int(n) for batch in batches for n in batch.lines] + [b.line for batch in batches for b in batch.broken]
    )
    assert seen == list(range(2, lines + 2))
