"""Eras of a store that homes share, as its homes live through them.

Who forgets users or changes the key begins the next one with what stays; every home catches up with it.
"""

import contextlib
import time
from collections.abc import Mapping, Set
from dataclasses import replace
from datetime import UTC, datetime

from recsys.errors import HomeError, StoreError
from tasks.adapters import era
from tasks.adapters.fill_bucket import fill_bucket
from tasks.adapters.registry import ERA, STUDENT, TEACHER, UNFORGOTTEN
from tasks.adapters.sharing import Shared
from tasks.adapters.store import Store
from tasks.adapters.sweep import Broom
from tasks.adapters.vault import Vault, forgotten
from tasks.adapters.vault_tables import Rekeyed
from tasks.erasure import erase_pages, erase_scores
from tasks.workshop import Workshop


def bring(store: Store, digests: Set[str]) -> None:
    """This host has these objects, by recipe and by digest, with all their lineage, as far as the bucket has."""
    for digest in digests:
        if manifest := store.lineage(digest)[digest]:
            store.find(manifest.recipe)
            with contextlib.suppress(StoreError):  # damaged: the registry has the files of what serves
                store.open(manifest.step, digest)


def begin_next(shared: Shared, store: Store, gone: Mapping[str, int], door: str) -> int:
    """The next era of the bucket begins without some users, with all that this host's cache holds.

    `door` is how the key is known that they have tokens of. Gives the number of objects removed.
    """
    root = shared.root
    while True:
        number = era.present(root).number + 1
        fill_bucket(store, shared.in_era(number))
        if era.begin(root, number, gone, door):
            return _buried(shared, number)


def begin_under_another_key(shared: Shared, store: Store, before: era.Era, rekeyed: Rekeyed, door: str) -> int:
    """The next era of the bucket begins under the key that is known by `door`. Else as `begin_next`.

    HomeError when another home has changed anything since the era before was seen: its forgotten would be lost.
    """
    number = before.number + 1
    fill_bucket(store, shared.in_era(number))
    following = replace(before, number=number, forgotten=rekeyed.forgotten, door=door, retired=rekeyed.retired)
    if not era.replaced(shared.root, before, following):
        what = "another home has forgotten users in the shared store, or changed its key, at the same time"
        raise HomeError(what, where=shared.root.where(), mend="Give the command again.")
    return _buried(shared, number)


def _buried(shared: Shared, number: int) -> int:
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
    present = era.add(shared.root, ours, vault.retired, vault.store_door)
    vault.retire(present.retired)  # a home that came later has seen no other key
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
    """HomeError when another home of the shared store has begun an era since this one was opened."""
    if workshop.store.shared is not None:
        workshop.store.shared.require_present()


def mark_earlier(workshop: Workshop) -> None:
    """Versions that a night registered while users were being forgotten."""
    cleared = workshop.store.shared.cleared if workshop.store.shared else 0
    today = datetime.now(UTC).date().isoformat()
    for model in (STUDENT, TEACHER) if cleared else ():
        for version in workshop.registry.all_versions(model):
            made_in = version.tags.get(ERA, "0")
            if UNFORGOTTEN not in version.tags and made_in.isdecimal() and int(made_in) < cleared:
                workshop.registry.set_tags(model, version.number, {UNFORGOTTEN: today})
