"""Checkup of the machine: the home's folders, its disk, its clock, its time zones, who may read the vault."""

import os
import shutil
import stat
import tempfile
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote

from recsys import wording
from tasks.adapters.channels import FILE
from tasks.adapters.records import newest_start, nights_ended
from tasks.adapters.vault import key_changes
from tasks.finding import Finding, doubtful, ill, several, well
from tasks.patient import Patient

_LEAST_FREE = 64 << 20  # bytes; below it no command starts
_FEW_NIGHTS, _MANY_NIGHTS = 7, 1000
_ZONE = "Europe/Berlin"  # any zone of the database: if this one is known, all are
_SLACK = timedelta(minutes=1)
_EVENTS_AHEAD = timedelta(days=2)  # the reader accepts events up to the end of tomorrow


def home(patient: Patient) -> Finding:
    """Whether every folder can be written."""
    settings = patient.settings
    folders = (settings.home, settings.store, settings.mlflow, settings.prefect, settings.servers_file.parent)
    for folder in (*folders, settings.vault, settings.ledger, settings.temp, settings.cache):
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"probe")
                probe.flush()
        except OSError as error:
            return ill(f"{folder} cannot be written: {error.strerror}", f"ls -ld {quote(str(folder))}")
    return well(f"{settings.home} can be written")


def disk(patient: Patient) -> Finding:
    """Free bytes against what the last night wrote."""
    settings = patient.settings
    free = min(shutil.disk_usage(place).free for place in (settings.home, settings.store))
    used = sum(_written_by_last_night(patient))
    mend = "recsys gc"
    if free < max(_LEAST_FREE, used):
        return ill(f"{wording.size(free)} are free, the last night wrote {wording.size(used)}", mend)
    if not used:
        return well(f"{wording.size(free)} are free")
    nights = int(free / used)
    many = wording.count(nights) if nights < _MANY_NIGHTS else f"more than {_MANY_NIGHTS:,}"
    sentence = f"{wording.size(free)} are free, room for {many} nights like the last one"
    return doubtful(sentence, mend) if nights < _FEW_NIGHTS else well(sentence)


def permissions(patient: Patient) -> Finding:
    """Vault, key and the addresses of notifications are for their owner only."""
    settings = patient.settings
    key, users = settings.vault_key, settings.vault / "users.sqlite"
    if users.exists() and users.stat().st_size and not key.exists():
        return ill(f"the key of the vault is gone: {key}", "restore it from a backup: recsys restore --help")
    private = [path for path in (settings.vault, key.parent, key, users, settings.home / FILE) if path.exists()]
    open_ones = [path for path in private if stat.S_IMODE(path.stat().st_mode) & 0o077]
    strangers = [path for path in private if path.stat().st_uid != os.getuid()]
    if open_ones or strangers:
        names = several([str(path) for path in dict.fromkeys([*open_ones, *strangers])])
        mend = f"chmod go-rwx {' '.join(quote(str(path)) for path in private)}"
        return ill(f"others than their owner may read {names}", mend)
    said = "vault, key and addresses are for their owner only"
    for change in key_changes(settings.vault)[-1:]:
        day = datetime.fromtimestamp(change.at, UTC).date().isoformat()
        said += f"; {change.who} changed the key on {day}: {change.reason}"
    return well(said)


def time_zones(_: Patient) -> Finding:
    """Schedules are in local time, which needs the time zone database."""
    try:
        zoneinfo.ZoneInfo.no_cache(_ZONE)
    except zoneinfo.ZoneInfoNotFoundError:
        return ill("the time zone database is missing: no schedule in local time fires", "pip install tzdata")
    return well("the time zone database is there")


def clock(patient: Patient) -> Finding:
    """The clock against what was recorded before: a run or an event from the future means that it is wrong."""
    now, mend = patient.now, "timedatectl set-ntp true"
    run = newest_start(patient.tracking)
    if run is not None and run > now + _SLACK:
        return ill(f"it is {_moment(now)}, but a run began at {_moment(run)}: the clock is wrong", mend)
    if times := [each.newest for each in patient.inputs if each.newest is not None]:
        newest = datetime.fromtimestamp(max(times), UTC)
        ahead = f"it is {_moment(now)}, but the newest event is of {_moment(newest)}"
        if newest > now + _EVENTS_AHEAD:
            return ill(f"{ahead}: the clock is wrong", mend)
        if newest > now + _SLACK:
            return doubtful(f"{ahead}: the shop's clock or its time zone is wrong", mend)
    return well(f"{_moment(now)} is after everything that was recorded")


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _written_by_last_night(patient: Patient) -> Iterator[int]:
    """Bytes of each file that the last night left in store and artifacts."""
    try:
        nights = nights_ended(patient.tracking, most=1)
    except Exception:  # MLflow's own line tells what is wrong with it
        return
    for night in nights:
        for folder in (patient.settings.store / "blobs", patient.settings.mlflow / "artifacts"):
            for path in _files(folder):
                about = path.lstat()
                if night.began.timestamp() <= about.st_mtime <= night.ended.timestamp():
                    yield about.st_size


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)
