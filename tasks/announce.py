"""Announcements: what happened, as Prefect events, so that automations can act on it and people be told.

The vocabulary is closed: automations, notifications and their documentation name these words.
"""

from collections.abc import Mapping
from typing import Literal

from tasks.adapters.settings import Settings

Happening = Literal[
    "recsys.model.promoted",  # the champion changed, by a night, a person or a rollback
    "recsys.model.rejected",  # a night's candidate was refused
    "recsys.model.waiting",  # a candidate waits for approval
    "recsys.model.decayed",  # the monitor finds the champion worse than it was
    "recsys.alias.moved",  # somebody moved the alias in MLflow; it was adopted or put back
    "recsys.night.missed",  # a night that should have ended well has not
    "recsys.home.unwell",  # the doctor sees red
]


def announce(happening: Happening, sentence: str, details: Mapping[str, str | int | float | None]) -> None:
    """Emits one event about this shop's recommender. `sentence` is what a person is told; no user id goes in.

    The details are in the payload, to be read, and labels of the resource, because automations match those alone.
    """
    from prefect.events import emit_event  # two seconds, which a command that announces nothing need not spend

    emit_event(
        event=happening,
        resource={
            "prefect.resource.id": "recsys.shop",
            "prefect.resource.name": "recsys",
            **{f"recsys.{name}": str(value) for name, value in details.items() if value is not None},
        },
        payload={"sentence": sentence, **details},
    )


def announce_if_heard(
    settings: Settings, happening: Happening, sentence: str, details: Mapping[str, str | int | float | None]
) -> None:
    """As `announce`, where a Prefect server listens. Outside a flow run Prefect would start one only to tell it."""
    if settings.orchestrator:
        announce(happening, sentence, details)
