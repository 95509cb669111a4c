"""A PostgreSQL server of this machine's package, on loopback, in a folder that goes with it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

from tests.servers import free_port

PASSWORD = "canary-of-the-database-7f3a"
"""The server asks for none and takes any: it is there to be looked for where no secret belongs."""

_START_SECONDS = 120
_UNSAFE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")  # nothing of it outlives a crash


def binaries() -> Path | None:
    """The folder of initdb and postgres, which Debian puts on nobody's PATH, of the newest version; None: there is none."""
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), key=lambda path: int(path.parts[-2]), default=None)


class Postgres:
    """A running server. It refuses to be root's: started by root it is the user `postgres`, whose the folder is."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # pytest's is closed to other users
        self.port, self._programs = free_port(), programs
        become = ["setpriv", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            become += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        data = self.folder / "data"
        made = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "recsys",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run([*become, *made], check=True, capture_output=True, cwd=self.folder)
        places = ("listen_addresses=127.0.0.1", f"port={self.port}", f"unix_socket_directories={self.folder}")
        options = [word for option in (*places, *_UNSAFE) for word in ("-c", option)]
        self._log = self.folder / "log"
        with self._log.open("wb") as log:
            started = [*become, programs / "postgres", "-D", data, *options]
            self._server = subprocess.Popen(started, stdout=log, stderr=log, cwd=self.folder)
        self._wait()

    def database(self, name: str) -> str:
        """A new database, as it is written in an URL after the driver's name and ://."""
        with closing(self._connect()) as connection:
            connection.autocommit = True
            connection.cursor().execute(f'CREATE DATABASE "{name}"')
        return f"recsys:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def dump(self) -> bytes:
        """Everything in every database, as text."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--username", "recsys"]
        return subprocess.run([self._programs / "pg_dumpall", *words], check=True, capture_output=True).stdout

    def stop(self) -> None:
        """It is gone, and its folder with it, when this returns."""
        self._server.send_signal(signal.SIGINT)  # does not wait for its clients, as SIGTERM does
        self._server.wait()
        shutil.rmtree(self.folder)

    def _connect(self):
        import psycopg2

        return psycopg2.connect(host="127.0.0.1", port=self.port, user="recsys", dbname="postgres")

    def _wait(self) -> None:
        import psycopg2

        deadline = time.monotonic() + _START_SECONDS
        while True:
            assert self._server.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            try:
                self._connect().close()
                return
            except psycopg2.OperationalError:
                time.sleep(0.1)
