"""A Prefect server for the length of one command, where none runs: begun at once, and gone with the command.

Prefect starts one by itself too, but only once the caller has imported all of Prefect's server, seconds later, and
leaves it behind when the caller is killed.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from recsys.errors import RecsysError
from recsys.fleet import end_with_parent
from recsys.importing import importing

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 120, 5

# What Prefect gives the server that it starts by itself: no page, and no services but those that a single run needs.
_PASSING = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class PassingServer:
    """Listens from the first moment; what is asked before it is ready waits."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.create_server((HOST, 0)) as listening, log.open("ab") as output:
            self.url = f"http://{HOST}:{listening.getsockname()[1]}/api"
            descriptor = listening.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(descriptor), str(os.getpid())],
                env={**os.environ, **_PASSING, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for the command, which still has to tell it how it ended
            )

    def wait(self) -> None:
        """Until it answers. RecsysError when it does not."""
        try:
            with urlopen(f"{self.url}/health", timeout=START_SECONDS) as answer:
                json.load(answer)
        except (URLError, OSError, ValueError) as error:
            raise RecsysError(
                f"Prefect's server did not start: {error}", where=str(self.log), mend="Read its log, then try again."
            ) from None

    def stop(self) -> None:
        """Ends it, with time to write what it knows."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _main(descriptor: int, parent: int) -> None:
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it was killed before the line above, and nothing will tell
        return
    app = "prefect.server.api.server:create_app"
    with importing():  # here: the command that starts it has no use for them
        importlib.import_module(app.partition(":")[0])
        import uvicorn

    config = uvicorn.Config(app, factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
