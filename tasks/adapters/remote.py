"""A bucket that several hosts share: a few verbs over S3, each patient, and each telling what is wrong and where.

What passes (500, 503, a time-out, a dropped connection) is asked again for some seconds. Everything here may be asked
twice: contents lie under their own sha256, and a name moves only from the state that was seen (If-Match,
If-None-Match), so that a request which took effect although its answer was lost is known again by reading it back.

Needs the extra `s3`; only an S3 store imports this.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError

from recsys.errors import ConfigError, HomeError
from tasks.adapters.address import Address

T = TypeVar("T")

PATIENCE = 8.0
"""Seconds for which what may pass is asked again. With the time-outs a dead server is told within 15."""

FIRST_WAIT = 0.1  # seconds before a question is asked again; then twice as long, up to two
ANSWER = 4.0  # seconds for which the answer to a question is waited for
ATTEMPTS = 4  # by boto3 itself, at each part of a large file

_DESCRIPTIONS = create_loader()  # what S3 is, read once a process instead of once a client
_HOPELESS = 30.0  # seconds after giving up in which nothing is asked twice: a command does not wait for every name
_CHUNK, _PART = 1 << 20, 64 << 20  # bytes read at a time, and bytes from which a file goes up in parts
_PASSING = {
    "SlowDown", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests",
    "ConditionalRequestConflict", "OperationAborted",
    "404",  # without a word: cut short, or from whatever stands between
}  # fmt: skip
_ABSENT = ("NoSuchKey",)
_MOVED = ("PreconditionFailed", "412", "NoSuchKey")
_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


@dataclass(frozen=True)
class Found:
    """A small object of the bucket. `etag` names this very state of it, `modified` is in seconds UTC."""

    content: bytes
    etag: str
    modified: float


@dataclass(frozen=True)
class _Clients:
    """Of one process: one for questions, which must not hang, and one for contents, which may take their time."""

    process: int
    asking: Any
    carrying: Any


class Remote:
    """What lies below an address. Every verb raises HomeError when the bucket does not answer or refuses."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._opened: _Clients | None = None
        self._hopeless_until = 0.0

    def where(self, name: str = "") -> str:
        """The full address of a name, for messages."""
        era = f"era-{self.address.era}" if self.address.era else ""
        place = "/".join(part for part in (self.address.text, era, name) if part)
        return f"{place} at {self._clients.asking.meta.endpoint_url}"

    def get(self, name: str) -> Found | None:
        """A small object; None when there is none of this name."""

        def read() -> Found:
            reply = self._clients.asking.get_object(**self._place(name))
            return Found(reply["Body"].read(), reply["ETag"], reply["LastModified"].timestamp())

        return self._ask(read, but=_ABSENT)

    def swap(self, name: str, content: bytes, seen: str | None) -> bool:
        """Puts a small object if its state is still the one that was `seen` (an etag; None: there was none).

        True when `content` is what the name holds now, whoever put it there: two who want the same have both had it.
        """
        condition = {"IfMatch": seen} if seen else {"IfNoneMatch": "*"}

        def put() -> bool:
            self._clients.asking.put_object(**self._place(name), Body=content, **condition)
            return True

        if self._ask(put, but=_MOVED):
            return True
        found = self.get(name)
        return found is not None and found.content == content

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when there is none of this name."""
        about = self._ask(lambda: self._clients.asking.head_object(**self._place(name)), but=("404",))
        return about["ContentLength"] if about else None

    def send(self, name: str, path: Path) -> None:
        """Puts a file, visible when it is whole. Large ones go up in parts; memory stays bounded."""
        parts = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=2)
        place = self._place(name)
        self._ask(lambda: self._clients.carrying.upload_file(str(path), *place.values(), Config=parts))

    def fetch(self, name: str, to: Path) -> bool:
        """Streams an object to a new file, going on where a connection broke; False when there is none of this name."""
        with to.open("xb") as file:

            def more() -> bool:
                rest = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
                reply = self._clients.carrying.get_object(**self._place(name), **rest)
                for chunk in reply["Body"].iter_chunks(_CHUNK):
                    file.write(chunk)
                return True

            there = self._ask(more, but=_ABSENT, progress=file.tell)
            file.flush()
            os.fsync(file.fileno())
        return bool(there)

    def delete(self, name: str) -> None:
        """There is none of this name afterwards."""
        self._ask(lambda: self._clients.asking.delete_object(**self._place(name)), but=_ABSENT)

    def names(self, folder: str) -> Iterator[str]:
        """Every name below a folder, a thousand a request."""
        place = self._place(f"{folder}/")
        query = {"Bucket": place["Bucket"], "Prefix": place["Key"]}
        while True:
            page = self._ask(lambda: self._clients.asking.list_objects_v2(**query)) or {}
            yield from (each["Key"].removeprefix(self._place("")["Key"]) for each in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def _place(self, name: str) -> dict[str, str]:
        """Bucket and key of a name, in the order in which boto3 takes them."""
        below = self.address.below
        return {"Bucket": self.address.bucket, "Key": f"{below}/{name}" if below else name}

    @property
    def _clients(self) -> _Clients:
        """Connections are not shared with a forked child."""
        if self._opened is None or self._opened.process != os.getpid():
            try:
                session = botocore.session.Session()
                session.register_component("data_loader", _DESCRIPTIONS)
                session = boto3.session.Session(botocore_session=session)
                asking = _client(session, self.address, read_timeout=ANSWER, retries={"total_max_attempts": 1})
                retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
                carrying = _client(session, self.address, read_timeout=60, retries=retries)
            except (BotoCoreError, ValueError) as error:
                mend = "Check RECSYS_STORE, AWS_ENDPOINT_URL, AWS_PROFILE and AWS_DEFAULT_REGION."
                raise ConfigError(f"the store's address: {error}", where=self.address.text, mend=mend) from error
            self._opened = _Clients(os.getpid(), asking, carrying)
        return self._opened

    def _ask(
        self, call: Callable[[], T], *, but: tuple[str, ...] = (), progress: Callable[[], int] = lambda: 0
    ) -> T | None:
        """What `call` returns; None for an error code of `but`. Patience begins anew when there was `progress`."""
        began, wait, before = time.monotonic(), FIRST_WAIT, 0
        while True:
            try:
                return call()
            except (ClientError, BotoCoreError, Boto3Error) as raised:
                error = raised.__context__ if isinstance(raised, Boto3Error) and raised.__context__ else raised
                if _code(error) in but:
                    return None
                if progress() > before:
                    began, before = time.monotonic(), progress()
                patience = PATIENCE if began > self._hopeless_until else 0.0
                if not _passes(error) or time.monotonic() - began > patience:
                    if _passes(error):
                        self._hopeless_until = time.monotonic() + _HOPELESS
                    what, mend = _sentences(error)
                    raise HomeError(what, where=self.where(), mend=mend) from raised
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, 2.0)


def _client(session: Any, address: Address, **more: Any) -> Any:
    """Other servers than Amazon's are asked by path, and for nothing that not all of them know."""
    config = Config(
        connect_timeout=3,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if address.endpoint else "auto"},
        user_agent_extra="recsys-factory",
        **more,
    )
    return session.client("s3", endpoint_url=address.endpoint or None, config=config)


