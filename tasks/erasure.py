"""Erasure: what was made from events is gone from a home, and the next night makes it anew.

Every object that was made from events goes, whoever they are of: a sum over all users cannot be told from one without
some of them, and every table of users has tokens of one key.
"""

import time
from collections.abc import Sequence, Set

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import HomeError
from recsys.quarantine import TableDraft
from tasks.adapters import disk
from tasks.adapters.manifest import Manifest
from tasks.adapters.settings import Settings
from tasks.adapters.sweep import Broom, Kept, sweep, sweep_temp
from tasks.batch_scores import RECOMMENDATIONS
from tasks.keeping import kept, score_folders
from tasks.workshop import Workshop

IT_READS = "Give the command again once it has ended: it reads what must go."
"""How a night that is at work is mended."""


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


def erase_scores(settings: Settings, user_ids: Sequence[str]) -> None:
    """Batch scores are without some users; whoever reads them finds the old file or the new one."""
    gone = pa.array(sorted(user_ids), pa.string())
    for file in [folder / RECOMMENDATIONS for folder in score_folders(settings)]:
        fewer = file.with_name("fewer.parquet")
        with disk.told(file), pq.ParquetFile(file) as whole, TableDraft(fewer, whole.schema_arrow) as draft:
            for part in whole.iter_batches():
                draft.write(pa.Table.from_batches([part.filter(pc.invert(pc.is_in(part.column("user_id"), gone)))]))
        fewer.replace(file)


def erase_pages(workshop: Workshop, broom: Broom) -> None:
    """Reports of earlier versions showed the histories of some users, here and with their runs in MLflow."""
    erase_pages_here(workshop.settings, broom)
    workshop.tracking.erase_from_nights("report")


def erase_pages_here(settings: Settings, broom: Broom) -> None:
    """The reports in the home alone."""
    for page in sorted((settings.home / "reports").glob("[0-9]*")):
        broom.take("reports", page)


def seconds_of_a_night(workshop: Workshop) -> float | None:
    """The longest of all nights: one that made everything, as the next one will. None: none is known."""
    nights = workshop.tracking.nights_after(None)
    return max((sum(v for n, v in night.items() if n.startswith("seconds/")) for night in nights), default=None)
