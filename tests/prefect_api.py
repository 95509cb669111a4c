"""A Prefect server as a test speaks to it: by its API, with the patience of Prefect's own client."""

import time
from collections.abc import Callable
from typing import Any

import httpx

_PATIENCE = 60  # seconds


class PrefectApi:
    """One server. An answer that is an error is raised as httpx.HTTPStatusError."""

    def __init__(self, url: str) -> None:
        """`url` ends with /api."""
        self.http = httpx.Client(base_url=url, timeout=60)

    def get(self, path: str) -> Any:
        return self._asked(lambda: self.http.get(path))

    def post(self, path: str, **body: Any) -> Any:
        return self._asked(lambda: self.http.post(path, json=body))

    def patch(self, path: str, **body: Any) -> None:
        self._asked(lambda: self.http.patch(path, json=body))

    def deployment(self, name: str) -> dict[str, Any]:
        """That of the flow of this name."""
        found: dict[str, Any] = self.get(f"deployments/name/{name}/{name}")
        return found

    def deployed(self, name: str) -> bool:
        return self.http.get(f"deployments/name/{name}/{name}").status_code == httpx.codes.OK

    def start(self, flow: str, **parameters: Any) -> str:
        """The id of the run that its deployment was asked for, with the deployment's parameters but these."""
        run: str = self.post(f"deployments/{self.deployment(flow)['id']}/create_flow_run", parameters=parameters)["id"]
        return run

    def schedule(self, name: str, one_more: dict[str, Any]) -> None:
        """Beside the schedules that the deployment has."""
        path = f"deployments/{self.deployment(name)['id']}/schedules"
        self._asked(lambda: self.http.post(path, json=[one_more]))

    def run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"flow_runs/{run}")
        return found

    def _asked(self, question: Callable[[], httpx.Response]) -> Any:
        """Asked again while the server's database is locked (503): its own client does the same."""
        deadline = time.monotonic() + _PATIENCE
        while (reply := question()).status_code == httpx.codes.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
            time.sleep(0.3)
        reply.raise_for_status()
        return reply.json() if reply.content else None
