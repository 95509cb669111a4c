"""A run that has ended for Prefect, though its process lives, promotes nothing.

A machine that slept through its heartbeats is such a one. Whoever was told that it crashed would find a champion of it, and
another run may have taken its turn. What it made is kept: the same command again promotes it in seconds.
"""

import contextlib

import httpx
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from recsys.errors import HomeError


def require_running() -> None:
    """HomeError when Prefect has the present run as ended. Where Prefect does not answer, that cannot be known."""
    if flow_run.id is None:
        return
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        if state is not None and state.is_final():
            raise HomeError(
                f"Prefect has this run as {state.name}, so it promotes nothing",
                where=str(flow_run.name),
                mend="Run the same command again: what was made is kept, and it is promoted in seconds if it is fit.",
            )
