"""Why one user is recommended what a model recommends: the events of their history that carried it, by title."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.explanation import Basis, Explained, explain
from recsys.past import Past
from recsys.recommender import History
from recsys.runtime import Runtime
from tasks.adapters.settings import Settings
from tasks.adapters.vault import Vault
from tasks.last_night import LastNight
from tasks.score_users import chosen_version, digest_of, past_of_night
from tasks.workshop import Workshop


@dataclass(frozen=True)
class Cause:
    """One event of the history."""

    title: str  # the item id where there is no title
    share: float | None  # of all falls of the score that leaving out one event makes; None for a whole history


@dataclass(frozen=True)
class Recommended:
    """One item of the answer."""

    title: str
    basis: Basis
    causes: tuple[Cause, ...]  # the strongest first


@dataclass(frozen=True)
class UserExplanation:
    """The answer to one user, best first, and what it rests on."""

    version: int
    as_of: int  # seconds UTC, exclusive: the history ends before it
    events: int  # of the history
    read: int  # of them by the model: the newest that it knows
    items: tuple[Recommended, ...]
    notes: tuple[str, ...]


def explain_user(settings: Settings, user_id: str, k: int, model: str) -> UserExplanation:
    """The best `k` items of a user by the history in the last night's dataset; `model` as in `chosen_version`.

    Raises DataError for a user without events there, and what `chosen_version` and `past_of_night` raise.
    """
    workshop = Workshop.of(settings)
    version, notes = chosen_version(workshop, model)
    runtime = Runtime.open(workshop.store.open("artifact", digest_of(version)), threads=settings.threads)
    past = past_of_night(workshop.store, LastNight.of(workshop.store).dataset, runtime)
    history = _history(past, Vault(settings.vault, settings.vault_key), user_id)
    items = tuple(_recommended(runtime, item) for item in explain(runtime, history, k))
    read = min(len(runtime.events(history)), runtime.card.length)
    return UserExplanation(version.number, past.as_of, len(history), read, items, tuple(notes))


def _history(past: Past, vault: Vault, user_id: str) -> History:
    """The user's codes in `past`. The message does not repeat the id: it may end in a log."""
    try:
        token = vault.door.token(user_id)
    except UnicodeEncodeError:  # bytes that the shell could not decode: no event has such an id
        token = ""
    for batch in past.batches:
        place = pc.index(batch.tokens, token).as_py()
        if place >= 0:
            return np.asarray(batch.histories[place])
    raise DataError(
        "this user has no events in the dataset of the last night",
        where="--user",
        mend="Write the id exactly as the events have it; if the user is newer than the last night, run recsys nightly.",
    )


def _recommended(runtime: Runtime, item: Explained) -> Recommended:
    causes = tuple(Cause(_title(runtime, reason.code), item.share(reason)) for reason in item.reasons)
    return Recommended(_title(runtime, item.code), item.basis, causes)


def _title(runtime: Runtime, code: int) -> str:
    return runtime.columns.title(code) or runtime.item_ids[code - 1]
