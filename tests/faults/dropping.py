"""A proxy on loopback that loses answers: a request reaches its server and has its effect, and who asked hears nothing.

It keeps a diary of what kinds of requests wrote something, so that a night that was left alone tells which there are.
"""

import contextlib
import hashlib
import http.client
import re
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

WRITING = ("POST", "PUT", "PATCH", "DELETE")
ALWAYS = 1 << 30
EVERY = "every"

_OF_ONE_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")
_PATTERNS = (  # what is of one request alone in a path, and what stands for it
    (r"(?<=/mlflow-artifacts/artifacts/)[^?]*/models/.*", "{file of a model}"),
    (r"(?<=/mlflow-artifacts/artifacts/)(?!\{).*", "{file of a run}"),
    (r"\?.*", ""),
    (r"/(m-)?[0-9a-f]{32}(?=/|$)", "/{id}"),
    (r"/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=/|$)", "/{id}"),
    (r"/\d+(?=/|$)", "/{number}"),
)


def kind_of(method: str, path: str) -> str:
    """A request without what is its own: "PATCH /api/flow_runs/{id}"."""
    for pattern, instead in _PATTERNS:
        path = re.sub(pattern, instead, path)
    return f"{method} {path}"


@dataclass(frozen=True)
class Loss:
    """Of the requests of a kind the one with this number, from 1, is answered to nobody, so many times in a row.

    `kind` may be the end of one, and EVERY all of them; number 0 is each.
    """

    kind: str
    number: int
    times: int = 1

    def meets(self, kind: str, number: int) -> bool:
        """Whether this is such a request."""
        return (self.kind == EVERY or kind.endswith(self.kind)) and self.number in (0, number)


class Dropping:
    """Stands before a server; forwards all, but for what is to be lost."""

    def __init__(self, behind: str) -> None:
        """`behind`: the server's address; `url` has the same path."""
        place = urlsplit(behind)
        self.behind = (str(place.hostname), int(place.port or 80))
        self._lock = threading.Lock()
        self.lose(None)
        handler = type("Handler", (_Handler,), {"dropping": self})
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._proxy.server_port}{place.path}"

    @classmethod
    @contextlib.contextmanager
    def before(cls, behind: str) -> Iterator[Self]:
        """One for the length of a block."""
        made = cls(behind)
        try:
            yield made
        finally:
            made._proxy.shutdown()
            made._proxy.server_close()

    def lose(self, loss: Loss | None) -> None:
        """From now on; all that was counted is forgotten."""
        with self._lock:
            self.loss = loss
            self.diary: list[str] = []  # kinds of the writing requests in their order, repetitions left out
            self.lost = 0  # answers
            self.asked = 0  # how often the request came whose answer is lost
            self._counts: Counter[str] = Counter()
            self._aimed: dict[str, int] = {}  # how often the answer was lost, by request

    def loses(self, method: str, path: str, body: bytes) -> bool:
        """Whether nobody will hear the answer to this request, which is counted."""
        if method not in WRITING:
            return False
        kind, request = kind_of(method, path), f"{method} {path} {hashlib.sha256(body).hexdigest()}"
        with self._lock:
            loss = self.loss
            if request not in self._aimed:
                self._counts[kind] += 1
                self.diary.append(kind)
                if loss is None or not loss.meets(kind, self._counts[kind]):
                    return False
                self._aimed[request] = 0
            assert loss is not None
            self.asked += 1
            if self._aimed[request] == loss.times:
                return False
            self._aimed[request] += 1
            self.lost += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    dropping: Dropping
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        if self.headers.get("Upgrade"):
            self._tunnel()
            return
        body = self._body()
        lost = self.dropping.loses(self.command, self.path, body)
        try:
            status, headers, content = self._forward(body)
        except (OSError, http.client.HTTPException):  # the server is gone
            self._hang_up()
            return
        if lost:
            self._hang_up()
            return
        with contextlib.suppress(OSError):
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD" and status not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.dropping.behind, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_ONE_HOP:
                    connection.putheader(name, value)
            if body or self.command in WRITING:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in _OF_ONE_HOP]
            return reply.status, kept, reply.read()

    def _tunnel(self) -> None:
        """A web socket: bytes to and fro until one side ends."""
        self.close_connection = True
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        with contextlib.suppress(OSError), socket.create_connection(self.dropping.behind, timeout=60) as behind:
            behind.sendall(f"{self.requestline}\r\n{head}\r\n".encode("latin-1"))
            other = {behind: self.connection, self.connection: behind}
            while True:
                for side in select.select(list(other), [], [])[0]:
                    if not (content := side.recv(1 << 16)):
                        return
                    other[side].sendall(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
