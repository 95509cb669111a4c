"""What takes seconds to be ready is begun while Python still imports: Prefect's server and MLflow's database."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tasks.adapters.settings import Settings


@contextmanager
def made_ready(settings: Settings) -> Iterator[None]:
    """Inside, import what the flow needs; after it both are there. What fails here fails again, and is told, later."""
    from prefect.client.orchestration import get_client

    if "PREFECT_API_URL" not in os.environ:  # else there is a server, and three seconds are saved
        import prefect.server.api.server  # noqa: F401  before the thread: no two threads import one package

    def start_server() -> None:
        with get_client(sync_client=True) as client:
            client.api_healthcheck()

    with ThreadPoolExecutor(1) as beside:
        beside.submit(start_server)
        yield
        from tasks.adapters.tracking import Tracking

        _ = Tracking(settings).experiment_id
