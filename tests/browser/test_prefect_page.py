"""Prefect's pages as an operator uses them: read what a deployment does, turn a knob, start a night, see what it came to."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from playwright.sync_api import Locator, Page, expect

from recsys.config import NightConfig
from recsys.wording import literal

pytestmark = pytest.mark.timeout(1800)
TRIALS = 24  # so many that distilling takes more than two seconds, and so tells of its progress, on a fast machine too
KNOB = "Finished trials, the undistilled ones included"


@dataclass(frozen=True)
class Night:
    """A night that was started in the browser."""

    name: str
    id: str
    artifacts: dict[str, str]  # ids by key
    decision: str


def open_form(page: Page, installation) -> None:
    page.goto(f"{installation.prefect}/deployments/deployment/{installation.api.deployment('nightly')['id']}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Custom run").click()
    page.get_by_text("Run Name").wait_for()
    field(page, KNOB).wait_for()


def field(page: Page, help_text: str) -> Locator:
    """The input below a knob's help."""
    return page.get_by_text(help_text).locator("xpath=following::input[1]")


def artifacts_of(installation, run: str) -> dict[str, str]:
    found = installation.api.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    return {each["key"]: each["id"] for each in found}


def open_artifact(page: Page, installation, night: Night, key: str) -> None:
    page.goto(f"{installation.prefect}/artifacts/artifact/{night.artifacts[key]}")
    page.get_by_role("code").filter(has_text=re.compile(f"^{key}$")).wait_for()


