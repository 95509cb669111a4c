"""fsck of what MLflow keeps: the ledger and its mirror, the aliases, the champion, and the files of what was promoted."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from recsys.errors import RegistryError, StoreError
from tasks.adapters.chain import Chain, Record
from tasks.adapters.manifest import digest_of_folder
from tasks.adapters.registry import STUDENT, TEACHER, Version
from tasks.fault import Fault
from tasks.workshop import Workshop

_TELL = "recsys restore a backup elsewhere and compare; nothing is promoted until they agree"
_PUBLISHED = {STUDENT: "artifact", TEACHER: "teach"}
"""By registered model, the step that makes what is published."""


def mirror(workshop: Workshop) -> Iterator[Fault]:
    """Records of the ledger's mirror that are torn. Those that are missing are copied whenever the ledger is read."""
    for path in sorted(workshop.settings.ledger.glob("*/*.json")):
        try:
            Record.read(int(path.stem), path.read_text())
        except (ValueError, KeyError, TypeError):
            what = f"record {int(path.stem)} of the ledger's mirror cannot be read"
            yield Fault("ledger", what, "recsys fsck --repair copies it again", partial(_copy_again, workshop, path))


def ledger(workshop: Workshop) -> Iterator[Fault]:
    """Whether the chain agrees with itself and with its mirror."""
    chain = workshop.ledger.chain()
    if chain.broken:
        yield Fault("ledger", f"the ledger contradicts itself: {chain.broken}", _TELL)


def deleted_champion(workshop: Workshop) -> Iterator[Fault]:
    """The champion's version was deleted in MLflow."""
    chain = workshop.ledger.chain()
    if chain.champion is None or chain.broken or any(v.number == chain.champion for v in _versions(workshop)):
        return
    digest = _digest_of(chain, chain.champion)
    mend = "recsys fsck --repair registers its files again, from the store; recsys rollback goes to the one before"
    what = f"version {chain.champion} of {STUDENT}, the champion, was deleted in MLflow"
    yield Fault("registry", what, mend, partial(_register_again, workshop, digest))


def aliases(workshop: Workshop) -> Iterator[Fault]:
    """Aliases that stand elsewhere than the ledger says. One moved by hand is adopted or put back, as always."""
    chain = workshop.ledger.chain()
    if chain.broken:
        return
    there, known = workshop.registry.aliases(STUDENT), {version.number for version in _versions(workshop)}
    for alias, number in (("champion", chain.champion), ("previous", chain.previous)):
        if there.get(alias) != number and (number is None or number in known):
            what = f"the alias {alias} stands on {there.get(alias) or 'nothing'}, the ledger says {number or 'nothing'}"
            mend = "recsys fsck --repair adopts it after a load test, or sets it to what the ledger says"
            yield Fault("registry", what, mend, partial(_settle, workshop))


def kept_versions(workshop: Workshop) -> Iterator[Fault]:
    """Files of every version that an alias or the ledger names: in the store, and as MLflow gives them out.

    Those of versions that learnt from users who were forgotten are gone, but the champion's (tasks/forget_users.py).
    """
    chain = workshop.ledger.chain()
    recorded = {record.to for record in chain.records}
    for model, step in _PUBLISHED.items():
        aliased = set(workshop.registry.aliases(model).values())
        for version in workshop.registry.versions(model):
            needed = version.number in aliased or (model == STUDENT and version.number in recorded)
            erased = version.remembers and version.digest != chain.champion_digest
            if needed and version.digest and not erased:
                yield from _copies(workshop, step, version)


def champion_loads(workshop: Workshop) -> Iterator[Fault]:
    """The champion's load test: a clean process, digest, golden requests."""
    champion = workshop.ledger.chain().champion
    if champion is None or all(version.number != champion for version in _versions(workshop)):
        return
    try:
        workshop.registry.load_check(STUDENT, champion)
    except RegistryError as error:
        yield Fault("registry", error.what, "recsys rollback --reason TEXT goes back to the champion before")


def _copies(workshop: Workshop, step: str, version: Version) -> Iterator[Fault]:
    """The two copies of a version's files. The store's is put back from MLflow's, where that one is right."""
    name = f"{version.model} version {version.number}"
    with tempfile.TemporaryDirectory(dir=workshop.settings.temp) as folder:
        try:
            copy = workshop.registry.download(version.model, version.number, Path(folder))
            published = digest_of_folder(copy) == version.digest
        except RegistryError:
            published = False
    if not published:
        mend = "the store has them: recsys promote another version, or recsys nightly makes a new one"
        yield Fault("registry", f"the files of {name} in MLflow are not those that were registered", mend)
    try:
        workshop.store.open(step, version.digest)
    except StoreError as error:
        what = f"the files of {name} in the store: {error.what}"
        repair = partial(_put_back, workshop, step, version) if published else None
        mend = "recsys fsck --repair copies them from MLflow" if published else "recsys restore from a backup"
        yield Fault("store", what, mend, repair)


def _versions(workshop: Workshop) -> list[Version]:
    return workshop.registry.all_versions(STUDENT)


def _digest_of(chain: Chain, number: int) -> str:
    return next(record.digest for record in reversed(chain.records) if record.to == number)


def _copy_again(workshop: Workshop, path: Path) -> str:
    workshop.store.set_aside(path)
    workshop.ledger.chain()
    if not path.exists():
        raise RegistryError(f"MLflow has no record {int(path.stem)} either", mend=_TELL)
    return "set aside in bad/ and copied again from MLflow"


def _register_again(workshop: Workshop, digest: str) -> str:
    from tasks.reregister import reregister

    return f"registered again as version {reregister(workshop, digest)}, which is champion now"


def _settle(workshop: Workshop) -> str:
    settled = workshop.ledger.settle(workshop.registry.check_adoptable)
    workshop.ledger.mend()
    return settled.sentence if settled else "set to what the ledger says"


def _put_back(workshop: Workshop, step: str, version: Version) -> str:
    with tempfile.TemporaryDirectory(dir=workshop.settings.temp) as folder:
        copy = workshop.registry.download(version.model, version.number, Path(folder))
        workshop.store.put_back(step, version.digest, copy)
    return "copied from MLflow"
