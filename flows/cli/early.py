"""What takes seconds to be ready is begun before Python imports: Prefect's server and MLflow's database."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

from recsys.importing import importing
from tasks.adapters.passing_server import PassingServer
from tasks.adapters.settings import Settings


@contextmanager
def made_ready(settings: Settings) -> Iterator[None]:
    """Inside, import what the flow needs; after it all is there, until the command ends.

    RecsysError when Prefect's server does not start.
    """
    server, fresh = None, not (settings.prefect / "prefect.db").exists()
    if "PREFECT_API_URL" not in os.environ:  # else there is one
        server = PassingServer(settings.logs / "passing-prefect.log")
        atexit.register(server.stop)
        settings.export(server.url)
    with importing():
        yield
        from tasks.adapters import expectations
        from tasks.adapters.tracking import Tracking

        _ = Tracking(settings).experiment_id
        if server and fresh:
            expectations.imported()  # while its database is made; later nights may have nothing to validate
        if server:
            server.wait()
