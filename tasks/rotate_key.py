"""rotate-key: users get tokens and ciphertexts under another key, and nothing that the old one opens is left in the home.

Objects of the store name users by tokens of the old key, so they go (tasks/erasure.py), and the next night makes them anew
from the shop's files. What has no token in it stays: the files of every version in the ledger, so that the champion serves
on and a rollback finds what it goes back to. The users go over last, in one transaction that says whose they are from then
on; the key's file follows by a rename, which whoever opens the vault next does where it was not done.

In a store that homes share the next era begins under the new key, in the middle of that transaction: from then on the other
homes, and this one if it is interrupted there, have to follow (tasks/follow_key.py).
"""

import contextlib
import getpass
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import ConfigError, HomeError
from tasks.adapters import era, vault_key
from tasks.adapters.ledger import Chain
from tasks.adapters.night_lock import no_night
from tasks.adapters.settings import Settings
from tasks.adapters.sweep import Broom
from tasks.adapters.vault import Vault, forgotten, sample_of
from tasks.adapters.vault_key import VaultKey
from tasks.adapters.vault_tables import KeyChange
from tasks.eras import begin_under_another_key, bring, catch_up, require_present
from tasks.erasure import IT_READS, erase_objects, erase_pages, seconds_of_a_night
from tasks.workshop import Workshop

COMMAND = "recsys rotate-key"


@dataclass(frozen=True)
class Rotated:
    """What it came to."""

    users: int | None  # that have new tokens; None: they had them, and what an interruption had left was done
    forgotten: int  # that stay so; where there are some, the old key is kept, sealed under the new one
    bytes: int  # that were removed
    champion: int | None
    night_seconds: float | None  # what the last whole night took, as the next one will; None: none is known


def rotate_key(workshop: Workshop, reason: str, new_key_file: Path | None = None) -> Rotated:
    """Another key: one that is made and takes the place of the old one's file, or the one in a file that stays where it is.

    Interrupted, it is brought to its end by the same call, in a shared store after `follow_key`. HomeError while a night is
    at work or a command reads what must go; ConfigError for a key that is no new one.
    """
    settings = workshop.settings
    if not (settings.vault / "users.sqlite").exists():
        mend = "Run recsys nightly first; the key is made with the first events."
        raise HomeError("this home has no users yet", where=str(settings.vault), mend=mend)
    chain = workshop.ledger.chain().require_intact()
    with no_night(settings, COMMAND, IT_READS):
        seconds, broom, users = seconds_of_a_night(workshop), Broom(dry_run=False), None
        if not _finished(settings.vault, settings.vault_key, new_key_file):
            change = KeyChange(int(time.time()), getpass.getuser(), reason)
            users = _change(workshop, chain, new_key_file, change, broom)
    freed = sum(each.bytes for each in broom.freed())
    return Rotated(users, len(forgotten(settings.vault)), freed, chain.champion, seconds)


def _finished(vault: Path, key_file: Path, new_key_file: Path | None) -> bool:
    """Whether the users had gone over already; then what is left to be done is done."""
    if new_key_file is None:
        done = vault_key.settle(key_file, sample_of(vault))
    else:
        done = _given(new_key_file, key_file).sample == sample_of(vault)
    if done:
        Vault(vault, new_key_file or key_file)  # which wipes what is left of the old one
    return done


def _change(workshop: Workshop, chain: Chain, new_key_file: Path | None, change: KeyChange, broom: Broom) -> int:
    settings, store = workshop.settings, workshop.store
    vault = Vault(settings.vault, settings.vault_key)
    before = _caught_up(workshop)
    stays = {digest for record in chain.records for digest in (record.digest, record.evidence)} - {""}
    if store.shared:
        bring(store, stays)
    given = contextlib.nullcontext(new_key_file) if new_key_file else _key_in_place_of(settings)
    with given as file:
        new = VaultKey.read(file)
        with vault.changing_key(new, change) as rekeyed:
            erase_objects(workshop, stays, broom)
            erase_pages(workshop, broom)
            if store.shared:
                begin_under_another_key(store.shared, store, before, rekeyed, new.store_door)
    return rekeyed.users


def _caught_up(workshop: Workshop) -> era.Era:
    """The era that is present, when this home knows all who are forgotten in it: the new key's list is made from its own."""
    shared, vault = workshop.store.shared, workshop.settings.vault
    while shared:
        require_present(workshop)
        catch_up(workshop)
        present = era.present(shared.root)
        if present.forgotten.keys() <= forgotten(vault).keys():
            return present
    return era.FIRST


@contextlib.contextmanager
def _key_in_place_of(settings: Settings) -> Iterator[Path]:
    """The file of a new key, which takes the old one's place if the users have gone over to it, and else is gone.

    Unless a store is shared: that may have gone over to it, whether or not its answer came.
    """
    draft = vault_key.next_to(settings.vault_key)
    try:
        draft.unlink(missing_ok=True)
        vault_key.make(draft)
    except OSError as error:
        mend = "Make one elsewhere with head -c 32 /dev/urandom, and give its file with --new-key-file."
        raise HomeError(f"no key can be made: {error.strerror}", where=str(draft), mend=mend) from error
    try:
        yield draft
    finally:  # not by whether there was an error: it may have come after they had gone over
        if not vault_key.settle(settings.vault_key, sample_of(settings.vault)) and not settings.shared:
            draft.unlink(missing_ok=True)


def _given(new_key_file: Path, key_file: Path) -> VaultKey:
    try:
        new = VaultKey.read(new_key_file)
        same = key_file.exists() and VaultKey.read(key_file) == new
    except OSError as error:
        mend = "Make one with head -c 32 /dev/urandom."
        raise ConfigError(
            f"the new key cannot be read: {error.strerror}", where=str(new_key_file), mend=mend
        ) from error
    if same:
        mend = "Name a file with another key, or leave --new-key-file out: then one is made."
        raise ConfigError("that is the key which the users have", where=f"--new-key-file {new_key_file}", mend=mend)
    return new
