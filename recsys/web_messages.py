"""What `recsys serve` is asked and what it answers: the JSON of its pages, which is also its OpenAPI description."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_ITEMS = 1000
"""The largest k."""
LONGEST_LIST = 10_000
"""Item ids in one list of a request."""
MOST_REQUESTS = 1000
"""Requests of a batch."""
MOST_ANSWERED = 50_000
"""Items that a batch may ask for, over all its requests."""

ItemId = Annotated[str, Field(min_length=1, max_length=512)]
ItemIds = Annotated[list[ItemId], Field(max_length=LONGEST_LIST)]


class Message(BaseModel):
    """Part of a request or of an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(Message):
    """One user's request, by item ids alone: whoever asks knows the user, the server does not."""

    history: ItemIds = Field([], description="What the user did, oldest first; unknown ids are passed over")
    session: ItemIds = Field([], description="What the user did since, oldest first: read after the history")
    k: int = Field(10, ge=1, le=MOST_ITEMS, description="Items wanted; fewer are given where fewer are left")
    exclude: ItemIds = Field([], description="Items that must not be answered")
    allow: ItemIds | None = Field(None, description="Only these may be answered; null: all, empty: none")
    categories: Annotated[list[ItemId], Field(max_length=100)] | None = Field(
        None, description="Only items of one of these categories may be answered; null: all, empty: none"
    )


class Batch(Message):
    """Many requests, answered by one and the same model."""

    requests: list[Question] = Field(min_length=1, max_length=MOST_REQUESTS)


class Item(Message):
    """One recommended item."""

    item_id: str
    score: float = Field(description="Comparable within one answer; for a popular item its training events")
    source: Literal["model", "popular"] = Field(description="popular: nothing in the history is known to the model")
    title: str | None


class Model(Message):
    """Which model answered."""

    version: int = Field(description="Of the registered model recsys-student")
    digest: str = Field(description="sha256 that names its files")
    as_of: str | None = Field(description="ISO 8601: it was trained on events before; null where that is not known")


class Answer(Message):
    """The best items for one request, best first."""

    items: list[Item]
    reason: str | None = Field(description="Why there are none, where there are none")
    model: Model


class BatchRow(Message):
    """The answer to one request of a batch."""

    items: list[Item]
    reason: str | None


class BatchAnswer(Message):
    """The answers in the order of the requests."""

    answers: list[BatchRow]
    model: Model


class Refusal(Message):
    """Why a request has no answer."""

    error: str


class RegistryHealth(Message):
    """How the server stands with the registry."""

    state: Literal["current", "stale", "refused", "empty", "starting"] = Field(
        description="current: the champion is served; stale: the registry cannot be asked or lacks the champion; "
        "refused: the champion failed its check; empty: there is no champion; starting: not asked yet"
    )
    sentence: str
    seconds_since_poll: float | None = Field(description="Since the registry last answered")


class Health(Message):
    """Whether anything can be served, and what."""

    status: Literal["ok", "unavailable"]
    version: int | None
    digest: str | None
    as_of: str | None
    age_seconds: float | None = Field(description="Since the model's as-of time")
    since: str | None = Field(description="ISO 8601: when this process began to serve it")
    registry: RegistryHealth
