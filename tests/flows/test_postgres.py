"""The night over servers on PostgreSQL and a store in S3: what it makes is what a home of its own makes, to the bit."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests import fork_server, servers
from tests.bucket import Server
from tests.faults.night import Shop, Truth, objects_of
from tests.postgres import PASSWORD, Postgres

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-bucket-7f3a",
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow-7f3a",
    "MLFLOW_BACKEND_STORE_URI": PASSWORD,  # in the database's address
}
AWS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Server]:
    server = Server()
    keys = {"aws_access_key_id": "me", "aws_secret_access_key": "mine", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=server.url, **keys).create_bucket(Bucket="postgres")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def common(bucket, postgres, tmp_path_factory) -> Iterator[dict[str, str]]:
    """What several machines have in common, as variables: a bucket and Prefect's server over PostgreSQL."""
    database = f"postgresql+asyncpg://{postgres.database('prefect')}"
    with servers.prefect(tmp_path_factory.mktemp("prefect"), database) as prefect:
        yield {**AWS, "AWS_ENDPOINT_URL": bucket.url, "PREFECT_API_URL": prefect}


@contextlib.contextmanager
def new_mlflow(postgres: Postgres, folder: Path) -> Iterator[dict[str, str]]:
    """MLflow's server over a new database, and both as variables."""
    folder.mkdir()
    database = f"postgresql://{postgres.database(folder.name)}"
    with servers.mlflow(folder, database) as url:
        yield {"MLFLOW_TRACKING_URI": url, "MLFLOW_BACKEND_STORE_URI": database}


@dataclass(frozen=True)
class Alone:
    """A shop, and the home of one machine after a night of it."""

    shop: Shop
    home: Path

    def night(self, home: Path, environment: dict[str, str]) -> str:
        return self.recsys(self.shop.words(home), environment)

    def recsys(self, words: list[object], environment: dict[str, str], code: int = 0) -> str:
        done = fork_server.run(words, self.shop.environment(environment))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory, common) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    alone = Alone(Shop(folder / "shop").make(), folder / "home")
    alone.night(alone.home, {"PREFECT_API_URL": common["PREFECT_API_URL"]})
    return alone


def rows(database: Any, query: str) -> list[tuple[object, ...]]:
    with database.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def story_of(home: Path) -> tuple[str, set[str]]:
    """What the last night of a home with a bucket came to, and the steps that it did not find done."""
    head = json.loads(next((home / "cache" / "s3").glob("*/heads/last-night.json")).read_text())
    story = json.loads(Path(head["report"]).with_suffix(".json").read_text())
    return head["decision"], {step["name"] for step in story["steps"] if not step["reused"]}


@dataclass(frozen=True)
class There:
    """A home whose first night was over the servers, and where it left what it made."""

    home: Path
    mlflow: Path
    said: str


@pytest.fixture(scope="module")
def there(alone, common, postgres, tmp_path_factory) -> There:
    folder = tmp_path_factory.mktemp("there")
    with new_mlflow(postgres, folder / "mlflow-of-a-new-home") as mlflow:
        secret = {name: SECRETS[name] for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")}
        environment = {**common, **mlflow, **secret, "MLFLOW_TRACKING_USERNAME": "night"}
        said = alone.night(folder / "home", {**environment, "RECSYS_STORE": "s3://postgres/new"})
    return There(folder / "home", folder / "mlflow-of-a-new-home", said)


def test_a_night_over_postgresql_and_s3_makes_the_same_objects(alone, there):
    assert story_of(there.home)[0] == "PROMOTE"
    assert objects_of(next((there.home / "cache" / "s3").iterdir())) == objects_of(alone.home / "store")


def secrets_in(there: There, bucket: Server, postgres: Postgres) -> set[str]:
    """Which secrets of the environment are anywhere in what the night said and left, and where."""
    texts = {
        str(path): path.read_bytes()
        for folder in (there.home, there.mlflow)
        for path in folder.rglob("*")
        if path.is_file()
    }
    texts |= {"what it said": there.said.encode(), "PostgreSQL": postgres.dump()}
    client = boto3.client("s3", endpoint_url=bucket.url, aws_access_key_id="me", aws_secret_access_key="mine")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="postgres", Prefix="new/"):
        for key in (one["Key"] for one in page["Contents"]):
            texts[key] = client.get_object(Bucket="postgres", Key=key)["Body"].read()
    return {
        f"{name} in {place}"
        for place, text in texts.items()
        for name, value in SECRETS.items()
        if value.encode() in text
    }


def test_no_secret_of_the_environment_is_left_anywhere(there, bucket, postgres):
    planted = there.home / "logs" / "planted"
    planted.write_text(f"opened with {SECRETS['AWS_SECRET_ACCESS_KEY']}, {PASSWORD}")
    names = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_BACKEND_STORE_URI")
    assert secrets_in(there, bucket, postgres) == {f"{name} in {planted}" for name in names}
    planted.unlink()
    assert secrets_in(there, bucket, postgres) == set()


def test_a_home_that_moves_there_goes_on_as_if_nothing_had_happened(alone, bucket, common, postgres, tmp_path):
    psycopg2 = pytest.importorskip("psycopg2")
    home, before = alone.home, Truth.of(alone.home)
    with new_mlflow(postgres, tmp_path / "mlflow-of-a-moved-home") as mlflow:
        there = {**common, **mlflow, "RECSYS_STORE": "s3://postgres/moved"}
        for copied in (r"[1-9]\d+ rows", "no more rows"):  # done twice it is done once
            assert re.search(copied, alone.recsys(["move", "--home", home], there))
        alone.night(home, there)
        assert story_of(home)[0] == "NO CHANGE"
        assert story_of(home)[1] <= {"promote"}, "which looks again"
        with contextlib.closing(psycopg2.connect(mlflow["MLFLOW_BACKEND_STORE_URI"])) as database:
            assert Truth.read(home / "store", lambda query: rows(database, query)) == before
        gc_and_fsck_leave_the_bucket_alone(alone, bucket, there)
        lineage = alone.recsys(["lineage", "champion", "--home", home], there)
        assert "by nightly" in lineage
        assert "no run on record" not in lineage
        said = alone.recsys(["backup", "--home", home, "--to", tmp_path / "home.tar"], there)
        assert "Not in it: the vault's key, without which users cannot be named" in said
        assert "the models and runs in your own MLflow" in said
        assert "what s3://postgres/moved has and this host has not used" in said
    assert Truth.of(home) == before, "what is left behind"


def gc_and_fsck_leave_the_bucket_alone(alone: Alone, bucket: Server, there: dict[str, str]) -> None:
    """They free and mend the host's cache; what that lacks then is brought again."""
    cache = next((alone.home / "cache" / "s3").iterdir())
    bucket.reset()
    alone.recsys(["gc", "--home", alone.home, "--keep-nights", "1", "--keep-days", "0"], there)
    assert "All is well" in alone.recsys(["fsck", "--home", alone.home], there)
    manifest = json.loads(next(cache.glob("objects/artifact/*.json")).read_bytes())["manifest"]
    sha256 = next(file["sha256"] for file in manifest["files"] if file["name"] == "model.onnx")
    blob = cache / "blobs" / sha256[:2] / sha256
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:-1])
    assert "artifact/model.onnx" in alone.recsys(["fsck", "--home", alone.home], there, code=1)
    alone.recsys(["fsck", "--home", alone.home, "--repair"], there)
    assert "All is well" in alone.recsys(["fsck", "--home", alone.home], there)
    assert blob.read_bytes() == content
    assert {method for method, path in bucket.seen if "/heads/" not in path} <= {"GET", "HEAD"}
