"""MLflow's pages as a curious colleague uses them: who is champion and why, and the alias moved by hand behind our back."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tasks.adapters.registry import STUDENT

pytestmark = pytest.mark.timeout(1800)
LINEAGE = ("recsys.dataset", "recsys.teacher", "recsys.student", "recsys.verdict", "recsys.digest")


def open_registry(page: Page, installation) -> None:
    page.goto("about:blank")
    page.goto(f"{installation.mlflow}/#/models/{STUDENT}")
    page.get_by_role("heading", name=STUDENT).wait_for()


def row_of(page: Page, version: int) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=f"Version {version}", exact=True))


def expect_champion(page: Page, version: int) -> None:
    expect(row_of(page, version).get_by_text("@ champion")).to_be_visible()
    expect(page.get_by_text("@ champion")).to_have_count(1)


def test_the_registry_shows_the_champion_of_the_ledger(page, installation):
    open_registry(page, installation)
    expect_champion(page, installation.history()[0]["to"])


def test_a_version_tells_why_it_is_there_and_what_it_is_made_from(page, installation):
    champion = installation.history()[0]
    open_registry(page, installation)
    page.get_by_role("link", name=f"Version {champion['to']}", exact=True).click()
    page.get_by_role("heading", name=f"Version {champion['to']}").wait_for()
    expect(page.get_by_role("paragraph").filter(has_text=champion["verdict"])).to_be_visible()
    for tag in LINEAGE:
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=tag, exact=True))
        expect(row.get_by_role("cell").nth(1)).to_have_text(re.compile("^[0-9a-f]{64}$"))
    expect(page.get_by_role("row", name="recsys.decision PROMOTE")).to_have_count(1)
    page.get_by_role("link", name=re.compile("^nightly ")).click()
    page.get_by_role("heading", name=re.compile("^nightly ")).wait_for()
    for metric in ("artifact/ndcg_at_10", "gate/teacher_kept/low"):
        page.get_by_placeholder("Search metrics").fill(metric)
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=metric, exact=True))
        expect(row.get_by_role("cell").nth(1)).to_have_text(re.compile(r"^\d+(\.\d+)?$"))


def test_an_alias_that_was_moved_in_the_page_is_noticed_and_entered_in_the_ledger(page, installation):
    before = installation.history()
    champion = before[0]["to"]
    other = next(record["to"] for record in before if record["to"] != champion)
    move_champion(page, installation, other)
    assert "adopts it or puts it back" in " ".join(installation.recsys("status").split())
    installation.recsys("monitor", codes=(0, 1))  # 1: the shop's events are old
    record, *rest = installation.history()
    assert rest == before
    assert (record["op"], record["from"], record["to"], record["actor"]) == ("manual", champion, other, "MLflow")
    assert "no statistical gate" in record["reason"]
    open_registry(page, installation)
    expect_champion(page, other)
    expect(row_of(page, champion).get_by_text("@ previous")).to_be_visible()


def move_champion(page: Page, installation, to: int) -> None:
    """By the page's own dialog."""
    open_registry(page, installation)
    aliases = row_of(page, to).get_by_role("cell").nth(6)
    aliases.get_by_role("button").last.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").fill("champion")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("will remove it from version")).to_be_visible()
    dialog.get_by_role("button", name="Save aliases").click()
    expect(dialog).to_be_hidden()
