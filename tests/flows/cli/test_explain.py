"""`recsys explain`: one user's recommendations with their reasons, by title, and what it says to a stranger."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from recsys.decoder import DecoderShape
from recsys.errors import DataError
from recsys.explanation import explain
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.student import Student
from tasks.adapters.registry import STUDENT
from tasks.adapters.store import Recipe
from tasks.explain_user import explain_user
from tasks.workshop import Workshop


@pytest.fixture(scope="module")
def shop(released_for_module):
    """Version 1 is of the night, and champion. Version 2 knows three items, whose titles look like markup."""
    settings = released_for_module.settings
    workshop = Workshop.of(settings)

    def write(out):
        ids, nothing = [f"item-{item:05d}" for item in (2, 7, 21)], [None] * 3
        catalog = Catalog(ids, ["[red]alarm[/red]", "line\nbreak", None], nothing, nothing)
        student = Student.untrained(DecoderShape.of(3, 16, 1, 4), 0.0, seed=0).eval()
        export(student, Publication(catalog, np.array([9, 8, 7]), "exclude", {}), 8, out)

    folder = workshop.store.open("artifact", workshop.store.make(Recipe("artifact", 1, {"three": 3}, ()), write).digest)
    run_id = workshop.tracking.start_night("nightly", {}, {})
    words = {"run_id": run_id, "intent": "three", "tags": {}, "description": ""}
    assert workshop.registry.register(STUDENT, folder, "recsys.runtime", **words) == 2
    workshop.tracking.finish(run_id, "FINISHED")
    return released_for_module


@pytest.fixture(scope="module")
def histories(shop):
    """Distinct items by user, oldest first, from the file the night read."""
    events = pq.read_table(shop.shop / "events.parquet").sort_by("timestamp").to_pylist()
    found = {}
    for event in events:
        found.setdefault(event["user_id"], {}).setdefault(event["item_id"])
    return {user: list(items) for user, items in found.items()}


def asked(shop, *arguments: str):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["explain", "--home", str(shop.settings.home), *arguments])


def test_items_and_their_reasons_are_named_by_title(shop, histories, own_environment):
    workshop = Workshop.of(shop.settings)
    runtime = Runtime.open(workshop.store.open("artifact", workshop.registry.version(STUDENT, 1).digest))
    user = "user-000003"
    result = asked(shop, "--user", user, "-k", "4")
    assert result.exit_code == 0, result.output
    for item in explain(runtime, runtime.codes(histories[user]), 4):
        assert runtime.columns.title(item.code) in result.stdout
        for reason in item.reasons:
            assert f"{runtime.columns.title(reason.code)} ({100 * item.share(reason):.0f}\u00a0%)" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if re.match(r" +\d ", line)] == ["1", "2", "3", "4"]
    read = min(len(histories[user]), runtime.card.length)
    assert f"a history of {len(histories[user])} events up to 29 February 2024" in result.stderr
    assert f"the model reads {read}." in result.stderr
    assert user not in result.output


def of_known(histories, number: int) -> str:
    """A user who did something with so many of the three items."""
    known = {"item-00002", "item-00007", "item-00021"}
    return next(user for user, items in histories.items() if len(known & set(items)) == number)


def test_titles_are_shown_as_they_are(shop, histories, own_environment):
    user = of_known(histories, 2)
    result = asked(shop, "--user", user, "--model", "2")
    named = {"item-00002": "[red]alarm[/red]", "item-00007": "line break", "item-00021": "item-00021"}
    (left,) = set(named) - set(histories[user])
    told = explain_user(shop.settings, user, 10, "2")
    assert [item.title for item in told.items] == [named[left].replace("line ", "line\n")]
    assert named[left] in result.stdout
    for cause in told.items[0].causes:
        assert " ".join(cause.title.split()) in result.stdout
    assert "Recommended by version 2" in result.stdout


def test_one_known_item_is_the_whole_history_and_none_is_popularity(shop, histories, own_environment):
    result = asked(shop, "--user", of_known(histories, 1), "--model", "2")
    assert result.stdout.count("the whole history: without it popularity would answer") == 2
    result = asked(shop, "--user", of_known(histories, 0), "--model", "2")
    assert result.stdout.count("it is popular: nothing in the history is known to the model") == 3
    assert "the model reads 0." in result.stderr


@pytest.mark.parametrize("user", ["a stranger", "", "\udcff"])
def test_an_unknown_user_is_a_sentence_with_what_to_do_and_without_the_id(shop, own_environment, user):
    result = asked(shop, "--user", user)
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2
    assert "no events in the dataset of the last night (--user). Write the id exactly" in str(result.exception)
    assert "stranger" not in str(result.exception)
