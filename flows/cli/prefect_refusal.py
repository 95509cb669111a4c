"""What Prefect's server could not write down, or never heard, as a sentence: Prefect's own error is a page of calls."""

import os
import shutil
import sys

from recsys.errors import HomeError, RecsysError
from tasks.adapters.settings import Settings


def of_prefect(error: Exception) -> RecsysError | None:
    """The sentence of a server that answers with an error of its own, or not at all; None of anything else."""
    exceptions = sys.modules.get("prefect.exceptions")  # what has not imported Prefect has not heard from it
    if exceptions is None:
        return None
    if isinstance(error, exceptions.PrefectHTTPStatusError):
        return _refused(error.response.status_code)
    import httpx

    gone = next((each for each in (error, error.__cause__) if isinstance(each, httpx.TransportError)), None)
    return None if gone is None else _silent(str(gone) or type(gone).__name__)


def _refused(status: int) -> RecsysError | None:
    if status < 500:
        return None
    settings = Settings.from_environment()
    free = shutil.disk_usage(settings.prefect).free
    return HomeError(
        f"Prefect's server could not write down how this ended (its answer was {status}); {free:,} bytes are free",
        where=str(settings.prefect),
        mend=f"Make room, or read the server's log in {settings.logs}; then run the same command again.",
    )


def _silent(why: str) -> RecsysError:
    return HomeError(
        f"Prefect's server does not answer: {why}",
        where=os.environ.get("PREFECT_API_URL", ""),
        mend="Start it, or unset PREFECT_API_URL; then run the same command again: it goes on from what is finished.",
    )
