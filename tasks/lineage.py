"""From a served version back to the input files: every object on the way, with what it was made from and when.

Artifact, student, soft labels, teacher, dataset, accepted files, and the digests of the input's own bytes. What an
earlier night handed over (the student a search started from, the catalog that codes were appended to) is named and
marked: it has a lineage of its own.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recsys.errors import StoreError
from tasks.adapters.ledger import Record
from tasks.adapters.manifest import Manifest, canonical
from tasks.adapters.records import NightRun, nights
from tasks.adapters.registry import STUDENT, Version
from tasks.adapters.store import Store
from tasks.workshop import Workshop

INPUT, LANGUAGE_MODEL = "input", "language model"
"""Steps of what the store has not made: an input file by its own bytes, and what reads the items' texts."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NIGHTS_LOOKED_AT = 400
_COUNTED: Mapping[str, tuple[str, str]] = {
    "validate": ("accepted.parquet", "rows"),
    "items": ("items.parquet", "items"),
    "build": ("shard-", "users"),
    "label": ("labels.parquet", "positions"),
    "artifact": ("items.parquet", "items"),
    "evaluate": ("users.parquet", "users"),
}
"""By step: whose rows are counted (names that begin so), and what one of them is."""


@dataclass(frozen=True)
class Node:
    """One object on the way."""

    digest: str
    step: str
    name: str = ""  # of an input file, as it was called when it was first read
    count: int | None = None
    of: str = ""  # what is counted
    bytes: int | None = None
    made: int | None = None  # seconds UTC
    run: str = ""  # name of the night that made it
    run_id: str = ""  # of that night in MLflow
    config: str = ""  # digest of its part of the configuration
    version: int | None = None  # in the registry, of an artifact
    state: str = "whole"  # emptied: gc took its content; gone: also what was known of it
    earlier: bool = False  # handed over by an earlier night
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The verdict on a version, and the reports it rests on."""

    digest: str
    decision: str
    sentence: str
    config: str
    reports: Mapping[str, str] = field(default_factory=dict)  # role -> digest


@dataclass(frozen=True)
class Trace:
    """Where a version comes from. `nodes` begin with its artifact."""

    version: int
    digest: str
    run_id: str  # that registered it
    nodes: tuple[Node, ...]
    judgement: Judgement | None
    records: tuple[Record, ...]  # of the ledger that name it

    def node(self, digest: str) -> Node:
        """One of them. KeyError when there is no such."""
        return {node.digest: node for node in self.nodes}[digest]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The input files that no earlier night is needed to name."""
        return tuple(node for node in self.nodes if node.step == INPUT and not node.earlier)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        value = asdict(self)
        value["records"] = [json.loads(record.text()) | {"number": record.number} for record in self.records]
        return value


def trace(workshop: Workshop, number: int) -> Trace:
    """The lineage of a version of the student. RegistryError when there is no such version."""
    version = workshop.registry.version(STUDENT, number)
    known = nights(workshop.tracking, most=_NIGHTS_LOOKED_AT)
    versions = {each.digest: each.number for each in reversed(workshop.registry.versions(STUDENT)) if each.digest}
    nodes = (
        replace(_dated(node, known), version=versions.get(node.digest))
        for node in walk(workshop.store, version.digest, _remembered(version))
    )
    return Trace(
        version=number,
        digest=version.digest,
        run_id=version.run_id,
        nodes=tuple(nodes),
        judgement=_judgement(workshop.store, version),
        records=tuple(record for record in workshop.ledger.chain().records if record.to == number),
    )


def walk(store: Store, digest: str, remembered: tuple[str, ...] = ()) -> tuple[Node, ...]:
    """Every object behind an artifact, itself first, then those that tonight needed, then what was handed over.

    `remembered` are the parents of the artifact, for the case that the store has forgotten them.
    """
    manifests = dict(store.lineage(digest))
    if manifests[digest] is None:
        for parent in remembered:
            manifests |= store.lineage(parent)
    files = {m.parent_digests[0] for m in manifests.values() if m and m.step in ("validate", "items")}
    encoders = {m.parent_digests[1] for m in manifests.values() if m and m.step == "teach"}
    nodes = {}
    for each, manifest in manifests.items():
        if manifest is not None:
            nodes[each] = _node(store, manifest, manifests)
        elif each in files:
            nodes[each] = _input(store, each, manifests)
        elif _DIGEST.match(each):
            step = LANGUAGE_MODEL if each in encoders else "artifact" if each == digest else "unknown"
            gone = "whole" if each in encoders else "gone"
            nodes[each] = Node(each, step, state=gone, parents=remembered if each == digest else ())
    return tuple(_in_order(nodes, digest, manifests))