@pytest.fixture(scope="module")
def night(long_page, installation, wait_until: Callable) -> Night:
    """Started in the form with one knob turned, looked at while it runs, and completed."""
    page, before = long_page, installation.runs("nightly")
    open_form(page, installation)
    expect(field(page, KNOB)).to_have_value("2")
    field(page, KNOB).fill(str(TRIALS))
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("scheduled to start").first).to_be_visible()
    (run,) = wait_until(lambda: installation.runs("nightly") - before)
    page.goto("about:blank")  # a run's page is drawn without end: a core of a machine that has no graphics card
    progress = wait_until(lambda: artifacts_of(installation, run).get("progress-distil") or over(installation, run))
    if progress is not True:  # it is long enough to be seen at work
        page.goto(f"{installation.prefect}/artifacts/artifact/{progress}")
        expect(page.get_by_text("Distilling students").first).to_be_visible()
        page.goto("about:blank")
    wait_until(lambda: over(installation, run))
    page.goto(f"{installation.prefect}/runs/flow-run/{run}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    page.goto("about:blank")
    seen = installation.api.run(run)
    artifacts = artifacts_of(installation, run)
    told = installation.api.get(f"artifacts/{artifacts['verdict']}")["description"]
    return Night(seen["name"], run, artifacts, told.partition(":")[0])


def over(installation, run: str) -> bool:
    state = installation.api.run(run)["state"]
    assert state["type"] not in ("FAILED", "CRASHED", "CANCELLED"), state["message"]
    return state["type"] == "COMPLETED"


def test_a_deployment_says_what_it_does_and_when(page, installation, wait_until):
    # A changed deployment has no next run until the scheduler's next round, and the page does not look again.
    wait_until(lambda: installation.upcoming("nightly"))
    page.goto(f"{installation.prefect}/deployments")
    page.locator('a[href*="/deployments/deployment/"]').filter(has_text=re.compile("^nightly$")).click()
    for tag in ("recsys", "training"):
        expect(page.get_by_text(tag, exact=True).first).to_be_visible()
    expect(page.get_by_text("04:00:00 AM").first).to_be_visible()
    expect(page.get_by_role("switch").first).to_be_checked()
    page.get_by_role("tablist").get_by_text("Description", exact=True).click()
    expect(page.get_by_text("if it is fit, promote one student")).to_be_visible()


def test_the_form_has_every_section_with_titles_and_help(page, installation):
    open_form(page, installation)
    shown = " ".join(page.locator("form").inner_text().split())
    for section, field_ in NightConfig.model_fields.items():
        assert f"{section} (Optional)" in shown
        assert " ".join(field_.annotation.__doc__.split()) in shown
        for name, knob in field_.annotation.model_fields.items():
            assert f"{knob.title} (Optional)" in shown, name
            assert " ".join(knob.description.split()) in shown, name


def test_a_wrong_value_is_refused_in_words_before_anything_starts(page, installation):
    open_form(page, installation)
    before = installation.runs("nightly")
    field(page, KNOB).fill("1")
    page.get_by_role("button", name="Submit").click()
    message = page.get_by_text("'search.trials'").filter(has_text="1 is less than the minimum of 2")
    expect(message.first).to_be_visible()
    assert "/run" in page.url, "the form stays open with what was typed"
    expect(field(page, KNOB)).to_have_value("1")
    assert installation.runs("nightly") == before


def test_a_runs_page_leads_to_what_it_told_and_the_verdict_is_a_table(page, installation, night):
    page.goto(f"{installation.prefect}/runs/flow-run/{night.id}")
    page.get_by_role("tablist").get_by_text("Artifacts", exact=True).click()
    for told in ("Distilling students", "What the night came to", "The whole story", "Parameters, metrics and files"):
        expect(page.get_by_role("link").filter(has_text=told)).to_be_visible()
    page.get_by_role("link").filter(has_text=f"{night.decision}: ").click()
    expect(page.get_by_text(re.compile(f"^{night.decision}: ")).first).to_be_visible()
    headers = page.get_by_role("columnheader")
    expect(headers).to_have_text(["criterion", "kind", "value", "asked", "outcome", "why"])
    for criterion in ("teacher_kept", "champion", "latency"):
        row = page.get_by_role("row").filter(has=page.get_by_text(criterion, exact=True))
        expect(row.get_by_role("cell").nth(4)).to_have_text(re.compile("pass|fail"))


def test_the_night_is_told_and_leads_to_mlflow_with_the_knob_that_was_turned(page, installation, night):
    open_artifact(page, installation, night, "night")
    expect(page.get_by_role("heading", name=night.decision)).to_be_visible()
    expect(page.locator('a[href*="/artifacts/report/"]')).to_be_visible()
    mlflow = follow(page, 'a[href*="/#/experiments/"]:not([href*="/artifacts/"])')
    expect(mlflow.get_by_role("heading", name=night.name)).to_be_visible()
    mlflow.get_by_placeholder("Search parameters").fill("search.trials")
    row = mlflow.get_by_role("row").filter(has=mlflow.get_by_text("search.trials", exact=True))
    expect(row.get_by_text(str(TRIALS), exact=True)).to_be_visible()


def test_the_report_opens_by_its_link(page, installation, night):
    open_artifact(page, installation, night, "report")
    report = follow(page, 'a[href*="/artifacts/report/"]').frame_locator("iframe")
    expect(report.get_by_text(night.decision, exact=True).first).to_be_visible()


def follow(page: Page, link: str) -> Page:
    """The window that a link opens."""
    with page.expect_popup() as opened:
        page.locator(link).click()
    return opened.value


def test_what_people_write_is_shown_and_not_obeyed(page, installation):
    """Prefect's pages obey Markdown and HTML, in tables and descriptions too: an image would be fetched from anywhere."""
    text = '*so* ![seen](http://elsewhere.example/a.png) <img src="http://elsewhere.example/b.png"> `it` _goes_'
    rows = json.dumps([{"why": literal(text)}])
    for kind, data in (("markdown", literal(text)), ("table", rows)):
        made = {"key": f"hostile-{kind}", "type": kind, "data": data, "description": literal(text)}
        page.goto(f"{installation.prefect}/artifacts/artifact/{installation.api.post('artifacts/', **made)['id']}")
        expect(page.get_by_role("article").filter(has_text="*so* ![seen](")).to_have_count(2)
        expect(page.get_by_role("article").filter(has_text='<img src="')).to_have_count(2)
    # the window's fixture finds out whether anything was fetched
