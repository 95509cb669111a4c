"""`recsys notify`: whether a message arrives, and that no address is ever shown."""

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests import fork_server


def notify(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_"))}
    return fork_server.run(["notify", "--home", home, *words], kept)


def test_without_channels_it_says_how_to_make_one(tmp_path):
    done = notify(tmp_path)
    assert done.returncode == 2
    assert "notify.toml" in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


def test_a_test_goes_out_by_each_channel_and_one_that_fails_is_named(tmp_path):
    posts = []

    class Post(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    sink = ThreadingHTTPServer(("127.0.0.1", 0), Post)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    file = tmp_path / "notify.toml"
    file.write_text(
        f'webhook = "http://127.0.0.1:{sink.server_port}/canary"\nemail = "mailto://127.0.0.1:9/?from=canary@e.x&to=b@e.x"\n'
    )
    file.chmod(0o600)
    done = notify(tmp_path, "--test")
    sink.shutdown()
    assert [post["subject"] for post in posts] == ["recsys: a test"]
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no message went out by recsys-email" in " ".join(done.stderr.split())
    assert "canary" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
