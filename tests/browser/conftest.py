"""One installation with a tiny shop and two nights, and a real browser to look at its pages with."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from recsys.resolve import resolve
from recsys.synthetic import shop
from tasks.adapters.settings import Settings
from tests import fork_server, new_databases
from tests.browser.windows import PATIENCE, PAYLOADS, watched
from tests.prefect_api import PrefectApi
from tests.servers import free_port

SMALL = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=4", "teacher.learning_rate=0.01",
    "search.widths=[16]", "search.trials=2", "search.epochs=3", "search.learning_rate=0.01",
    "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "compress.max_loss=0.9",
    "data.history_length=16", "data.min_users=40",
    "gate.min_users=40", "gate.teacher_retention=0.1", "gate.quantization_loss=0.9", "gate.champion_loss=1",
    "gate.neighbours_loss=1", "gate.slice_loss=1",
    "limits.size_ratio=9", "limits.coverage_ratio=0.01", "limits.latency_ms=1000", "limits.popularity_ratio=30",
]  # fmt: skip
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Installation:
    """A home that is up: its pages, its commands, and Prefect's API to look things up with."""

    def __init__(self, folder: Path) -> None:
        self.home, self.folder = folder / "home", folder
        self.settings = Settings.from_environment(self.home)
        prefect, mlflow = free_port(), free_port()
        self.ports = ("--prefect-port", prefect, "--mlflow-port", mlflow)
        self.prefect, self.mlflow = f"http://127.0.0.1:{prefect}", f"http://127.0.0.1:{mlflow}"
        self.api = PrefectApi(f"{self.prefect}/api")

    def recsys(self, command: str, *words: object, codes: tuple[int, ...] = (0,)) -> str:
        """A command of ours as a user gives it, with nothing set."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_"))}
        environment = {**kept, "RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = fork_server.run([command, "--home", self.home, *words], environment, timeout=2 * PATIENCE)
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    def night(self, *knobs: str) -> None:
        """A night from the command line."""
        shop_files = ("--events", self.folder / "events.parquet", "--items", self.folder / "items.parquet")
        self.recsys("nightly", *shop_files, *(word for knob in (*SMALL, *knobs) for word in ("--set", knob)))

    def runs(self, name: str) -> set[str]:
        """Those that a person asked for; the schedule's are made anew whenever the deployment changes."""
        found = self.api.post("flow_runs/filter", deployments={"name": {"any_": [name]}})
        return {run["id"] for run in found if not run["auto_scheduled"]}

    def upcoming(self, name: str) -> bool:
        """Whether the schedule has made the next run."""
        scheduled = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        return bool(self.api.post("flow_runs/filter", deployments={"name": {"any_": [name]}}, flow_runs=scheduled))

    def history(self) -> list[dict[str, Any]]:
        """The ledger, newest first."""
        return json.loads(self.recsys("history", "--json"))


@pytest.fixture(scope="package")
def wait_until() -> Callable[[Callable[[], Any]], Any]:
    """Waits for a condition and gives what it gave."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (met := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        return met

    return wait


@pytest.fixture(scope="package")
def browser():
    """Chromium, or the reason why nothing is looked at."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium; .ci/run does")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def installation(browser, tmp_path_factory):
    """Up, with two versions in the registry and small nights in the form. Everything is down at the end."""
    folder = tmp_path_factory.mktemp("installation")
    made = shop(users=200, items=40, events_a_user=16, randomness=0.3, seed=1, days=60)
    titles = pa.array([f"{PAYLOADS[item % len(PAYLOADS)]} {item}" for item in range(len(made.items))])
    replace(made, items=made.items.set_column(1, "title", titles)).write(folder)
    there = Installation(folder)
    place = ("--events", folder / "events.parquet", "--items", folder / "items.parquet")
    try:
        new_databases.prefect(there.home / "prefect")
        there.recsys("up", *place, *there.ports)
        there.night()
        there.night("search.seed=3")
        nightly = there.api.deployment("nightly")
        small = {**nightly["parameters"], **resolve("quick", SMALL).model_dump(mode="json")}
        there.api.patch(f"deployments/{nightly['id']}", parameters=small)
        yield there
    finally:
        there.recsys("down")


@pytest.fixture
def page(browser: Browser, installation: Installation):
    """A fresh browser window. What it asks of anybody but this machine is a failure, and so is what it obeys."""
    yield from window(browser)


@pytest.fixture(scope="module")
def long_page(browser: Browser, installation: Installation):
    """A window for a whole module."""
    yield from window(browser)


def window(browser: Browser) -> Iterator[Page]:
    with watched(browser) as seen:
        yield seen.page
    assert seen.elsewhere == [], "the pages work without the internet"
    assert seen.obeyed == [], "what a page shows is no part of it"
