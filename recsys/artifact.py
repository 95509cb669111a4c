"""The published files of a model: their names, what they say, and the check before any of them is parsed.

    model.onnx           what is served (recsys/graph.py)
    weights.safetensors  the weights by name, linears in float, and the map from a text to a row: to build on, or to serve elsewhere
    items.parquet        code, item_id, title, category, count (training events)
    card.json            what the model is: `Card`
    golden.json          requests and the answers it gave when it was made: `Golden`
    manifest.json        size and SHA-256 of each of the others, written last

All of it is data. Standard library only: whoever serves a model needs nothing more to check it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from recsys.errors import ArtifactError

FORMAT = 1

MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
ITEMS = "items.parquet"
CARD = "card.json"
GOLDEN = "golden.json"
MANIFEST = "manifest.json"
CONTENTS = (CARD, GOLDEN, ITEMS, MODEL, WEIGHTS)
"""Every file of an artifact but its manifest. Nothing else may lie in the folder."""

LARGEST_MANIFEST = 64 * 1024
EXTERNAL_DATA = b"\n\x08location"
"""How an ONNX file begins to name another file that holds its weights: key (field 1) `location`, 8 bytes."""

MEND = "Fetch or make the artifact again."


@dataclass(frozen=True)
class Card:
    """What the model is."""

    items: int  # N
    length: int  # the most items of a history it reads, the newest
    width: int  # D
    heads: tuple[int, ...]  # of each block
    ffn: tuple[int, ...]  # feed-forward units of each block
    bits: Literal[4, 8, 32]  # of the item table
    repeats: Literal["exclude", "allow"]  # whether items of a history may be recommended again
    lineage: Mapping[str, str]  # name of a parent -> its digest
    neighbours: int = 0  # K kept of each item; 0: the decoder alone
    newest: int = 0  # newest items of a history whose neighbours are asked
    neighbours_weight: float = 0.0  # share of the neighbours in the mean of logits
    text: Mapping[str, str] = field(default_factory=dict)  # what read the texts of `text.*` in the weights; empty: none

    @property
    def blocks(self) -> int:
        """Transformer blocks."""
        return len(self.heads)

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical({"format": FORMAT, "blocks": self.blocks, **asdict(self)})

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The inverse of `to_bytes`; ArtifactError when `raw` is no card of this format."""
        try:
            value = json.loads(raw)
            if value.pop("format") != FORMAT:
                raise ValueError("another format")
            value.pop("blocks")
            return cls(**{**value, "heads": tuple(value["heads"]), "ffn": tuple(value["ffn"])})
        except (ValueError, KeyError, TypeError, AttributeError) as reason:
            raise ArtifactError(f"{CARD} is not a card of format {FORMAT}", mend=MEND) from reason


