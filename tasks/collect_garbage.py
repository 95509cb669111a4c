"""gc: frees what nothing needs any more, beside a running night. What is kept is decided in keeping.py."""

import os
import time
from pathlib import Path

from recsys.retention import RetentionConfig
from tasks.adapters.sweep import Broom, Freed, sweep, sweep_temp
from tasks.keeping import kept, score_folders
from tasks.last_night import HEAD
from tasks.workshop import Workshop

DAY = 86_400
_TEMP_DAYS = 1
"""Days that a temporary file stays in any case: a living command may have it by name alone."""


def collect_garbage(workshop: Workshop, retention: RetentionConfig, *, dry_run: bool = False) -> tuple[Freed, ...]:
    """What was freed by kind, the largest first; on a dry run what would be. Interrupted, it is done again.

    RegistryError when MLflow does not answer or the ledger contradicts itself: then nothing is removed.
    """
    older_than = time.time() - retention.days * DAY
    broom = Broom(dry_run)
    _sweep_scores(workshop, retention, broom)  # before their objects, which they keep
    sweep(workshop.store, lambda: kept(workshop, retention.nights), older_than, broom)
    _sweep_reports(workshop, retention, broom)
    older_than = min(older_than, time.time() - _TEMP_DAYS * DAY)
    sweep_temp(workshop.settings.temp, "*", older_than, broom)
    sweep_temp(workshop.settings.cache / "text", "*.tmp", older_than, broom)
    return broom.freed()


def _sweep_scores(workshop: Workshop, retention: RetentionConfig, broom: Broom) -> None:
    """All but the newest batch scores, and never those that are served."""
    folder = workshop.settings.home / "scores"
    latest = os.path.realpath(folder / "latest")
    for old in _all_but_newest(score_folders(workshop.settings), retention.nights):
        if os.path.realpath(old) != latest:
            broom.take("batch scores", old)


def _sweep_reports(workshop: Workshop, retention: RetentionConfig, broom: Broom) -> None:
    """All but the newest of nights and of the monitor; the last night's stays. MLflow keeps a copy with each run."""
    stays = Path((workshop.store.head(HEAD) or {}).get("report", "")).stem
    for of in ("[0-9]*.html", "monitor-*.html"):
        pages = sorted((workshop.settings.home / "reports").glob(of), key=lambda path: path.stat().st_mtime)
        for page in _all_but_newest(pages, retention.nights):
            if page.stem != stays:
                broom.take("reports", page)
                if page.with_suffix(".json").exists():
                    broom.take("reports", page.with_suffix(".json"))


def _all_but_newest(paths: list[Path], count: int) -> list[Path]:
    return paths[: max(0, len(paths) - count)]
