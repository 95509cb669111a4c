"""What Prefect's server could not write down, as a sentence: its own error is a page of calls and a number."""

import shutil
import sys

from recsys.errors import HomeError, RecsysError
from tasks.adapters.settings import Settings


def of_prefect(error: Exception) -> RecsysError | None:
    """The sentence of an answer of Prefect's server that is an error of its own; None of anything else."""
    exceptions = sys.modules.get("prefect.exceptions")  # what has not imported Prefect has not heard from it
    if exceptions is None or not isinstance(error, exceptions.PrefectHTTPStatusError):
        return None
    settings, status = Settings.from_environment(), error.response.status_code
    if status < 500:
        return None
    free = shutil.disk_usage(settings.prefect).free
    return HomeError(
        f"Prefect's server could not write down how this ended (its answer was {status}); {free:,} bytes are free",
        where=str(settings.prefect),
        mend=f"Make room, or read the server's log in {settings.logs}; then run the same command again.",
    )