@dataclass(frozen=True)
class Golden:
    """Requests, by item codes, and the answers given when the model was made."""

    histories: Sequence[Sequence[int]]
    codes: Sequence[Sequence[int]]  # best first; fewer than asked for where no more are left
    scores: Sequence[Sequence[float]]

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical(asdict(self))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The inverse of `to_bytes`; ArtifactError when `raw` is something else."""
        try:
            return cls(**json.loads(raw))
        except (ValueError, TypeError) as reason:
            raise ArtifactError(f"{GOLDEN} does not hold golden requests", mend=MEND) from reason


@dataclass(frozen=True)
class FileEntry:
    """One file, as the manifest knows it."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, raw: memoryview) -> Self:
        """The entry of a file that holds `raw`."""
        return cls(hashlib.sha256(raw).hexdigest(), raw.nbytes)


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact. Equal artifacts have equal manifests, byte for byte."""

    files: Mapping[str, FileEntry]

    @property
    def model_bytes(self) -> int:
        """Size of model.onnx: the model as it is served."""
        return self.files[MODEL].bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which stands for the whole artifact."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical({"format": FORMAT, "files": {name: asdict(entry) for name, entry in self.files.items()}})

    def check(self, folder: Path, name: str) -> None:
        """ArtifactError where one file is another now than the manifest says; its bytes are not held."""
        with open(folder / name, "rb") as file:
            found = FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
        if found != self.files[name]:
            raise ArtifactError(f"{name} is not the file its manifest names", where=str(folder), mend=MEND)

    def read(self, folder: Path, name: str) -> bytes:
        """One file, checked again as it is read, so that what is parsed is what was verified."""
        file, entry = folder / name, self.files[name]
        raw = file.read_bytes() if file.stat().st_size == entry.bytes else b""
        if FileEntry.of(memoryview(raw)) != entry:
            raise ArtifactError(f"{name} is not the file its manifest names", where=str(folder), mend=MEND)
        return raw


def canonical(value: Any) -> bytes:
    """JSON with one spelling for one value."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def write_manifest(folder: Path) -> Manifest:
    """Measure the files of `folder` and write their manifest, which makes the folder an artifact."""
    manifest = Manifest({name: FileEntry.of(memoryview((folder / name).read_bytes())) for name in CONTENTS})
    draft = folder / f"{MANIFEST}.draft"
    draft.write_bytes(manifest.to_bytes())
    draft.replace(folder / MANIFEST)
    return verify(folder)


def verify(folder: Path) -> Manifest:
    """Check that `folder` holds exactly what its manifest names, unchanged. Nothing is parsed.

    ArtifactError names the first file that is missing, changed, of another kind, or does not belong there.
    """
    _check_names(folder)
    manifest = _read_manifest(folder)
    for name in manifest.files:
        if not _is_what_it_is_called(name, manifest.read(folder, name)):
            raise ArtifactError(f"{name} is not the kind of file its name says", where=str(folder), mend=MEND)
    return manifest


def _check_names(folder: Path) -> None:
    """Refuse a folder with a file too many, a file too few, a link or a folder inside."""
    if not folder.is_dir():
        raise ArtifactError("there is no artifact", where=str(folder), mend=MEND)
    with os.scandir(folder) as entries:
        found = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    for name in sorted(found):
        if name != MANIFEST and name not in CONTENTS:
            raise ArtifactError(f"{name} does not belong to an artifact", where=str(folder), mend="Nothing was loaded.")
        if not found[name]:
            raise ArtifactError(f"{name} is a link or a folder, not a file", where=str(folder), mend=MEND)
    for name in (MANIFEST, *CONTENTS):
        if name not in found:
            raise ArtifactError(f"{name} is missing", where=str(folder), mend=MEND)


def _read_manifest(folder: Path) -> Manifest:
    """The manifest, refused unless it is spelt exactly as this version would spell it."""
    with open(folder / MANIFEST, "rb") as file:
        raw = file.read(LARGEST_MANIFEST + 1)
    try:
        value = json.loads(raw)
        if value["format"] != FORMAT:
            raise ArtifactError(
                f"{MANIFEST} has format {value['format']}, this version reads {FORMAT}",
                where=str(folder),
                mend="Make the artifact again, or use the version it was made with.",
            )
        manifest = Manifest({name: FileEntry(**entry) for name, entry in value["files"].items()})
        if tuple(sorted(manifest.files)) != CONTENTS or manifest.to_bytes() != raw:
            raise ValueError("not canonical")
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise ArtifactError(f"{MANIFEST} is damaged", where=str(folder), mend=MEND) from reason
    return manifest


def _is_what_it_is_called(name: str, raw: bytes) -> bool:
    """Whether `raw` begins (and ends) as the suffix says, and an ONNX file is whole in itself."""
    match Path(name).suffix:
        case ".onnx":
            return raw[:1] == b"\x08" and EXTERNAL_DATA not in raw  # field 1, the IR version, comes first
        case ".safetensors":
            return raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") <= len(raw) - 8
        case ".parquet":
            return raw[:4] == raw[-4:] == b"PAR1"
        case _:
            return raw[:1] == b"{"
