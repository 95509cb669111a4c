"""Everything that a home has published, and how the product reads it: what benchmarks/bit_flips.py spoils.

Objects of the store step by step, their manifests, the ledger's records and their mirror, the vault's key and table, the
artifact as MLflow keeps it and as a serving process keeps its copy.
"""

import contextlib
import dataclasses
import functools
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys.artifact import MANIFEST
from recsys.errors import RecsysError
from recsys.runtime import Runtime
from tasks.adapters.follow import Follower
from tasks.adapters.load_check import check, check_packaging
from tasks.adapters.manifest import MEASURED, Manifest, Recipe
from tasks.adapters.registry import STUDENT
from tasks.adapters.store import Store
from tasks.adapters.vault import Vault
from tasks.check_store import databases
from tasks.check_store import vault as vault_faults
from tasks.workshop import Workshop


@dataclass(frozen=True)
class Target:
    """One published thing: its bytes, how the product reads it, what a refusal must name."""

    kind: str
    called: str
    get: Callable[[], bytes]
    put: Callable[[bytes], object]
    read: Callable[[], object]
    expected: object = None  # what `read` gives of it whole, where a flip may be harmless
    remake: Callable[[], bytes] | None = None  # makes it again, as a night or a look would; gives its bytes


def targets_of(workshop: Workshop) -> list[Target]:
    """Everything that the home has published."""
    store, registry = workshop.store, workshop.registry
    found = [target for path in sorted((store.root / "objects").glob("*/*.json")) for target in _object(store, path)]
    found += [*_mirror(workshop), *_records(workshop), *_vault(workshop)]
    version = registry.version(STUDENT, workshop.ledger.chain().champion or 1)
    folder = Path(registry.client.get_model_version_download_uri(STUDENT, str(version.number)).removeprefix("file://"))
    for path in sorted(folder.glob("data/*/*")):
        read = functools.partial(check, folder, version.digest, "recsys.runtime", 1e6)
        found.append(_file("artifact in MLflow", path, _called(path), read))
    return [*found, _description(folder), *_serving(workshop, version.digest), *_heads(store)]


def _object(store: Store, path: Path) -> Iterator[Target]:
    """The files of an object, what was measured, and its manifest."""
    manifest = Manifest.read(path)
    assert manifest is not None
    step, digest = manifest.step, manifest.digest
    recipe = Recipe(step, manifest.version, manifest.config, manifest.parents, manifest.environment)
    assert recipe.key == manifest.key
    contents = {name: store.blob(sha256).read_bytes() for sha256, name in manifest.blobs.items()}

    def build(out: Path) -> None:
        for name, content in contents.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)

    def remake(of: Path) -> bytes:
        made = Store(store.root).make(recipe, build)
        assert made.digest == digest
        Store(store.root).open(step, digest)
        return of.read_bytes()

    def measured() -> object:
        return Store(store.root).measured(step, digest)

    def opened() -> object:
        return _parsed(Store(store.root).open(step, digest))

    for sha256, name in manifest.blobs.items():
        blob, read = store.blob(sha256), measured if name == MEASURED else opened
        yield _file(step, blob, f"{step}/{name}", read, remake=functools.partial(remake, blob))

    def read_manifest() -> object:
        return Store(store.root).manifest(step, digest)

    yield _file("manifest", path, digest, read_manifest, read_manifest(), functools.partial(remake, path))


def _parsed(folder: Path) -> object:
    """As whoever opened it goes on."""
    if (folder / "model.onnx").exists():
        return Runtime.open(folder)
    tables = sorted(folder.rglob("*.parquet"))
    return [pq.read_table(path) for path in tables] or sorted(folder.rglob("*"))


def _mirror(workshop: Workshop) -> Iterator[Target]:
    for path in sorted(workshop.settings.ledger.glob("*/*.json")):
        yield _file("mirrored record", path, path.name, lambda: workshop.ledger.chain().require_intact(), None,
                    lambda path=path: _copied_again(workshop, path))  # fmt: skip


def _copied_again(workshop: Workshop, path: Path) -> bytes:
    path.unlink()
    workshop.ledger.chain().require_intact()
    return path.read_bytes()


