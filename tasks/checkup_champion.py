"""Checkup of the champion: ledger, aliases, files, and whether it answers as it did when it was made."""

import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

from recsys.errors import RecsysError
from recsys.runtime import Runtime
from recsys.wording import many
from tasks.adapters.manifest import digest_of_folder
from tasks.adapters.registry import STUDENT, UNFORGOTTEN
from tasks.adapters.vault import forgotten as forgotten_users
from tasks.finding import Finding, doubtful, ill, well
from tasks.patient import Patient

_DAYS_TO_FORGET = 30
"""A month is what GDPR, article 12(3), gives to whoever is asked to erase."""

_NONE_YET = "there is no champion yet"


def ledger(patient: Patient) -> Finding:
    """Whether the chain agrees with itself and with its mirror in the home."""
    chain = patient.chain
    if chain.broken:
        return ill(f"the ledger contradicts itself: {chain.broken}; nothing is promoted", "recsys fsck")
    return well(f"{len(chain.records)} valid records, equal to their mirror")


def aliases(patient: Patient) -> Finding:
    """Whether the aliases in MLflow are where the ledger says, and what the next command does if not."""
    chain, there = patient.chain, patient.registry.aliases(STUDENT)
    alias = there.get("champion")
    if not chain.applied:
        return doubtful(
            f"the last promotion was interrupted before the alias was set: the next command sets it to {chain.champion}",
            "recsys history",
        )
    if alias != chain.champion:
        stands = f"the alias champion was moved by hand to {alias or 'nothing'}, the ledger says {chain.champion or 'nothing'}"
        what = "load-tests it and adopts it, or puts it back" if alias else "puts it back"
        return doubtful(f"{stands}: the next command that serves, promotes or monitors {what}", "recsys history")
    if there.get("previous") != chain.previous:
        stands = (
            f"the alias previous is {there.get('previous') or 'not set'}, the ledger says {chain.previous or 'none'}"
        )
        return doubtful(f"{stands}: the next promotion sets it", "recsys history")
    return well("where the ledger says" if chain.champion else _NONE_YET)


def champion(patient: Patient) -> Finding:
    """Whether the version that the ledger calls champion exists. RegistryError when it was deleted."""
    version = patient.champion
    if version is None:
        return doubtful(_NONE_YET, "recsys nightly")
    if not version.digest:
        return ill(f"version {version.number} has no digest: its files cannot be verified", "recsys rollback --reason")
    return well(f"{STUDENT} version {version.number}")


def forgotten(patient: Patient) -> Finding | None:
    """Whether the champion has learnt from users who were forgotten since, and for how long it has served so."""
    users, version = forgotten_users(patient.settings.vault), patient.champion
    if not users:
        return None
    if version is None or UNFORGOTTEN not in version.tags:
        return well(f"the champion never knew {many(len(users), 'user')}, forgotten since")
    days = (datetime.now(UTC).date() - date.fromisoformat(version.tags[UNFORGOTTEN])).days
    said = (
        f"version {version.number} has learnt from users who were forgotten {many(days, 'day')} ago, and still serves"
    )
    return (ill if days > _DAYS_TO_FORGET else doubtful)(said, "recsys nightly")


def files(patient: Patient) -> Finding:
    """The champion from the store: verified, loaded by the runtime, its golden requests answered as before."""
    version = patient.champion
    if version is None:
        return well(_NONE_YET)
    runtime = Runtime.open(patient.store.open("artifact", version.digest))
    runtime.check_golden()
    return well(f"verified; it answers {len(runtime.golden.codes)} golden requests as when it was made")


def published(patient: Patient) -> Finding:
    """The registry's copy of the champion, by its digest."""
    version = patient.champion
    if version is None:
        return well(_NONE_YET)
    with tempfile.TemporaryDirectory(dir=patient.settings.temp) as folder:
        found = digest_of_folder(patient.registry.download(STUDENT, version.number, Path(folder)))
    if found != version.digest:
        what = f"the files in MLflow are {found[:12]}, not {version.digest[:12]} that were registered"
        return ill(f"{what}: whoever loads them from there loads something else", "recsys fsck --repair")
    return well("the files in MLflow are those that were registered")


def rollback(patient: Patient) -> Finding:
    """Whether there is a champion to go back to, whole."""
    number = patient.chain.previous
    if number is None:
        return well("nowhere to go back to before the second promotion")
    try:
        previous = patient.registry.version(STUDENT, number)
        patient.store.open("artifact", previous.digest)
    except RecsysError as error:
        return doubtful(f"the champion before, version {number}, is no way back: {error.what}", "recsys fsck --repair")
    return well(f"goes back to version {number}, whose files are whole")
