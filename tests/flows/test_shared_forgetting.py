"""Two homes share a store: a user who is forgotten in one is gone from the bucket at once, and from the other with its next night."""

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.door import Door
from tasks.adapters.vault import forgotten
from tests import servers
from tests.bucket import Server
from tests.faults.night import Shop, objects_of, rows
from tests.flows.test_forget import LEARNT, command, found_in

AWS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_DEFAULT_REGION": "us-east-1"}
KEYS = {"aws_access_key_id": "me", "aws_secret_access_key": "mine", "region_name": "us-east-1"}
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Shared:
    """A shop whose nights two hosts run, each with a home of its own."""

    shop: Shop
    folder: Path
    environment: dict[str, str]
    url: str
    name: str  # of the bucket

    def key(self, host: str) -> Path:
        """Of its own, as every host has it; at first they are the same."""
        file = self.folder / f"{host}.key"
        if not file.exists():
            shutil.copy(self.shop.folder / "key", file)
        return file

    def recsys(self, host: str, *words: str, code: int = 0) -> str:
        return self._said(host, [*words, "--home", str(self.folder / host)], code)

    def night(self, host: str, code: int = 0) -> str:
        return self._said(host, self.shop.words(self.folder / host), code)

    def _said(self, host: str, words: list[str], code: int) -> str:
        done = command(self.shop, words, {**self.environment, "RECSYS_VAULT_KEY": str(self.key(host))})
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def bucket(self, into: Path) -> Path:
        """All that the bucket holds, as files."""
        client = boto3.client("s3", endpoint_url=self.url, **KEYS)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.name):
            for key in (each["Key"] for each in page.get("Contents", ())):
                (into / key).parent.mkdir(parents=True, exist_ok=True)
                (into / key).write_bytes(client.get_object(Bucket=self.name, Key=key)["Body"].read())
        return into


@pytest.fixture
def shared(orchestrator, tmp_path) -> Iterator[Shared]:
    server, name = Server(), f"shared-{next(NUMBERS)}"  # moto's buckets outlive its server
    boto3.client("s3", endpoint_url=server.url, **KEYS).create_bucket(Bucket=name)
    place = {"AWS_ENDPOINT_URL": server.url, "RECSYS_STORE": f"s3://{name}/store"}
    (tmp_path / "mlflow").mkdir()
    with servers.mlflow(tmp_path / "mlflow", f"sqlite:///{tmp_path}/mlflow/mlflow.db") as mlflow:
        environment = {**AWS, **place, "MLFLOW_TRACKING_URI": mlflow, **orchestrator}
        yield Shared(Shop(tmp_path / "shop").make(), tmp_path, environment, server.url, name)
    server.stop()


def learnt(store: Path) -> set[str]:
    """Step and digest of what was made from events."""
    return {f"{name.split()[0]} {digest}" for name, digest in objects_of(store).items() if name.split()[0] in LEARNT}


def test_who_is_forgotten_in_one_home_is_gone_from_the_bucket_and_then_from_the_other(shared, tmp_path):
    events = pq.read_table(shared.shop.folder / "events.parquet").sort_by("timestamp")
    user = pc.unique(events["user_id"])[0].as_py()  # the first that ever came, so that item codes depend on them
    names = {user, Door((shared.shop.folder / "key").read_bytes()).token(user)}

    shared.night("two")  # which reads the events, so its vault has the names
    assert "NO CHANGE" in shared.night("one")
    scores = tmp_path / "two" / "scores" / "1-v1"
    scores.mkdir(parents=True)
    (scores / "scores.json").write_text("{}")
    shared.recsys("two", "score", "--users", "all", "--out", str(scores / "recommendations.parquet"))
    assert found_in(shared.bucket(tmp_path / "before"), names), "the search finds them"
    assert {name.split("/")[0] for name in found_in(tmp_path / "two", names)} >= {"cache", "vault", "scores"}

    shared.recsys("one", "forget", user, "--yes")
    after = shared.bucket(tmp_path / "after")
    assert found_in(after, names) == {"store/era.json"}, "their token, on the list of the forgotten"
    assert {each.name for each in (after / "store").iterdir()} == {"era.json", "heads", "era-1"}
    assert {name for name in found_in(tmp_path / "one", names) if not name.startswith("cache/s3/")} == {
        "vault/users.sqlite"
    }

    assert "1 user forgotten in another home of this store" in shared.night("two")
    assert found_in(tmp_path / "two", names) == {"vault/users.sqlite"}
    assert list(forgotten(tmp_path / "two" / "vault")) == sorted(names - {user})
    assert len(pq.read_table(scores / "recommendations.parquet")) > 0
    shared.night("one")
    assert found_in(tmp_path / "one", names) == {"vault/users.sqlite"}
    assert found_in(shared.bucket(tmp_path / "then"), names) == {"store/era.json"}

    (shared.shop.folder / "events.parquet").rename(shared.shop.folder / "all.parquet")
    pq.write_table(events.filter(pc.not_equal(events["user_id"], user)), shared.shop.folder / "events.parquet")
    never = command(shared.shop, shared.shop.words(tmp_path / "never"), alone(shared))
    assert never.returncode == 0, never.stdout + never.stderr
    theirs, ours = (learnt(place) for place in (tmp_path / "never" / "store", tmp_path / "then" / "store" / "era-1"))
    assert theirs <= ours
    assert {each.split()[0] for each in ours - theirs} <= {"artifact"}, "the champion's"

    eras = "SELECT value FROM model_version_tags WHERE name = 'recsys-student' AND key = 'recsys.era' ORDER BY version"
    assert rows(tmp_path, eras) == [("0",), ("1",)]
    assert "forgotten" in shared.recsys("two", "promote", "--version", "1", "--approve", "Ada", "--reason", "x", code=2)


def alone(shared: Shared) -> dict[str, str]:
    """The same Prefect, and a store and MLflow of its own."""
    return {name: value for name, value in shared.environment.items() if name.startswith("PREFECT_")}
