"""Erasure: what was made from events is gone from a home, and the next night makes it anew.

Every object that was made from events goes, whoever they are of: a sum over all users cannot be told from one without
some of them, and every table of users has tokens of one key.
"""

import time
from collections.abc import Set

from recsys.errors import ConfigError, HomeError
from tasks.adapters.manifest import Manifest
from tasks.adapters.settings import Settings
from tasks.adapters.sweep import Broom, Kept, sweep, sweep_temp
from tasks.keeping import kept
from tasks.workshop import Workshop

IT_READS = "Give the command again once it has ended: it reads what must go."
"""How a night that is at work is mended."""


def require_own_store(settings: Settings, what: str, mend: str) -> None:
    """ConfigError for a store that several homes share: the others go on with what would be erased here."""
    if settings.shared:
        raise ConfigError(
            f"{what} in a home of its own, not in a store that homes share",
            where=f"RECSYS_STORE={settings.shared.text}",
            mend=mend,
        )


def erase_objects(workshop: Workshop, stays: Set[str], broom: Broom) -> None:
    """All of the store but the digests that stay. Of the others lineage stays: names and digests.

    HomeError when a living process uses some of it; done again it goes on.
    """
    store, soon, whole = workshop.store, time.time() + 1, frozenset(stays) - {""}

    def marked() -> Kept:
        found = kept(workshop, nights=1)
        return Kept(whole, found.whole | found.remembered, heads=lambda name: False)

    sweep(store, marked, soon, broom)
    sweep_temp(workshop.settings.temp, "*", soon, broom)
    named = [Manifest.read(path) for path in (store.root / "manifests").glob("*/*.json")]
    left = [each.step for each in named if each and each.digest not in whole]
    if left:
        raise HomeError(
            f"{len(left)} objects are in use ({', '.join(sorted(set(left)))}) and are not gone yet",
            where=str(store.root),
            mend="End the commands that work on this home, then run the same command again.",
        )


def erase_pages(workshop: Workshop, broom: Broom) -> None:
    """Reports of earlier versions showed the histories of some users, here and with their runs in MLflow."""
    for page in sorted((workshop.settings.home / "reports").glob("[0-9]*")):
        broom.take("reports", page)
    workshop.tracking.erase_from_nights("report")


def seconds_of_a_night(workshop: Workshop) -> float | None:
    """The longest of all nights: one that made everything, as the next one will. None: none is known."""
    nights = workshop.tracking.nights_after(None)
    return max((sum(v for n, v in night.items() if n.startswith("seconds/")) for night in nights), default=None)
