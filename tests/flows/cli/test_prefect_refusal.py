"""An error of Prefect's server is told in a sentence; what the caller did wrong is not taken for one."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from flows.cli.prefect_refusal import of_prefect
from recsys.errors import HomeError


@pytest.fixture
def answering():
    """A server that answers everything with a status; gives the error that Prefect's client makes of it."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *words):
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()

    def error(status: int) -> PrefectHTTPStatusError:
        response = httpx.get(f"http://127.0.0.1:{server.server_port}/{status}")
        with pytest.raises(httpx.HTTPStatusError) as refused:
            response.raise_for_status()
        return PrefectHTTPStatusError.from_httpx_error(refused.value)

    yield error
    server.shutdown()
    server.server_close()


def test_a_server_that_could_not_write_is_told_with_the_place_and_the_room_there(answering, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))
    (tmp_path / "prefect").mkdir()
    told = of_prefect(answering(500))
    assert isinstance(told, HomeError)
    assert str(tmp_path / "prefect") in str(told)
    assert "its answer was 500" in str(told)
    assert "bytes are free" in str(told)


def test_what_is_no_error_of_the_server_stays_what_it_is(answering):
    assert of_prefect(answering(404)) is None
    assert of_prefect(ValueError("500")) is None