def _in_order(nodes: Mapping[str, Node], root: str, manifests: Mapping[str, Manifest | None]) -> Iterator[Node]:
    """Nearest first; what only an earlier night leads to comes last and is marked."""
    tonight = _reached(nodes, [root], lambda node, parent: not _is_handed_over(manifests, node, parent))
    rest = _reached(nodes, [root], lambda node, parent: True)
    yield from (nodes[each] for each in tonight)
    yield from (replace(nodes[each], earlier=True) for each in rest if each not in set(tonight))


def _reached(nodes: Mapping[str, Node], roots: list[str], follow: Any) -> list[str]:
    seen: dict[str, None] = {}
    waiting = list(roots)
    while waiting:
        if (at := waiting.pop(0)) not in seen and at in nodes:
            seen[at] = None
            waiting += [parent for parent in nodes[at].parents if follow(at, parent)]
    return list(seen)


def _is_handed_over(manifests: Mapping[str, Manifest | None], child: str, parent: str) -> bool:
    """A student that started from another one, a dataset that continues another one's catalog."""
    steps = [manifest.step if (manifest := manifests.get(each)) else "" for each in (child, parent)]
    return steps in (["distil", "distil"], ["build", "build"])


def _node(store: Store, manifest: Manifest, manifests: Mapping[str, Manifest | None]) -> Node:
    beginning, of = _COUNTED.get(manifest.step, ("", ""))
    counted = [file.rows or 0 for file in manifest.files if of and file.name.startswith(beginning)]
    there = store.shared is not None or all(store.blob(file.sha256).exists() for file in manifest.files)
    return Node(
        digest=manifest.digest,
        step=manifest.step,
        name=_file_name(store, manifest),
        count=sum(counted) if counted else None,
        of=of,
        bytes=sum(file.bytes for file in manifest.files),
        made=store.made_at(manifest.step, manifest.digest),
        config=_short(manifest.config),
        state="whole" if there else "emptied",
        parents=tuple(parent for parent in manifest.parent_digests if _DIGEST.match(parent)),
    )


def _input(store: Store, digest: str, manifests: Mapping[str, Manifest | None]) -> Node:
    """An input file: its name and lines are in what was made of it."""
    for manifest in manifests.values():
        if manifest and manifest.step in ("validate", "items") and manifest.parent_digests[0] == digest:
            try:
                said = json.loads(store.read(manifest.step, manifest.digest, "validation.json"))
            except StoreError:
                continue
            return Node(digest, INPUT, name=said["file"], count=said["lines"], of="lines")
    return Node(digest, INPUT)


def _file_name(store: Store, manifest: Manifest) -> str:
    if manifest.step not in ("validate", "items"):
        return ""
    try:
        return str(json.loads(store.read(manifest.step, manifest.digest, "validation.json"))["file"])
    except StoreError:
        return ""


def _remembered(version: Version) -> tuple[str, ...]:
    """Parents of a version's artifact as its tags have them: they outlive the store's manifests."""
    names = ("recsys.student", "recsys.dataset", "recsys.teacher")
    return tuple(version.tags[name] for name in names if name in version.tags)


def _dated(node: Node, known: Iterable[NightRun]) -> Node:
    """The node with the night that was at work when it was made."""
    if node.made is None:
        return node
    for night in known:
        if int(night.began.timestamp()) <= node.made <= night.ended.timestamp() + 1:
            return replace(node, run=night.name, run_id=night.run_id)
    return node


def _judgement(store: Store, version: Version) -> Judgement | None:
    digest = version.tags.get("recsys.verdict", "")
    if not digest:
        return None
    decision = version.tags.get("recsys.decision", "")
    try:
        manifest = store.manifest("judge", digest)
    except StoreError:
        return Judgement(digest, decision, version.sentence, "")
    named = (parent.rsplit(" ", 1) for parent in manifest.parents)
    return Judgement(digest, decision, version.sentence, _short(manifest.config), dict(named))


def _short(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(config)).hexdigest()[:16]
