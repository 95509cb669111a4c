"""What an object of the store is made from (recipe) and consists of (manifest)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from recsys.errors import StoreError

MEASURED = "measured.json"
"""What differs from run to run (seconds, latencies): kept with the object, not in its digest nor its view."""


_CHECKSUM = "sha256"


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, ASCII, no blanks, neither NaN nor infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value with a checksum of itself: a bit that rots in the file cannot make another value of it."""
    return {**value, _CHECKSUM: _checksum(value)}


def without_checksum(document: Any) -> dict[str, Any]:
    """The value that was given its checksum, or that of a file of before there were any. ValueError when it is another."""
    if not isinstance(document, dict):
        raise ValueError("it is no object")
    texts = [_CHECKSUM] if _CHECKSUM in document else [name for name, each in document.items() if isinstance(each, str)]
    for name in texts:
        value = {key: each for key, each in document.items() if key != name}
        if (document[name] == _checksum(value)) != (name == _CHECKSUM):  # or the checksum's own name has rotted
            raise ValueError("its checksum is another")
        if name == _CHECKSUM:
            return value
    return document


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_of(sha256_by_name: Mapping[str, str]) -> str:
    """What an object is: sha256 over the names of its files and the sha256 of each."""
    return hashlib.sha256(canonical(sorted(sha256_by_name.items()))).hexdigest()


def digest_of_folder(folder: Path) -> str:
    """The digest of the object that a folder shows."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return digest_of({p.relative_to(folder).as_posix(): sha256_of(p) for p in files})


@dataclass(frozen=True)
class Recipe:
    """All that a result depends on. Equal recipes make equal bytes, so what is made is not made again."""

    step: str
    version: int
    config: Mapping[str, Any]
    parents: tuple[str, ...]  # digests
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()


@dataclass(frozen=True)
class File:
    """One file of an object; `rows` of a Parquet file, else None."""

    name: str
    sha256: str
    bytes: int
    rows: int | None


@dataclass(frozen=True)
class Manifest:
    """What an object consists of and where it comes from. `digest` covers `files`, nothing else."""

    step: str
    key: str
    version: int
    digest: str
    config: Mapping[str, Any]
    environment: Mapping[str, str]
    parents: tuple[str, ...]
    files: tuple[File, ...]
    measured: str | None  # sha256 of measured.json

    @classmethod
    def of(cls, recipe: Recipe, files: tuple[File, ...], measured: str | None) -> Self:
        """The manifest of what `recipe` made."""
        digest = digest_of({f.name: f.sha256 for f in files})
        return cls(
            step=recipe.step,
            key=recipe.key,
            version=recipe.version,
            digest=digest,
            config=recipe.config,
            environment=recipe.environment,
            parents=recipe.parents,
            files=files,
            measured=measured,
        )

    @property
    def recipe(self) -> Recipe:
        """What it was made by."""
        return Recipe(self.step, self.version, self.config, self.parents, self.environment)

    def stands_at(self, name: str) -> bool:
        """Whether a store has this manifest under this name: by recipe, by digest, or waiting for its name in a bucket."""
        by_recipe, by_digest = f"manifests/{self.step}/{self.key}.json", f"objects/{self.step}/{self.digest}.json"
        return name.endswith((by_recipe, by_digest, f"scratch/{self.key}.json"))

    @property
    def blobs(self) -> Mapping[str, str]:
        """The name of each file by its sha256, what was measured among them."""
        return {**{f.sha256: f.name for f in self.files}, **({self.measured: MEASURED} if self.measured else {})}

    @property
    def parent_digests(self) -> tuple[str, ...]:
        """The parents without the roles that some recipes name them by ("teacher <digest>")."""
        return tuple(parent.rsplit(" ", 1)[-1] for parent in self.parents)

    def to_bytes(self) -> bytes:
        """Canonical JSON with a checksum of itself."""
        fields = json.loads(canonical(asdict(self)))
        checked = {"manifest": fields, "sha256": _checksum(fields)}
        return json.dumps(checked, sort_keys=True, indent=1, allow_nan=False).encode("ascii")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The manifest in a file of a store; None when there is no such file; StoreError when it is damaged."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        return cls.parse(content, "/".join(path.parts[-3:]), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str, where: str) -> Self:
        """The manifest that `to_bytes` wrote and a store has under `name`; StoreError when it is another or damaged."""
        try:
            checked = json.loads(content)
            fields = checked["manifest"]
            if _checksum(fields) != checked["sha256"]:
                raise ValueError("checksum")
            files = tuple(File(**f) for f in fields["files"])
            manifest = cls(**{**fields, "files": files, "parents": tuple(fields["parents"])})
            if not manifest.stands_at(name):
                raise ValueError("it belongs under another name")
            return manifest
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                "a manifest of the store is damaged",
                where=where,
                mend="Run the same command again: what is damaged is made anew.",
            ) from error
