"""What a serving process serves just now, and how it stands with the registry. Knows neither MLflow nor HTTP."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from recsys.runtime import Runtime

Following = Literal["current", "stale", "refused", "empty", "starting"]


@dataclass(frozen=True)
class ServedModel:
    """A model that passed its check. A request holds on to it, so that no answer mixes two."""

    runtime: Runtime
    version: int
    digest: str
    as_of: int | None  # seconds UTC, exclusive
    since: float  # seconds UTC, when this process began to serve it

    @property
    def as_of_text(self) -> str | None:
        """ISO 8601, UTC."""
        return None if self.as_of is None else iso(self.as_of)


@dataclass(frozen=True)
class Standing:
    """How the process stands with the registry."""

    state: Following
    sentence: str
    answered: float | None  # seconds UTC, when the registry last answered
    swaps: int  # models that replaced another one
    refused: int  # champions that failed their check, each counted once


class Source(Protocol):
    """Whatever knows the current model."""

    def current(self) -> ServedModel | None:
        """The model to serve; None where there is none yet."""

    def standing(self) -> Standing:
        """How it was come by."""


def iso(seconds: float) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
