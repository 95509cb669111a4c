"""The dry check: says what a night would take and what not, and leaves no trace."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from recsys import sample
from recsys.errors import ConfigError, DataError
from recsys.synthetic import shop

HEADER = "user_id,item_id,timestamp\n"
DAYS = (1, 2, 18, 29)  # two to train on, then one each to validate and to test on
GOOD = "".join(
    f"user-{user},item-{(user + step) % 7},2024-01-{day:02}\n" for user in range(6) for step, day in enumerate(DAYS)
)
BAD = "user-1,,2024-01-05\n,item-1,2024-01-05\nuser-1,item-1,2024-13-05\nuser-2,item-2,2024-02-30\n"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """There is none, and none may appear."""
    home = tmp_path / "home"
    monkeypatch.setenv("RECSYS_HOME", str(home))
    yield home
    assert not home.exists()


def validate(*arguments: object):
    return CliRunner().invoke(app, ["validate", *(str(argument) for argument in arguments)])


def words(result) -> str:
    return " ".join(result.stdout.split())


def test_the_sample_is_large_enough():
    result = validate(sample.EVENTS, "--items", sample.ITEMS)
    assert result.exit_code == 0, result.output
    assert "events.parquet 386,278 386,278 0 4,335 3,659 2010-12-01" in words(result)
    assert "Large enough to judge: 408 users to test on" in words(result)


def test_quarantined_rows_are_shown_by_rule_with_their_place(tmp_path):
    file = tmp_path / "events.csv"
    file.write_text(HEADER + GOOD + BAD)
    result = validate(file, "--set", "gate.min_users=3")
    assert result.exit_code == 0, result.output
    assert "events.csv 28 24 4 6 7 2024-01-01 2024-01-29" in words(result).replace("─", "")
    assert "item_id missing events.csv, row 26: '' 1" in words(result)
    assert "user_id missing events.csv, row 27: (withheld) 1" in words(result)
    assert "timestamp unreadable events.csv, row 28: '2024-13-05' 2 events.csv, row 29: '2024-02-30'" in words(result)
    assert "Large enough to judge: 6 users to test on" in words(result)


def test_too_small_to_judge_is_said_plainly(tmp_path):
    file = tmp_path / "events.csv"
    file.write_text(HEADER + GOOD)
    result = validate(file)
    assert result.exit_code == 0, result.output
    assert "Too small to judge: 6 users to test on" in words(result)
    assert "gate.min_users asks for 100 to test on. A night would end as HOLD" in words(result)


def test_a_refused_file_does_not_hide_the_others(tmp_path):
    (tmp_path / "1.csv").write_text("user,item_id,timestamp\na,b,2024-01-01\n")
    (tmp_path / "2.csv").write_text(HEADER + GOOD)
    (tmp_path / "3.csv").write_text(HEADER + BAD)
    result = validate(tmp_path)
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2
    assert "4 of 4 rows (100%) are refused, more than 20%" in str(result.exception)
    assert "the column user_id is missing (1.csv)" in " ".join(result.stderr.split())
    assert "2.csv 24 24 0" in words(result)
    assert "Events that would be used" not in result.stdout


def test_a_file_may_name_its_columns_otherwise(tmp_path):
    (tmp_path / "events.csv").write_text("CustomerID,item_id,timestamp\n" + GOOD)
    (tmp_path / "items.csv").write_text("item_id,name\n" + "".join(f"item-{n},Item {n}\n" for n in range(6)))
    result = validate(
        tmp_path / "events.csv", "--items", tmp_path / "items.csv", "--columns", "user_id=CustomerID,title=name"
    )
    assert result.exit_code == 0, result.output
    assert "items.csv 6 6 0 0" in words(result)
    assert "item_id unknown_item events.csv, row 17: 'item-6' 3 events.csv, row 20: 'item-6'" in words(result)


def test_nothing_to_train_on_is_refused(tmp_path):
    (tmp_path / "events.csv").write_text(HEADER + "a,x,2024-01-01\na,y,2024-01-02\nb,x,2024-01-01\n")
    assert "there is nothing to train on" in str(validate(tmp_path / "events.csv").exception)


def test_a_knob_that_is_none_is_refused(tmp_path):
    result = validate(sample.EVENTS, "--set", "gate.minusers=3")
    assert isinstance(result.exception, ConfigError)
    assert "Did you mean gate.min_users?" in str(result.exception)


def test_a_synthetic_shop_passes(tmp_path: Path):
    shop(users=60, items=30, events_a_user=12, randomness=0.2, seed=0, days=60).write(tmp_path)
    result = validate(tmp_path / "events.parquet", "--items", tmp_path / "items.parquet", "--set", "gate.min_users=20")
    assert result.exit_code == 0, result.output
    assert "Large enough to judge" in words(result)
    assert "Quarantined" not in result.stdout.split("Days")[1]
