"""An S3 server on this machine, and a proxy before it that misbehaves when told to."""

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

KEPT = ("content-type", "content-length", "etag", "last-modified", "content-range", "accept-ranges")


class Server:
    """What speaks S3, behind the proxy; `fault` says what happens to a request: method, path and how often it came."""

    def __init__(self) -> None:
        self.moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.moto.start()
        self.behind = self.moto.get_host_and_port()
        self.fault: Callable[[str, str, int], str] = lambda method, path, time: ""
        self.seen: list[tuple[str, str]] = []
        self.times: Counter[tuple[str, str]] = Counter()
        self.one_at_a_time = threading.Lock()  # moto looks at a condition and then puts: not at once, as S3 does
        handler = type("Handler", (_Handler,), {"server_": self})
        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.proxy.server_port}"

    def reset(self) -> None:
        """Behaves well again, and has seen nothing."""
        self.fault = lambda method, path, time: ""
        self.seen.clear()
        self.times.clear()

    def stop(self) -> None:
        """Both are gone when this returns."""
        self.proxy.shutdown()
        self.proxy.server_close()
        self.moto.stop()


class _Handler(BaseHTTPRequestHandler):
    server_: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server_
        asked = (self.command, self.path.split("?")[0])
        with server.one_at_a_time:
            server.times[asked] += 1
            server.seen.append(asked)
            fault = server.fault(*asked, server.times[asked])
            if fault == "dropped":
                self._drop()
                return
            if fault.isdigit():
                status, headers, content = int(fault), {"content-length": "0"}, b""
            else:
                status, headers, content = self._forward(body)
        if fault == "lost":
            self._drop()
            return
        if fault == "slow":
            time.sleep(0.8)
        with suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if fault == "half" else content)
        if fault == "half":
            self._drop()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server_.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
        connection.request(self.command, self.path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        kept = {name: value for name, value in reply.getheaders() if name.lower() in KEPT or name.startswith("x-amz")}
        kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
        connection.close()
        length = reply.getheader("content-length") if self.command == "HEAD" else str(len(content))
        return reply.status, {**kept, "content-length": length or "0"}, content

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
