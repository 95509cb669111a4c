"""A backup as one tar file: plain files, and last a manifest with the size and sha256 of each.

An archive without its manifest is not whole. A reader trusts nothing before it was compared: names that leave the folder,
links, files that the manifest does not know, and bytes that are others are all refused.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from recsys.errors import DataError, HomeError
from tasks.adapters.disk import remove, sync, told
from tasks.adapters.manifest import canonical

ARCHIVE_FORMAT = 1
_MANIFEST = "MANIFEST.json"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Contents:
    """What an archive holds: sha256 by name, links by name, and which home it was taken from."""

    home: str
    home_format: int
    made: str  # ISO 8601, UTC
    files: Mapping[str, str]
    links: Mapping[str, str]
    format: int = ARCHIVE_FORMAT

    def to_bytes(self) -> bytes:
        """JSON with a checksum of itself."""
        fields = asdict(self)
        checked = {"contents": fields, "sha256": hashlib.sha256(canonical(fields)).hexdigest()}
        return json.dumps(checked, sort_keys=True, indent=0).encode("ascii")

    @classmethod
    def read(cls, content: bytes, where: Path) -> Self:
        """DataError when it is damaged, or of a later format."""
        try:
            checked: Mapping[str, Any] = json.loads(content)
            fields = checked["contents"]
            if hashlib.sha256(canonical(fields)).hexdigest() != checked["sha256"]:
                raise ValueError("checksum")
            if fields["format"] > ARCHIVE_FORMAT:
                raise DataError(
                    "the archive is of a later version of recsys", where=str(where), mend="Install that one."
                )
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged("its manifest is damaged", where) from error


@dataclass
class ArchiveWriter:
    """An archive being written. Files may be added in any order, each once."""

    tar: tarfile.TarFile
    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    bytes: int = 0

    def add(self, name: str, path: Path) -> None:
        """A file under a name. One that has gone meanwhile is left out."""
        try:
            source = path.open("rb")
        except FileNotFoundError:
            return
        with source:
            size = os.fstat(source.fileno()).st_size
            reader = _Digesting(source)
            self.tar.addfile(_header(name, size), reader)
        self.files[name] = reader.digest.hexdigest()
        self.bytes += size

    def link(self, name: str, target: str) -> None:
        """A symbolic link to its neighbour."""
        self.links[name] = target

    def close(self, home: Path, home_format: int, made: str) -> None:
        """Without this the archive is not whole."""
        content = Contents(str(home), home_format, made, self.files, self.links).to_bytes()
        self.tar.addfile(_header(_MANIFEST, len(content)), io.BytesIO(content))


@contextmanager
def writing(path: Path) -> Iterator[ArchiveWriter]:
    """An archive, readable by its owner only, that appears under its name when it is whole."""
    draft = path.with_name(f".{path.name}.part")
    with told(path.parent):
        remove(draft)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    yield ArchiveWriter(tar)
                file.flush()
                os.fsync(file.fileno())
            os.rename(draft, path)
            sync(path.parent)
        finally:
            remove(draft)


def extract(path: Path, folder: Path) -> Contents:
    """Every file of an archive into an empty folder, compared with the manifest. DataError when anything is amiss."""
    found: dict[str, str] = {}
    contents = None
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if contents is not None:
                    raise _damaged("something follows its manifest", path)
                if member.name == _MANIFEST:
                    contents = Contents.read(_opened(tar, member, path).read(), path)
                else:
                    target = folder / _safe(member.name, path)
                    if member.name in found:
                        raise _damaged(f"{member.name!r} is in it twice", path)
                    found[member.name] = _extract_one(_opened(tar, member, path), target)
    except FileNotFoundError:
        raise DataError("there is no such archive", where=str(path), mend="Check the name.") from None
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(f"it cannot be read to its end: {error}", path) from error
    if contents is None:
        raise _damaged("it is not whole: its manifest is missing", path)
    _compare(contents, found, path)
    for name, neighbour in contents.links.items():
        place = folder / _safe(name, path)
        if "/" in neighbour or neighbour in ("", ".", ".."):
            raise _damaged(f"the link {name!r} leads elsewhere", path)
        place.symlink_to(neighbour)
    return contents


def _compare(contents: Contents, found: Mapping[str, str], path: Path) -> None:
    for name in sorted(contents.files.keys() ^ found.keys()):
        raise _damaged(f"{name!r} is {'missing' if name in contents.files else 'not in its manifest'}", path)
    for name, sha256 in found.items():
        if contents.files[name] != sha256:
            raise _damaged(f"{name!r} is damaged", path)


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> IO[bytes]:
    stream = tar.extractfile(member) if member.isreg() else None
    if stream is None:
        raise _damaged(f"{member.name!r} is no plain file", path)
    return stream


def _extract_one(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with told(target.parent):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            while block := source.read(_BLOCK):
                digest.update(block)
                file.write(block)
    return digest.hexdigest()


def _safe(name: str, path: Path) -> PurePosixPath:
    """A name that stays below the folder. DataError for any other."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in name or "\0" in name:
        raise _damaged(f"the name {name!r} leads out of the home", path)
    return parts


def _damaged(why: str, path: Path) -> DataError:
    return DataError(f"the archive is not restored: {why}", where=str(path), mend="Take another backup.")


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o600
    return header


class _Digesting:
    """A stream that knows the sha256 of what was read."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source, self.digest = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        block = self.source.read(size)
        self.digest.update(block)
        return block


def require_absent(path: Path) -> None:
    """HomeError when something is there already."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise HomeError("there is something already", where=str(path), mend="Name a place where nothing is.")
