"""Where a shared store lies: s3://bucket/prefix, at Amazon's or at another endpoint."""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from typing import Self

from recsys.errors import ConfigError

_SHAPE = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?\Z")


@dataclass(frozen=True)
class Address:
    """A bucket, what the names of the store in it begin with, and the server (empty: Amazon's, or what AWS's own files say)."""

    bucket: str
    prefix: str
    endpoint: str
    era: int = 0  # tasks/adapters/era.py; what RECSYS_STORE says is the same in all of them

    @classmethod
    def of(cls, text: str, endpoint: str = "") -> Self:
        """Of "s3://bucket/prefix"; the prefix may be missing. ConfigError for any other shape."""
        match = _SHAPE.match(text)
        prefix = (match[2] or "").strip("/") if match else ""
        if match is None or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            mend = "Write s3://bucket/prefix, or a folder."
            raise ConfigError(f"{text!r} is no place for a store", where="RECSYS_STORE", mend=mend)
        return cls(match[1], prefix, endpoint)

    @classmethod
    def from_environment(cls, text: str) -> Self:
        """At the endpoint of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL."""
        return cls.of(text, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")

    @property
    def text(self) -> str:
        """As it is written in RECSYS_STORE."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def below(self) -> str:
        """What the names of its objects begin with; empty: nothing."""
        return "/".join(part for part in (self.prefix, f"era-{self.era}" if self.era else "") if part)

    def in_era(self, era: int) -> Self:
        """The same store in another era."""
        return replace(self, era=era)

    @property
    def folder(self) -> str:
        """A name for this host's cache of it: no two addresses share one, nor two eras, whose names begin alike."""
        name = f"{self.bucket}-{hashlib.sha256(f'{self.endpoint} {self.text}'.encode()).hexdigest()[:12]}"
        return f"{name}-era-{self.era}" if self.era else name