def _code(error: BaseException) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _passes(error: BaseException) -> bool:
    """Whether asking again may help."""
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return _code(error) in _PASSING or status in (408, 429) or (status >= 500 and status != 501)
    return isinstance(error, NoConnectionError | HTTPClientError | IncompleteReadError | ResponseParserError)


def _sentences(error: BaseException) -> tuple[str, str]:
    """What is wrong with the bucket, and what to check."""
    code = _code(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        mend = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        return "there are no credentials for the store", mend
    if code == "NoSuchBucket":
        return "the store's bucket is not there", "Make it, or check RECSYS_STORE and AWS_ENDPOINT_URL."
    if code in _REGION:
        return f"the store's bucket is in another region ({code})", "Set AWS_DEFAULT_REGION to the bucket's."
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status in (401, 403):
            mend = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the clock and the bucket's policy: getting, putting, listing and, to forget users, deleting must be allowed."
            return f"the store refuses these credentials ({code})", mend
        if status == 501:
            return "the store's server lacks something it must have, conditional puts perhaps", "Use another server."
        if _passes(error):
            said = f"{status} {code}" if code != str(status) else code
            return f"the store's server is not well: it kept answering {said}", "Wait, or check AWS_ENDPOINT_URL."
        return f"the store's server refuses: {error}", "Check RECSYS_STORE and AWS_ENDPOINT_URL."
    mend = "Check AWS_ENDPOINT_URL, the network, and that the server runs."
    return f"the store's server does not answer: {error}", mend
