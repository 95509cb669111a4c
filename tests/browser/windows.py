"""A browser window that tells what its pages ask of others and what they obey, and texts to tempt them with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Dialog, Page, expect

PATIENCE = 300  # seconds, on a busy machine
ASSISTANT_CLOSED = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
PAYLOADS = (
    "<script>obeyed('script')</script>",
    "\"><img src=x onerror=obeyed('image')>",
    "<svg onload=obeyed('drawing')>",
    "<iframe srcdoc=\"<script>parent.obeyed('frame')</script>\"></iframe>",
    "<b onmouseover=alert(1)>x</b><img src=http://x.example/b>",
)
"""What the shop calls its items. A page that obeys them is found out by its window."""


@dataclass(frozen=True)
class Seen:
    """A window, what it asked of others than this machine, and what it did that no page of ours asks for."""

    page: Page
    elsewhere: list[str] = field(default_factory=list)
    obeyed: list[str] = field(default_factory=list)


@contextmanager
def watched(browser: Browser) -> Iterator[Seen]:
    """Every frame of it has a function `obeyed`, for the texts that it shows to call."""
    expect.set_options(timeout=PATIENCE * 1000)
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, timezone_id="UTC", locale="en-GB")
    context.add_init_script(ASSISTANT_CLOSED)
    context.set_default_timeout(PATIENCE * 1000)
    seen = Seen(context.new_page())
    here = ("http://127.0.0.1:", "data:", "blob:")
    context.on("request", lambda asked: None if asked.url.startswith(here) else seen.elsewhere.append(asked.url))
    context.expose_function("obeyed", lambda what: seen.obeyed.append(what))

    def dismiss(dialog: Dialog) -> None:
        seen.obeyed.append(dialog.message)
        dialog.dismiss()

    context.on("dialog", dismiss)
    try:
        yield seen
    finally:
        context.close()
