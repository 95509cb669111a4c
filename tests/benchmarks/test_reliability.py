"""docs/reliability.md is what its command writes, and every test it names is there."""

import pytest

from benchmarks.reliability import PAGE, Failure, Figure, Reliability, names_below, page_of, read_scored
from recsys.errors import ConfigError


def test_the_page_is_what_the_command_writes_and_its_tests_exist():
    read = Reliability.load()
    assert PAGE.read_text() == page_of(read, read_scored()), "python -m benchmarks.reliability"
    assert sum(map(len, read.failures.values())) == 126
    assert [len(group) for group in read.items.values()] == [7, 7, 7, 7]
    assert len(set(read.named())) > 150


def test_a_row_whose_test_is_gone_is_refused_by_its_name(tmp_path):
    text = "texts = {}\nfigures = []\nitems = { data = [], model = [], infrastructure = [], monitoring = [] }\n"
    row = '[failures]\nx = [{ when = "w", asked = "a", by = ["recsys/test_gate.py::test_that_was_renamed"] }]\n'
    (tmp_path / "rows.toml").write_text(text + row)
    with pytest.raises(ConfigError, match=r"no such test: recsys/test_gate\.py::test_that_was_renamed"):
        Reliability.load(tmp_path / "rows.toml")


def test_a_failure_without_test_or_reason_is_refused():
    with pytest.raises(ConfigError, match="held by no test"):
        Failure("w", "a")
    assert [f.standing for f in (Failure("w", "a", ["t"]), Failure("w", "a", ["t"], "b"), Failure("w", "a", (), "b"))] == [
        "held", "in part", "not held",
    ]  # fmt: skip


def test_tests_are_found_without_being_imported(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test_b.py").write_text(
        "import nowhere\ndef test_c(): ...\nasync def test_d(): ...\ndef other(): ...\n"
    )
    assert names_below(tmp_path) == {"a/test_b.py::test_c", "a/test_b.py::test_d"}


@pytest.mark.parametrize(("trials", "bound"), [(0, "–"), (2, "100 %"), (100, "3 %"), (6669, "0.045 %")])
def test_the_bound_is_three_over_the_trials(trials, bound):
    assert Figure("", "", "", "", trials).bound == bound
