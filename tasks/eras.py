"""Forgetting in a store that homes share: the next era begins with what stays, and every home catches up with it."""

import contextlib
import time
from collections.abc import Mapping, Set
from datetime import UTC, datetime

from recsys.errors import StoreError
from tasks.adapters import era
from tasks.adapters.fill_bucket import fill_bucket
from tasks.adapters.registry import ERA, STUDENT, TEACHER, UNFORGOTTEN
from tasks.adapters.sharing import Shared
from tasks.adapters.store import Store
from tasks.adapters.sweep import Broom
from tasks.adapters.vault import Vault, forgotten
from tasks.erasure import erase_pages, erase_scores
from tasks.workshop import Workshop


def bring(store: Store, digests: Set[str]) -> None:
    """This host has these objects, with all their lineage, as far as the bucket has."""
    for digest in digests:
        if manifest := store.lineage(digest)[digest]:
            with contextlib.suppress(StoreError):  # damaged: the registry has the files of what serves
                store.open(manifest.step, digest)


def begin_next(shared: Shared, store: Store, gone: Mapping[str, int]) -> int:
    """The next era of the bucket begins with all that this host's cache holds. Gives the number of objects removed."""
    root = shared.root
    while True:
        number = era.present(root).number + 1
        fill_bucket(store, shared.in_era(number))
        if era.begin(root, number, gone):
            return sum(era.bury(shared.in_era(passed).remote) for passed in range(number))


def catch_up(workshop: Workshop) -> int:
    """Users whom another home of the shared store forgot are forgotten here. Says how many they are.

    And what was registered since by a night that had learnt from them is marked: it may not serve.
    """
    shared = workshop.store.shared
    if shared is None:
        return 0
    vault = Vault(workshop.settings.vault, workshop.settings.vault_key)
    ours = forgotten(vault.folder)
    present = era.add(shared.root, ours)
    gone = sorted(present.forgotten.keys() - ours.keys())
    if gone:
        erase_scores(workshop.settings, list(vault.user_ids(gone).values()))
        erase_pages(workshop, Broom(dry_run=False))
        vault.forget(gone, int(time.time()))  # last: what is interrupted before it is done again
    if present.number:
        era.bury(shared.in_era(present.number - 1).remote)
    mark_earlier(workshop)
    return len(gone)


def require_present(workshop: Workshop) -> None:
    """HomeError when another home of the shared store has forgotten users since this one was opened."""
    if workshop.store.shared is not None:
        workshop.store.shared.require_present()


def mark_earlier(workshop: Workshop) -> None:
    """Versions that a night registered while it was overtaken by another era."""
    present = workshop.settings.shared.era if workshop.settings.shared else 0
    today = datetime.now(UTC).date().isoformat()
    for model in (STUDENT, TEACHER) if present else ():
        for version in workshop.registry.all_versions(model):
            made_in = version.tags.get(ERA, "0")
            if UNFORGOTTEN not in version.tags and made_in.isdecimal() and int(made_in) < present:
                workshop.registry.set_tags(model, version.number, {UNFORGOTTEN: today})
