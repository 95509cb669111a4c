"""`recsys serve` over a small untrained model: asked in process and through a socket, and what must hold of its answers."""

import asyncio
import json
import logging
import select
import socket
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn

from flows.cli.serve import listen
from recsys.decoder import DecoderShape
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.served_model import ServedModel, Standing
from recsys.student import Student
from recsys.web import app_of
from recsys.web_messages import Answer, BatchAnswer
from tests.fuzz.law import BreachError, require
from tests.fuzz.mutator import Ask

ITEMS = 30
KINDS = ("lamp", "mug", "lamp|mug")
_WAIT_SECONDS = 2
"""After which a silent server is taken to wait for the rest of a request."""


class Shelf:
    """The one model, the app over it, and a server of that app. A source of models itself."""

    def __init__(self, folder: Path) -> None:
        student = Student.untrained(DecoderShape.of(ITEMS, 16, 1, 8), 0.0, seed=0).eval()
        ids = [f"item-{code}" for code in range(1, ITEMS + 1)]
        self.kind_of = {item_id: KINDS[place % 3] for place, item_id in enumerate(ids)}
        catalog = Catalog(ids, [f"<b>{code}" for code in ids], list(self.kind_of.values()), [None] * ITEMS)
        export(student, Publication(catalog, np.arange(ITEMS, 0, -1), "exclude", {"student": "ab" * 32}), 8, folder)
        self.model = ServedModel(Runtime.open(folder), 1, "cd" * 32, 1_700_000_000, 1_700_000_100.0)
        self.app, self.loop, self._server = app_of(self, threads=1), asyncio.new_event_loop(), None
        self.errors: list[str] = []

    def current(self) -> ServedModel:
        """Always the same."""
        return self.model

    def standing(self) -> Standing:
        """Well."""
        return Standing("current", "it is the champion", time.time(), 0, 0)

    def ask(self, one: Ask) -> str:
        """Puts a request, in process or by the socket. "accepted" or "refused"; BreachError where the law is."""
        status, body = (
            self.loop.run_until_complete(self._in_process(one)) if one.kind == "request" else self._by_wire(one)
        )
        require(status < 500, f"status {status}: {body[:300]!r}")
        if status != 200:
            if one.kind == "request" and one.method != "HEAD":
                self._refusal(status, body)
            return "refused"
        if one.method == "POST" and one.path.startswith("/recommend"):
            self._answer(one, body)
        return "accepted"

    def close(self) -> None:
        """Ends the server, where one was started."""
        if self._server:
            self._server.should_exit = True
            self._thread.join(10)
        self.loop.close()

    async def _in_process(self, one: Ask) -> tuple[int, bytes]:
        headers = [*one.headers, (b"content-length", str(len(one.raw)).encode() if one.told is None else one.told)]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": one.method, "path": one.path, "raw_path": one.path.encode(),
                 "query_string": b"", "root_path": "", "scheme": "http", "headers": headers, "client": ("127.0.0.1", 1), "server": ("x", 1)}  # fmt: skip
        half = len(one.raw) // 2
        pieces = [
            {"type": "http.request", "body": one.raw[:half], "more_body": True},
            {"type": "http.request", "body": one.raw[half:], "more_body": False},
        ]
        told: list[dict] = []

        async def receive() -> dict:
            return pieces.pop(0) if pieces else {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            told.append(message)

        await self.app(scope, receive, send)
        return told[0]["status"], b"".join(message.get("body", b"") for message in told[1:])

    def _refusal(self, status: int, body: bytes) -> None:
        found = json.loads(body)
        require(
            status >= 400 and set(found) == {"error"} and 0 < len(found["error"]) <= 500, f"{status}: {body[:300]!r}"
        )
        require(all(c.isprintable() for c in found["error"]), f"characters no log should get: {found['error'][:300]!r}")

    def _answer(self, one: Ask, body: bytes) -> None:
        asked = json.loads(one.raw) if one.told is None and one.kind == "request" else None
        if one.path.endswith("batch"):
            rows = BatchAnswer.model_validate_json(body).answers
            require(not asked or len(rows) == len(asked["requests"]), "other answers than questions")
        else:
            rows = [Answer.model_validate_json(body)]
        for row, question in zip(
            rows, (asked["requests"] if one.path.endswith("batch") else [asked]) if asked else [], strict=bool(asked)
        ):
            ids, scores = [item.item_id for item in row.items], [item.score for item in row.items]
            require(
                len(ids) == len(set(ids)) <= int(question.get("k", 10)), f"{len(ids)} items for {question.get('k', 10)}"
            )
            require(
                scores == sorted(scores, reverse=True) and np.isfinite(scores).all(), "not in the order of the scores"
            )
            require(bool(ids) == (row.reason is None), "no items and no reason, or both")
            barred = {*question.get("exclude", ()), *question.get("history", ()), *question.get("session", ())}
            require(not barred & set(ids), "an excluded item is answered")
            allow, kinds = question.get("allow"), question.get("categories")
            require(allow is None or set(ids) <= set(allow), "an item that was not allowed")
            require(
                kinds is None or all({self.kind_of[i], *self.kind_of[i].split("|")} & set(kinds) for i in ids),
                "an item of another category",
            )

    # --- a real server ----------------------------------------------------------------------------------------------

    def _by_wire(self, one: Ask) -> tuple[int, bytes]:
        told = str(len(one.raw)).encode() if one.told is None else one.told
        head = f"{one.method} {one.path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
        head += (
            b"".join(name + b": " + value + b"\r\n" for name, value in one.headers)
            + b"content-length: "
            + told
            + b"\r\n\r\n"
        )
        reply = self._sent(one.raw if one.told == b"raw" else head + one.raw)
        require(not self.errors, f"the server's log: {self.errors[:1]}")
        well = self._sent(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        require(well.startswith(b"HTTP/1.1 200"), f"afterwards the server is not well: {well[:200]!r}")
        if not reply:
            return 400, b""  # hung up: what came was no whole request
        require(reply.startswith(b"HTTP/1.1 "), f"no HTTP: {reply[:100]!r}")
        return int(reply[9:12]), reply.rpartition(b"\r\n\r\n")[2]

    def _sent(self, raw: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._port()), timeout=60) as line:
            reply = b""
            try:
                line.sendall(raw)
                if not select.select([line], [], [], _WAIT_SECONDS)[0]:
                    line.shutdown(socket.SHUT_WR)  # it waits for more, and there is none
                while piece := line.recv(65_536):
                    reply += piece
            except TimeoutError:
                raise BreachError(f"no end after a minute, so far {reply[:100]!r}") from None
            except OSError:
                pass  # hung up on, as a server may
            return reply

    def _port(self) -> int:
        if self._server is None:
            listening = listen("127.0.0.1", 0)
            self._server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, access_log=False))
            self._server.install_signal_handlers = lambda: None
            self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
            watch = logging.Handler(logging.ERROR)
            watch.emit = lambda record: self.errors.append(
                record.getMessage()[:300] + repr(record.exc_info and record.exc_info[1])
            )
            logging.getLogger("uvicorn.error").addHandler(watch)
            self._thread.start()
            self._number = listening.getsockname()[1]
        return self._number