def _records(workshop: Workshop) -> Iterator[Target]:
    """As MLflow keeps them. The bytes are a tag, which is text: a byte of it is a character."""
    name = workshop.ledger.name
    for version in workshop.registry.all_versions(name):
        number = version.number

        def get(number: int = number) -> bytes:
            return workshop.registry.version(name, number).tags["recsys.record"].encode("latin-1")

        def put(content: bytes, number: int = number) -> None:
            workshop.registry.set_tags(name, number, {"recsys.record": content.decode("latin-1")})

        yield Target("record", f"record {number}", get, put, lambda: workshop.ledger.chain().require_intact())


def _vault(workshop: Workshop) -> Iterator[Target]:
    settings = workshop.settings
    table = settings.vault / "users.sqlite"
    tokens = _tokens(table)

    def names() -> dict[str, str]:
        found = Vault(settings.vault, settings.vault_key).user_ids(tokens)
        for fault in (*databases(workshop), *vault_faults(workshop)) if len(found) < len(tokens) else ():
            raise RecsysError(fault.what, mend=fault.mend)
        return found

    whole = names()
    yield _file("key", settings.vault_key, str(settings.vault_key), names)
    yield dataclasses.replace(
        _file("users.sqlite", table, "users.sqlite", names, whole), put=lambda content: _put_database(table, content)
    )


def _tokens(table: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(table)) as connection:
        return [token for (token,) in connection.execute("SELECT lower(hex(token)) FROM users")]


def _put_database(path: Path, content: bytes) -> None:
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    path.write_bytes(content)


def _called(path: Path) -> str:
    """Between a file and a manifest that says otherwise nobody can choose: the error names both."""
    return "manifest" if path.name == MANIFEST else path.name


def _description(package: Path) -> Target:
    """What MLflow writes beside the files. All of it that decides what is loaded is compared with what is expected."""
    (folder,) = (package / "data").iterdir()
    as_ours = "it calls our loader with this folder and nothing else"

    def read() -> str:
        check_packaging(package, folder, "recsys.runtime")
        return as_ours

    return _file("MLmodel", package / "MLmodel", "MLmodel", read, as_ours)


def _serving(workshop: Workshop, digest: str) -> Iterator[Target]:
    """The copy of a serving process, which makes it again when it looks at the registry."""
    settings = workshop.settings
    copy = settings.home / "serving" / digest

    def look(path: Path) -> bytes:
        follower = Follower(settings, Store(settings.store), lambda: workshop, lambda shop: None)
        follower.look()
        assert follower.standing().state == "current", follower.standing()
        return path.read_bytes()

    look(copy / "card.json")
    for path in sorted(copy.iterdir()):
        yield _file("copy that serves", path, _called(path), lambda: Runtime.open(copy), None, lambda p=path: look(p))

    def restore() -> int:
        follower = Follower(settings, Store(settings.store), lambda: workshop, lambda shop: None)
        follower.restore()
        if (model := follower.current()) is None:  # ignored, with a warning
            raise RecsysError("current.json is not used")
        return model.version

    current = settings.home / "serving" / "current.json"
    yield _file("current.json", current, "current.json", restore, None, lambda: look(current))


def _heads(store: Store) -> Iterator[Target]:
    """As this version points them; those of before have no checksum."""
    for path in sorted((store.root / "heads").glob("*.json")):
        value = store.head(path.stem)
        assert value is not None

        def again(path: Path = path, value: Mapping[str, Any] = value) -> bytes:
            store.set_head(path.stem, value)
            return path.read_bytes()

        again()
        yield _file("head", path, path.name, functools.partial(store.head, path.stem), value, again)


def _file(
    kind: str,
    path: Path,
    called: str,
    read: Callable[[], object],
    expected: object = None,
    remake: Callable[[], bytes] | None = None,
) -> Target:
    def put(content: bytes) -> None:
        if path.exists():
            path.chmod(0o600)
        path.write_bytes(content)

    return Target(kind, called, path.read_bytes, put, read, expected, remake)
