"""forget: users who must not be known any more are gone from every object; the next night learns as if they never were.

Every object that was made from events goes (tasks/erasure.py). So the next night makes all anew, in item codes of its own,
and comes to the very bytes of a home that never had them. Their tokens stay in the vault: the shop's files may name them
again tomorrow. What serves until then, the champion's files, was learnt from them too; it is marked, and the doctor counts
its days.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from tasks.adapters.ledger import Chain
from tasks.adapters.night_lock import no_night
from tasks.adapters.registry import STUDENT, TEACHER, UNFORGOTTEN
from tasks.adapters.store import Store
from tasks.adapters.sweep import Broom, Freed
from tasks.adapters.vault import Vault, forgotten
from tasks.eras import begin_next, bring
from tasks.erasure import IT_READS, erase_objects, erase_pages, erase_scores, seconds_of_a_night
from tasks.last_night import HEAD, LastNight
from tasks.workshop import Workshop


@dataclass(frozen=True)
class Forgotten:
    """What it came to."""

    users: int  # now forgotten, of those that were asked for
    again: int  # of them, that were forgotten before
    champion: int | None  # the version that still serves what it learnt from them; None: nothing was promoted
    night_seconds: float | None  # what the last whole night took, as the next one will; None: none is known
    freed: tuple[Freed, ...]

    @property
    def bytes(self) -> int:
        """That were removed."""
        return sum(each.bytes for each in self.freed)


def forget_users(workshop: Workshop, user_ids: Sequence[str]) -> Forgotten:
    """No row of these users is accepted from now on, and nothing that was made from theirs is left but the champion.

    Interrupted, it is done again by the same call. DataError, before anything is touched, when one of them is unknown:
    the message names its place, not the id; HomeError while a night is at work or a command reads what must go.
    """
    settings, store = workshop.settings, workshop.store
    chain = workshop.ledger.chain().require_intact()
    vault = Vault(settings.vault, settings.vault_key)
    with no_night(settings, "recsys forget", IT_READS):
        tokens, again = _tokens(store, vault, user_ids)
        seconds = seconds_of_a_night(workshop)
        vault.forget(tokens, int(time.time()))  # first: what is interrupted behind it lets them in nowhere
        broom = Broom(dry_run=False)
        # of the ledger's verdicts, which are sums over users, nothing can be told
        stays = {chain.champion_digest, *(each.evidence for each in chain.records)} - {""}
        if store.shared:
            bring(store, stays)
        erase_objects(workshop, stays, broom)
        if store.shared:
            begin_next(store.shared, store, forgotten(vault.folder), vault.store_door)
        _sweep_registry(workshop, chain)
        erase_pages(workshop, broom)
        erase_scores(settings, user_ids)
    return Forgotten(len(tokens), again, chain.champion, seconds, broom.freed())


def _tokens(store: Store, vault: Vault, user_ids: Sequence[str]) -> tuple[list[str], int]:
    """Their tokens, and how many of them were forgotten before."""
    before = forgotten(vault.folder)
    tokens = [
        next((name for name in vault.door.names(user_id) if name in before), vault.door.token(user_id))
        for user_id in user_ids
    ]
    known = {*vault.user_ids(tokens), *_of_other_homes(store, tokens)}
    for number, token in enumerate(tokens, start=1):
        if token not in known and token not in before:
            raise DataError(
                f"the {_ordinal(number)} of them has no event in this home; nothing was forgotten",
                where="USER",
                mend="Write ids exactly as the events have them.",
            )
    return tokens, sum(token in before for token in tokens)


def _of_other_homes(store: Store, tokens: Sequence[str]) -> set[str]:
    """Those of the last night, whose events another home of a shared store may have read."""
    if store.shared is None or store.head(HEAD) is None:  # or none has ended since an era began
        return set()
    asked, found, dataset = pa.array(tokens, pa.string()), set(), LastNight.of(store).dataset
    for file in store.manifest("build", dataset).files:
        if file.name.startswith("shard-"):  # read, not opened: it must go, and what is opened is in use
            shard = pa.BufferReader(store.read("build", dataset, file.name))
            column = pq.read_table(shard, columns=["token"])["token"]
            found |= set(column.filter(pc.is_in(column, asked)).to_pylist())
    return found


def _ordinal(number: int) -> str:
    names = ("first", "second", "third")
    return names[number - 1] if number <= len(names) else f"{number}th"


def _sweep_registry(workshop: Workshop, chain: Chain) -> None:
    """Of versions only the champion's files stay. All are marked: until then they were learnt with these users."""
    today = datetime.now(UTC).date().isoformat()
    for model in (STUDENT, TEACHER):
        for version in workshop.registry.all_versions(model):
            workshop.registry.set_tags(model, version.number, {UNFORGOTTEN: today})
            if (
                model == TEACHER or version.digest != chain.champion_digest
            ):  # by its files: twins of a version share them
                workshop.registry.erase(model, version.number)
