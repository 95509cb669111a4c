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
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.quarantine import TableDraft
from tasks.adapters import disk
from tasks.adapters.ledger import Chain
from tasks.adapters.night_lock import no_night
from tasks.adapters.registry import STUDENT, TEACHER, UNFORGOTTEN
from tasks.adapters.sweep import Broom, Freed
from tasks.adapters.vault import Vault, forgotten
from tasks.batch_scores import RECOMMENDATIONS
from tasks.erasure import IT_READS, erase_objects, erase_pages, require_own_store, seconds_of_a_night
from tasks.keeping import score_folders
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
    the message names its place, not the id; HomeError while a night is at work or a command reads what must go;
    ConfigError for a store that several homes share.
    """
    settings = workshop.settings
    require_own_store(
        settings, "users are forgotten", "Run the homes without a shared store, forget in each, and empty the bucket."
    )
    chain = workshop.ledger.chain().require_intact()
    vault = Vault(settings.vault, settings.vault_key)
    with no_night(settings, "recsys forget", IT_READS):
        tokens, again = _tokens(vault, user_ids)
        seconds = seconds_of_a_night(workshop)
        vault.forget(tokens, int(time.time()))  # first: what is interrupted behind it lets them in nowhere
        broom = Broom(dry_run=False)
        # of the ledger's verdicts, which are sums over users, nothing can be told
        erase_objects(workshop, {chain.champion_digest, *(each.evidence for each in chain.records)}, broom)
        _sweep_registry(workshop, chain)
        erase_pages(workshop, broom)
        for folder in score_folders(settings):
            _without(folder / RECOMMENDATIONS, user_ids)
    return Forgotten(len(tokens), again, chain.champion, seconds, broom.freed())


def _tokens(vault: Vault, user_ids: Sequence[str]) -> tuple[list[str], int]:
    """Their tokens, and how many of them were forgotten before."""
    before = forgotten(vault.folder)
    tokens = [
        next((name for name in vault.door.names(user_id) if name in before), vault.door.token(user_id))
        for user_id in user_ids
    ]
    known = vault.user_ids(tokens)
    for number, token in enumerate(tokens, start=1):
        if token not in known and token not in before:
            raise DataError(
                f"the {_ordinal(number)} of them has no event in this home; nothing was forgotten",
                where="USER",
                mend="Write ids exactly as the events have them.",
            )
    return tokens, sum(token in before for token in tokens)


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


def _without(file: Path, user_ids: Sequence[str]) -> None:
    """The same recommendations without some users; whoever reads them finds the old file or the new one."""
    gone, fewer = pa.array(sorted(user_ids), pa.string()), file.with_name("fewer.parquet")
    with disk.told(file), pq.ParquetFile(file) as whole, TableDraft(fewer, whole.schema_arrow) as draft:
        for part in whole.iter_batches():
            draft.write(pa.Table.from_batches([part.filter(pc.invert(pc.is_in(part.column("user_id"), gone)))]))
    fewer.replace(file)
