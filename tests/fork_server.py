"""Commands in processes of their own that need not import everything again: a process that has imported it forks.

    python tests/fork_server.py ADDRESS

Half of what a short night costs is importing Prefect, MLflow, Great Expectations and torch. A child of this process
is like any other (pid, environment, folder, exit code, what is done at its end), but torch has counted its threads
already.
"""

import array
import atexit
import functools
import gc
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    "torch._dynamo", "safetensors.torch", "pandas", "pyarrow.dataset", "scipy.sparse", "scipy.stats", "duckdb", "onnx", "optuna",
    "transformers.models.bert.modeling_bert", "accelerate", "great_expectations", "matplotlib.backends.backend_svg",
    "graphviz", "alembic.command", "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
    "prefect.server.api.server", "prefect.flow_engine", "prefect.artifacts", "rich.live", "rich.markdown", "typer",
    "flows.cli.app", "flows.nightly", "flows.monitor", "flows.score", "flows.promote", "flows.rollback", "flows.housekeeping",
)  # fmt: skip
OURS = ("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_", "TMPDIR")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Asked:
    """The words of a `recsys` command; or `-c`, a program in Python, and its words."""

    words: list[str]
    environment: dict[str, str]
    folder: str


def run(
    words: list[object], env: dict[str, str], cwd: Path | None = None, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of `recsys` with these words; of Python, where the first is `-c`."""
    asked = json.dumps([list(map(str, words)), env, str(cwd or os.getcwd())]).encode()
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        socket.socket(socket.AF_UNIX) as asking,
    ):
        asking.settimeout(timeout)
        with _STARTING:
            address = _server()
        asking.connect(address)
        fds = array.array("i", [out.fileno(), err.fileno()])
        asking.sendmsg([len(asked).to_bytes(8)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        asking.sendall(asked)
        code = int(asking.makefile().readline())
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


@functools.cache
def _server() -> str:
    """The address of this process's fork server, which ends when this process has."""
    address = f"\0recsys-{uuid.uuid4().hex}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment = {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, address[1:]]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    _SERVERS.append(server)
    return address


_SERVERS: list[subprocess.Popen[bytes]] = []  # held: who drops one closes its stdin, and it ends
_STARTING = threading.Lock()


def serve(address: str) -> Asked:
    """Forks for whoever asks, as long as stdin is open. Returns in children alone, with what each is to run."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        if os.fork() == 0:
            _end_with_stdin(address)
        print("ready", flush=True)
        while True:
            asking, _ = listening.accept()
            size, fds = _received(asking)
            if size and os.fork() == 0:
                listening.close()
                return _taken(asking, size, fds)
            for fd in fds:
                os.close(fd)
            asking.close()
            while _reaped(wait=not size):
                pass
            if not size:
                shutil.rmtree(os.environ["RECSYS_HOME"])
                os._exit(0)


def _end_with_stdin(address: str) -> NoReturn:
    sys.stdin.buffer.read()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        asking.sendall(bytes(8))
    os._exit(0)


def _reaped(wait: bool) -> bool:
    try:
        return os.waitpid(-1, 0 if wait else os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _received(asking: socket.socket) -> tuple[int, list[int]]:
    """How long the question is, and where its answers go."""
    fds = array.array("i")
    size, ancillary, _, _ = asking.recvmsg(8, socket.CMSG_SPACE(2 * fds.itemsize))
    for _, _, data in ancillary:
        fds.frombytes(data)
    return int.from_bytes(size), list(fds)


def _taken(asking: socket.socket, size: int, fds: list[int]) -> Asked:
    """In a child, whose child returns and runs the command; it waits and says with which code that ended."""
    with asking.makefile("rb") as file:
        asked = Asked(*json.loads(file.read(size)))
    if worker := os.fork():
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(worker, 0)
        asking.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    asking.close()
    for fd, place in zip((os.open(os.devnull, os.O_RDONLY), *fds), (0, 1, 2), strict=True):
        os.dup2(fd, place)
        os.close(fd)
    return asked


def execute(asked: Asked) -> NoReturn:
    """Runs it and ends as an interpreter does, but for clearing its memory, which would copy all that was imported."""
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    tempfile.tempdir = None
    if "PREFECT_HOME" in os.environ:
        read_places_again()
    code: object = 0
    try:
        if asked.words[0] == "-c":
            sys.argv = ["-c", *asked.words[2:]]
            exec(compile(asked.words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = ["recsys", *asked.words]
            importlib.import_module("flows.cli.app").main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def import_everything() -> None:
    """Once; and what a command exports counts although Prefect is there already."""
    from tasks.adapters.settings import Settings

    Settings.from_environment(Path(tempfile.mkdtemp())).prepare().export()
    for name in IMPORTED:
        importlib.import_module(name)
    with_new_databases()
    export = Settings.export

    def exported(self: Settings, passing: str | None = None) -> Settings:
        export(self, passing)
        read_places_again()
        return self

    Settings.export = exported  # type: ignore[method-assign]
    gc.freeze()


def with_new_databases() -> None:
    """Homes begin with databases that were made before (tests/new_databases.py)."""
    from tasks.adapters import connection, passing_server
    from tests import new_databases

    make, begin = connection._make, passing_server.PassingServer.__init__

    def made(database: Path) -> None:
        new_databases.mlflow(database)
        make(database)

    def begun(self: passing_server.PassingServer, log: Path) -> None:
        new_databases.prefect(Path(os.environ["PREFECT_HOME"]))
        begin(self, log)

    new_databases.folder()  # now: a command takes an environment of its own
    connection._make = made
    passing_server.PassingServer.__init__ = begun  # type: ignore[method-assign]


def read_places_again() -> None:
    """Prefect reads them when it is imported: that is, here, before a command could name them."""
    importlib.import_module("prefect.context").refresh_global_settings_context()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import_everything()
    execute(serve("\0" + sys.argv[1]))
