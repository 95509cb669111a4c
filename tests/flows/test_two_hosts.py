"""A whole night whose store is a bucket, and another host that goes on with it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import boto3
import pytest

from recsys.synthetic import shop
from tests import fork_server
from tests.bucket import Server

KNOBS = [
    "teacher.width=16", "teacher.dropout=0.1", "teacher.epochs=2", "search.widths=[16]", "search.trials=2",
    "search.epochs=1", "compress.keep_ffn=[1.0]", "compress.recovery_epochs=0", "compress.max_loss=0.9",
    "data.history_length=16", "data.min_users=40", "gate.min_users=40",
]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


def night(home: Path, data: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RECSYS_", "PREFECT_", "MLFLOW_", "XDG_", "AWS_"))}
    one = {"RECSYS_THREADS": "1", "OMP_NUM_THREADS": "1", "HOME": "/proc/nobody"}
    words = ["nightly", "--home", home, "--events", data / "events.parquet", "--items", data / "items.parquet"]
    return fork_server.run([*words, *(word for knob in KNOBS for word in ("--set", knob))], {**kept, **one, **env})


def test_another_host_goes_on_with_the_night_of_the_first(server, tmp_path, orchestrator):
    aws = {
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.url,
    }
    keys = {"aws_access_key_id": "me", "aws_secret_access_key": "mine", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=server.url, **keys).create_bucket(Bucket="shop")
    env = {**aws, **orchestrator, "RECSYS_STORE": "s3://shop/store"}
    shop(users=300, items=48, events_a_user=20, randomness=0.3, seed=1, days=60).write(tmp_path / "data")

    first, second = tmp_path / "first", tmp_path / "second"
    done = night(first, tmp_path / "data", env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (first / "store").exists()
    shutil.rmtree(first / "cache")  # what the second reads it has from the bucket

    same = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{first}/mlflow/mlflow.db",
        "RECSYS_VAULT_KEY": str(first / "vault" / "key"),
    }
    server.reset()
    done = night(second, tmp_path / "data", {**env, **same})
    assert done.returncode == 0, done.stdout + done.stderr
    head = json.loads(next((second / "cache" / "s3").glob("*/heads/last-night.json")).read_text())
    story = json.loads(Path(head["report"]).with_suffix(".json").read_text())
    assert head["decision"] == "NO CHANGE"
    assert Path(head["report"]).is_relative_to(second)
    assert {step["name"] for step in story["steps"] if not step["reused"]} <= {"promote"}, "which looks again"
    sent = [path for method, path in server.seen if method == "PUT" and "/heads/" not in path]
    assert sent == []
