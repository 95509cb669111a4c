"""What a shop calls its items, in every page that we write: shown as it is, and not obeyed."""

import pytest

from tests.browser.windows import PAYLOADS, watched

pytestmark = pytest.mark.timeout(1800)
HOVER = """document.querySelectorAll("*").forEach(
    each => each.dispatchEvent(new MouseEvent("mouseover", {bubbles: true})))"""


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_window_convicts_a_page_that_shows_them_as_they_come(browser, payload):
    with watched(browser) as seen:
        seen.page.set_content(f'<p title="{payload}">{payload}</p>')
        seen.page.evaluate(HOVER)
        seen.page.wait_for_timeout(500)
    assert seen.obeyed
    assert bool(seen.elsewhere) == ("http:" in payload)


def test_no_page_of_ours_obeys_a_title(browser, installation):
    """Reports of nights, validations and the monitor; Prefect's and MLflow's pages are opened by the other tests."""
    installation.recsys("monitor", codes=(0, 1))  # 1: the shop's events are old
    pages = sorted(installation.home.rglob("*.html"))
    assert {each.parent.name for each in pages} >= {"reports", "monitor", "validation"}
    shown = set()
    with watched(browser) as seen:
        for each in pages:
            seen.page.goto(each.as_uri())
            text = seen.page.locator("body").inner_text()
            shown |= {payload for payload in PAYLOADS if payload in text}
            seen.page.evaluate(HOVER)
    assert shown == set(PAYLOADS)
    assert seen.elsewhere == [each.as_uri() for each in pages], "a page asks for nothing but itself"
    assert seen.obeyed == []
