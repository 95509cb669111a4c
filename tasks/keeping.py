"""What a home keeps: whatever is reachable from the aliases, the ledger, the last nights and the batch scores.

Reachable is not the whole ancestry: a dataset names the catalog of the night before, a student the one it started
from, and so back to the first night. Kept whole is what a later night goes on with or is compared with; of everything
farther back the manifests stay, so that a promoted version can be traced to its input files for ever.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from recsys.errors import StoreError
from tasks.adapters.manifest import Manifest
from tasks.adapters.registry import STUDENT, TEACHER
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.adapters.sweep import Kept
from tasks.last_night import HEAD
from tasks.refs import digest_of
from tasks.workshop import Workshop

_GOES_ON_WITH: Mapping[str, frozenset[str]] = {
    "artifact": frozenset({"compress", "distil", "build", "teach"}),
    "compress": frozenset({"label"}),
    "build": frozenset({"validate", "items"}),
    "judge": frozenset({"evaluate"}),
}
"""By step, the parents that are kept whole with an object."""

_TAGS = ("recsys.digest", "recsys.artifact", "recsys.verdict", "recsys.dataset", "recsys.teacher", "recsys.student")
_SHELF = re.compile(r"labels-([0-9a-f]{64})-\d+(-states)?(-8bit)?\Z")


@dataclass(frozen=True)
class Roots:
    """Digests from which all is reached."""

    standing: frozenset[str]  # of aliases, last nights and batch scores: a later night goes on with them
    evidence: frozenset[str]  # artifacts and verdicts of every record of the ledger


@dataclass(frozen=True)
class Ancestry:
    """The manifests of a store by digest."""

    manifests: Mapping[str, Manifest]

    @classmethod
    def of(cls, store: Store) -> Self:
        """Those that can be read."""
        paths = (store.root / "objects").glob("*/*.json")
        return cls({manifest.digest: manifest for path in paths if (manifest := _read(path))})

    def reached(self, roots: Iterable[str], follow: Callable[[Manifest], Sequence[str]]) -> frozenset[str]:
        """The roots and all that is reached from them. What the store has not made ends its path."""
        seen: set[str] = set()
        waiting = list(roots)
        while waiting:
            digest = waiting.pop()
            if digest not in seen:
                seen.add(digest)
                waiting += follow(self.manifests[digest]) if digest in self.manifests else ()
        return frozenset(seen)

    def goes_on_with(self, manifest: Manifest) -> tuple[str, ...]:
        """The parents without which a later night could not go on with an object."""
        steps = _GOES_ON_WITH.get(manifest.step, frozenset())
        return tuple(p for p in manifest.parent_digests if p in self.manifests and self.manifests[p].step in steps)

    def datasets(self, digests: Iterable[str]) -> Iterator[Manifest]:
        """The manifests of those that are datasets."""
        return (m for digest in digests if (m := self.manifests.get(digest)) and m.step == "build")


def kept(workshop: Workshop, nights: int) -> Kept:
    """What aliases, ledger, the newest `nights` and the batch scores keep. RegistryError when the ledger is broken."""
    roots, ancestry = roots_of(workshop, nights), Ancestry.of(workshop.store)
    standing = ancestry.reached(roots.standing, ancestry.goes_on_with)
    standing |= frozenset(_shelved(workshop.store, standing))
    evidence = ancestry.reached(roots.evidence, lambda m: ancestry.goes_on_with(m) if m.step == "judge" else ())
    # a damaged dataset is built again from the catalog it went on with
    catalogs = frozenset(dataset.parents[-1] for dataset in ancestry.datasets(standing))
    remembered = ancestry.reached(roots.standing | roots.evidence, lambda m: m.parent_digests)
    decided = frozenset(f"catalog-before-{digest_of(m.parents[:-1])}" for m in ancestry.datasets(standing))
    return Kept(standing | evidence | catalogs, remembered, lambda head: _stays(head, standing, decided))


def roots_of(workshop: Workshop, nights: int) -> Roots:
    """Asks the registry, the ledger and MLflow's runs, and reads the heads and the batch scores."""
    chain = workshop.ledger.chain().require_intact()
    standing = {*_of_aliases(workshop), *_of_nights(workshop, nights)}
    standing |= {*_of_heads(workshop.store), *_of_scores(workshop.settings)}
    evidence = {digest for record in chain.records for digest in (record.digest, record.evidence)}
    return Roots(frozenset(standing - {""}), frozenset(evidence - {""}))


def score_folders(settings: Settings) -> list[Path]:
    """The batch scores that are whole, oldest first."""
    return sorted(path.parent for path in (settings.home / "scores").glob("[0-9]*/scores.json"))


def _of_aliases(workshop: Workshop) -> Iterator[str]:
    for model in (STUDENT, TEACHER):
        aliased = set(workshop.registry.aliases(model).values())
        for version in workshop.registry.versions(model):
            if version.number in aliased:
                yield from _digests(version.tags)


def _of_nights(workshop: Workshop, nights: int) -> Iterator[str]:
    """What the newest nights that came to an artifact were about."""
    tracking = workshop.tracking
    came_to_one, newest_first = "tags.`recsys.artifact` != ''", ["attributes.start_time DESC"]
    for run in tracking.client.search_runs([tracking.experiment_id], came_to_one, 1, nights, newest_first):
        yield from _digests(run.data.tags)


def _digests(tags: Mapping[str, str]) -> Iterator[str]:
    return (tags[name] for name in _TAGS if name in tags)


def _of_heads(store: Store) -> Iterator[str]:
    for name, fields in ((HEAD, ("artifact", "dataset")), ("catalog", ("digest",))):
        head = store.head(name) or {}
        yield from (head[field] for field in fields if field in head)


def _of_scores(settings: Settings) -> Iterator[str]:
    for folder in score_folders(settings):
        stamp: Mapping[str, Any] = json.loads((folder / "scores.json").read_text())
        yield from (stamp[name] for name in ("artifact", "dataset") if isinstance(stamp.get(name), str))


def _shelved(store: Store, whole: frozenset[str]) -> Iterator[str]:
    """The soft labels of teachers that are kept: the next night writes only what is new."""
    for path in (store.root / "heads").glob("labels-*.json"):
        shelf = _SHELF.match(path.stem)
        if shelf and shelf[1] in whole:
            yield from (store.head(path.stem) or {"segments": ()})["segments"]


def _stays(head: str, whole: frozenset[str], decided: frozenset[str]) -> bool:
    """Whether a head that is no decision about one object stays: the few names, and those about what is kept."""
    shelf = _SHELF.match(head)
    if shelf:
        return shelf[1] in whole
    return head in decided if head.startswith("catalog-before-") else True


def _read(path: Path) -> Manifest | None:
    try:
        return Manifest.read(path)
    except StoreError:
        return None
