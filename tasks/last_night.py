"""What the last night that ended came to: the store's head `last-night`, which `tell` sets."""

from dataclasses import dataclass, fields
from typing import Self

from recsys.errors import HomeError
from tasks.adapters.store import Store

HEAD = "last-night"


@dataclass(frozen=True)
class LastNight:
    """Its verdict, and what it was about."""

    decision: str
    sentence: str
    advice: str
    dataset: str  # digest
    as_of: int  # seconds UTC, exclusive
    report: str  # path of the HTML page

    @classmethod
    def of(cls, store: Store) -> Self:
        """HomeError when no night has ended in this home."""
        head = store.head(HEAD)
        if head is None:
            raise HomeError("no night has ended in this home", where=str(store.root), mend="Run recsys nightly first.")
        return cls(**{field.name: head[field.name] for field in fields(cls)})
