"""`recsys serve`: the champion over HTTP, followed as it changes, in one process without torch."""

import functools
import logging
import os
import signal
import socket
import sys
from typing import Annotated

import pyarrow
import typer
from rich.console import Console

from flows.cli.home import HomeOption, open_home
from recsys.errors import ConfigError
from tasks.adapters.follow import Follower
from tasks.adapters.store import Store
from tasks.settle_alias import settle_alias
from tasks.workshop import Workshop

_SWITCH_SECONDS = 0.0005
"""How long a look at the registry may keep a request waiting for the interpreter; Python's own is ten times longer."""
_IDLE_SECONDS = 65
"""After which an idle connection is closed: longer than the minute of most proxies, so that none is cut in use."""
_DRAIN_SECONDS = 8
"""In which the requests under way may end after SIGTERM."""


def command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at who is champion.")] = 10.0,
    home: HomeOption = None,
) -> None:
    """Serve the champion, and each new one without a failed request. See /docs, /health and /metrics."""
    settings = open_home(home)
    import uvicorn

    from recsys.web import app_of

    follower = Follower(settings, Store(settings.store), functools.partial(Workshop.anew, settings), settle_alias)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    app = app_of(follower, threads=len(os.sched_getaffinity(0)))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
    )
    sys.setswitchinterval(_SWITCH_SECONDS)
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # Arrow's own keeps 30 MB for the one file that is read
    with listen(host, port) as listening:
        # also before uvicorn runs; and when it ends, it raises the signal that ended it once more
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, server.handle_exit)
        address = listening.getsockname()
        Console(highlight=False, soft_wrap=True).print(
            f"Serving on http://{host}:{address[1]}, until Ctrl-C or SIGTERM."
        )
        with follower.following(poll):
            server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. ConfigError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
        # asyncio sets it only for sockets whose protocol number is given; without it an answer waits 40 ms for an ACK
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            where="--host, --port",
            mend="Choose another port, or end what has it.",
        ) from None
