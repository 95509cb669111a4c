"""rotate-key in a home whose shared store has gone over to another key: its vault goes over too.

Users whom another home forgot meanwhile are found by the tokens they had here, as long as this home has missed no more than
one change; who has missed more begins a new home, which is filled from the store.
"""

import getpass
import time
from pathlib import Path

from recsys.errors import ConfigError, HomeError
from tasks.adapters import era, sharing, vault_key
from tasks.adapters.night_lock import no_night
from tasks.adapters.settings import Settings
from tasks.adapters.sweep import Broom
from tasks.adapters.vault import Vault, forgotten, sample_of
from tasks.adapters.vault_key import VaultKey
from tasks.adapters.vault_tables import KeyChange, opened_keys
from tasks.erasure import IT_READS, erase_pages_here, erase_scores
from tasks.rotate_key import COMMAND, Rotated


def follow_key(settings: Settings, reason: str, new_key_file: Path | None = None) -> Rotated | None:
    """Goes over to the key of the shared store: the one in a file, or that which lies beside the home's own as `key.next`.

    None where there is nothing to follow. The home need not be prepared: with its key it could not be. Interrupted, it is
    done again by the same call. ConfigError when the store's key is in neither place, HomeError while a night is at work, or
    for a home that has missed a change.
    """
    sample = sample_of(settings.vault)
    if settings.shared is None or sample is None:
        return None
    present = era.present(sharing.root_of(settings.shared))
    if vault_key.settle(settings.vault_key, sample) or (
        new_key_file and _known(new_key_file) == (present.door, sample)
    ):
        Vault(settings.vault, new_key_file or settings.vault_key)  # which wipes what is left of the old one
        return Rotated(None, len(forgotten(settings.vault)), 0, None, None)
    vault = Vault(settings.vault, settings.vault_key)
    if present.door in ("", vault.store_door):
        return None
    with no_night(settings, COMMAND, IT_READS):
        return _followed(settings, vault, present, reason, new_key_file)


def _followed(settings: Settings, vault: Vault, present: era.Era, reason: str, new_key_file: Path | None) -> Rotated:
    places = (new_key_file, vault_key.next_to(settings.vault_key))
    file = next((each for each in places if each and _known(each)[0] == present.door), None)
    if file is None:
        raise ConfigError(
            "the key of the shared store was changed in another home, and the new one is not here",
            where=settings.shared.text if settings.shared else "",
            mend=f"Copy that home's key to {vault_key.next_to(settings.vault_key)}, or name its copy with --new-key-file.",
        )
    new, broom = VaultKey.read(file), Broom(dry_run=False)
    before = opened_keys(new, present.retired)
    if before and before[-1] != VaultKey.read(settings.vault_key).content:
        mend = "Begin a new home with the store's key, named in RECSYS_VAULT_KEY; the store has all that was made."
        raise HomeError("this home has missed an earlier change of the key", where=str(settings.vault), mend=mend)
    token = new.door().token
    gone = [one for one in vault.tokens() if token(one) in present.forgotten]
    erase_scores(settings, list(vault.user_ids(gone).values()))
    vault.forget(gone, int(time.time()))
    with vault.changing_key(new, KeyChange(int(time.time()), getpass.getuser(), reason)) as rekeyed:
        erase_pages_here(settings, broom)
    vault_key.settle(settings.vault_key, sample_of(settings.vault))
    freed = sum(each.bytes for each in broom.freed())
    return Rotated(rekeyed.users, len(rekeyed.forgotten), freed, None, None)


def _known(file: Path) -> tuple[str, str]:
    """How a key is known to a shared store, and to a vault."""
    try:
        key = VaultKey.read(file)
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        raise ConfigError(f"the key cannot be read: {error.strerror}", where=str(file)) from error
    return key.store_door, key.sample
