"""A tiny night over a Prefect and an MLflow that no home owns, which can be disturbed, and what must be true of them then."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests import fork_server
from tests.faults.dropping import Dropping
from tests.faults.night import TWINS, Shop, Truth, asked, broken_in, step_at_work
from tests.servers import Server

_LONGEST = 300  # seconds that a night may go on without its servers

_PARENT = "SELECT count(*) FROM runs r WHERE lifecycle_stage = 'active' AND status = 'FINISHED' AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.run_uuid = r.run_uuid AND t.key = 'mlflow.parentRunId')"
_RUNS = "SELECT substr(name, 1, 7), status FROM runs WHERE lifecycle_stage = 'active'"
_LEFT = {
    "runs deleted": "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'",
    "versions marked": TWINS,
    "models deleted": "SELECT model_id FROM logged_models WHERE lifecycle_stage = 'deleted'",
    "models never ready": "SELECT model_id FROM logged_models WHERE status <> 2 AND lifecycle_stage = 'active'",
}


@dataclass
class Outside:
    """Both servers, each behind its proxy, a home, and what a night comes to that is left alone."""

    work: Path
    shop: Shop
    servers: Mapping[str, Server]
    proxies: Mapping[str, Dropping]
    truth: Truth | None = None
    diaries: Mapping[str, Sequence[str]] = field(default_factory=dict)
    runs: Counter[object] = field(default_factory=Counter)  # of MLflow, by name and status
    _known: set[object] = field(default_factory=set)  # runs of Prefect before the trial

    @classmethod
    @contextlib.contextmanager
    def open(cls, work: Path) -> Iterator[Self]:
        """The servers run inside. A night has been, and its home is there."""
        for name in ("shop", "prefect", "mlflow", "home"):
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).mkdir(parents=True)
        servers = {
            "mlflow": Server.mlflow(work / "mlflow", f"sqlite:///{work / 'mlflow' / 'mlflow.db'}"),
            "prefect": Server.prefect(work / "prefect"),
        }
        with ExitStack() as stack:
            for server in servers.values():
                server.begin()
                stack.callback(server.kill)
            shop = Shop(work / "shop").make()
            for server in servers.values():
                server.wait()
            proxies = {name: stack.enter_context(Dropping.before(server.url)) for name, server in servers.items()}
            made = cls(work, shop, servers, proxies)
            made._copy(made.mlflow, work / "new.db")
            made.learn()
            yield made

    @property
    def home(self) -> Path:
        return self.work / "home"

    @property
    def mlflow(self) -> Path:
        """Its database."""
        return self.work / "mlflow" / "mlflow.db"

    @property
    def environment(self) -> dict[str, str]:
        """Of a night. Clients ask again without throwing dice for when, and the first time at once."""
        places = {"MLFLOW_TRACKING_URI": self.proxies["mlflow"].url, "PREFECT_API_URL": self.proxies["prefect"].url}
        calm = {"MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0", "PREFECT_CLIENT_RETRY_JITTER_FACTOR": "0"}
        return self.shop.environment({**places, **calm})

    def learn(self) -> None:
        """A night that is left alone. AssertionError when that breaks the law."""
        self.reset()
        for proxy in self.proxies.values():
            proxy.lose(None)
        done = self.night()
        assert done.returncode == 0, done.stdout + done.stderr
        self.diaries = {name: list(proxy.diary) for name, proxy in self.proxies.items()}
        self.truth = Truth.read(self.home / "store", lambda query: asked(self.mlflow, query))
        self.runs = Counter(asked(self.mlflow, _RUNS))
        assert self.broken(1) == []
        assert self.left() == {}

    def reset(self) -> None:
        """A home that is not there, and an MLflow as on its first day. Prefect keeps what it knows; the rest is counted from here."""
        for folder in (self.home, self.work / "mlflow" / "artifacts"):
            shutil.rmtree(folder, ignore_errors=True)
        self._copy(self.work / "new.db", self.mlflow)
        self._known = set(self._flow_runs())

    def night(self) -> subprocess.CompletedProcess[str]:
        """The command, to its end."""
        return fork_server.run(self.shop.words(self.home), self.environment, cwd=self.work)

    def killed_night(
        self, names: Sequence[str], step: str, back: bool
    ) -> tuple[subprocess.CompletedProcess[str], bool]:
        """A night, while servers are killed at a step, and whether they were; they are `back` at once, or after the night."""
        out, err, servers = self.work / "out", self.work / "err", [self.servers[name] for name in names]
        words = [sys.executable, "-m", "flows.cli.app", *self.shop.words(self.home)]
        with out.open("w") as to, err.open("w") as errors:
            night = subprocess.Popen(words, env=self.environment, cwd=self.work, stdout=to, stderr=errors)
        while night.poll() is None and step_at_work(out.read_text()) != step:
            time.sleep(0.02)
        happened = night.poll() is None
        if happened:
            for server in servers:
                server.kill()
                if back:
                    server.begin()
            with contextlib.suppress(subprocess.TimeoutExpired):
                night.wait(_LONGEST)
            for server in servers:
                if not back:
                    server.begin()
                server.wait()
        code = night.wait()
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text()), happened

    def broken(self, commands: int) -> list[str]:
        """The sentences of the law that do not hold after so many commands of one night."""
        assert self.truth is not None
        wrong = broken_in(self.home, self.mlflow, self.truth)
        if (nights := asked(self.mlflow, _PARENT)[0][0]) != 1:
            wrong.append(f"{nights} finished nights in MLflow")
        if commands == 1 and (runs := Counter(asked(self.mlflow, _RUNS))) != self.runs:
            wrong.append(f"runs in MLflow: {runs - self.runs} too many, {self.runs - runs} too few")
        mine = {run: state for run, state in self._flow_runs().items() if run not in self._known}
        states = Counter(mine.values())
        if states["COMPLETED"] != 1 or len(mine) > commands or states.keys() - {"COMPLETED", "FAILED", "CRASHED"}:
            wrong.append(f"runs in Prefect: {dict(states)}")
        return wrong

    def left(self) -> dict[str, int]:
        """What is there that does not count, by what it is."""
        found = {what: len(asked(self.mlflow, query)) for what, query in _LEFT.items()}
        return {what: count for what, count in found.items() if count}

    def _flow_runs(self) -> dict[object, object]:
        return dict(asked(self.work / "prefect" / "prefect.db", "SELECT id, state_type FROM flow_run"))

    def _copy(self, source: Path, target: Path) -> None:
        """A whole database into another, whoever has that open."""
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target, timeout=60)) as new:
            old.backup(new)
