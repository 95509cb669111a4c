"""The follower: keeps the champion's verified copy loaded in a serving process, whatever becomes of the registry.

Every few seconds it asks who is champion. A new one is copied into the home (from the store, else from MLflow), compared
with its digest, opened, asked its golden requests, and only then takes the place of the old one, at once and for new
requests only. One that fails is refused, and the last good one serves on; so it does while MLflow is away.

    serving/<digest>/      the files of the champion and of the one before it
    serving/current.json   which of them serves: what a start without MLflow begins with
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from recsys.errors import ArtifactError, RecsysError, RegistryError, StoreError
from recsys.runtime import Runtime
from recsys.served_model import Following, ServedModel, Standing
from tasks.adapters.disk import remove
from tasks.adapters.ledger import Ledger
from tasks.adapters.manifest import digest_of_folder, with_checksum, without_checksum
from tasks.adapters.registry import STUDENT, Registry, Version
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store

LOGGER = logging.getLogger("recsys.serve")

_REMEMBERED = "current.json"


class Shop(Protocol):
    """Where the champion is looked up."""

    @property
    def registry(self) -> Registry: ...

    @property
    def ledger(self) -> Ledger: ...


@dataclass(frozen=True)
class Remembered:
    """What `current.json` says, with a checksum of itself."""

    version: int
    digest: str
    as_of: int | None  # seconds UTC, exclusive


S = TypeVar("S", bound=Shop)


class Follower(Generic[S]):
    """A recsys.served_model.Source. One thread follows, any number read."""

    def __init__(
        self, settings: Settings, store: Store, connect: Callable[[], S], settle: Callable[[S], object]
    ) -> None:
        """`connect` opens the registry and the ledger anew; `settle` adopts or puts back an alias moved by hand."""
        self.settings, self.store = settings, store
        self._connect, self._settle = connect, settle
        self._shop: S | None = None
        self._model: ServedModel | None = None
        self._standing = Standing("starting", "the registry was not asked yet", None, 0, 0)
        self._before = ""  # digest of the model served before

    @property
    def folder(self) -> Path:
        """Where the copies are."""
        return self.settings.home / "serving"

    def current(self) -> ServedModel | None:
        """The model to serve. Who reads it keeps it as long as it needs it."""
        return self._model

    def standing(self) -> Standing:
        """How the last look ended."""
        return self._standing

    @contextlib.contextmanager
    def following(self, poll: float) -> Iterator[None]:
        """Begins with the copy that served last, and looks at the registry every `poll` seconds inside the block."""
        self.restore()
        ended = threading.Event()

        def follow() -> None:
            self.look()
            while not ended.wait(poll):
                self.look()

        threading.Thread(target=follow, name="follow", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def restore(self) -> None:
        """Serves the copy that served last, if it is there and whole."""
        try:
            remembered = Remembered(**without_checksum(json.loads((self.folder / _REMEMBERED).read_bytes())))
            runtime = self._open(self.folder / remembered.digest, remembered.digest)
        except FileNotFoundError:
            return
        except (RecsysError, ValueError, TypeError) as error:
            LOGGER.warning("the copy that served last is not used: %s", error)
            return
        self._serve(runtime, remembered)

    def look(self) -> None:
        """One look at the registry. Raises nothing: what went wrong is in `standing` and in the log."""
        try:
            champion = self._champion()
        except Exception as error:  # whatever MLflow, its database or the network says, what serves goes on serving
            self._shop = None
            self._tell("stale", f"stale registry: {_said(error)}")
            return
        answered = time.time()
        if champion is None:
            self._tell("empty", "the registry has no champion; run recsys nightly", answered)
        elif self._model and (self._model.version, self._model.digest) == (champion.number, champion.digest):
            self._tell("current", f"version {champion.number} is the champion", answered)
        else:
            self._change(champion, answered)

    # -- inside

    def _champion(self) -> Version | None:
        """The champion by the ledger, once its alias agrees with it."""
        if self._shop is None:
            self._shop = self._connect()
        self._settle(self._shop)
        number = self._shop.ledger.chain().require_intact().champion
        return None if number is None else self._shop.registry.version(STUDENT, number)

    def _change(self, champion: Version, answered: float) -> None:
        """Makes a checked champion the current model, or says why not."""
        try:
            folder = self._fetch(champion)
            runtime = self._open(folder, champion.digest)
        except RegistryError as error:
            self._tell("stale", f"stale registry: {_said(error)}", answered)
            return
        except Exception as error:  # a doctored file may make a parser raise anything
            refused = f"champion version {champion.number} is refused: {_said(error)}"
            known = self._standing.sentence == refused
            self._tell("refused", refused, answered, refused=0 if known else 1)
            return
        swaps = 1 if self._model else 0
        self._serve(runtime, Remembered(champion.number, champion.digest, self._as_of(champion)))
        self._tell("current", f"version {champion.number} is the champion", answered, swaps=swaps)

    def _serve(self, runtime: Runtime, remembered: Remembered) -> None:
        if self._model and self._model.digest != remembered.digest:
            self._before = self._model.digest
        self._model = ServedModel(runtime, remembered.version, remembered.digest, remembered.as_of, time.time())
        LOGGER.info("serving version %d, %s", remembered.version, remembered.digest[:12])
        self._remember(remembered)

    def _open(self, folder: Path, digest: str) -> Runtime:
        """ArtifactError unless the files are those of the digest and the model answers as when it was made."""
        found = digest_of_folder(folder) if folder.is_dir() else "nothing"
        if found != digest:
            raise ArtifactError(
                "the files are not those that were registered", where=f"expected {digest}, found {found}"
            )
        runtime = Runtime.open(folder, threads=1)
        runtime.check_golden()
        return runtime

    def _fetch(self, champion: Version) -> Path:
        """The champion's files in a folder of ours, which neither the store's nor MLflow's housekeeping touches."""
        if not champion.digest:
            raise ArtifactError(f"version {champion.number} was not registered by a night: its files have no digest")
        target = self.folder / champion.digest
        if target.is_dir() and digest_of_folder(target) == champion.digest:
            return target
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.settings.temp, prefix="serving-") as temporary:
            draft = self._copy(champion, Path(temporary))
            remove(target)
            os.rename(draft, target)
        return target

    def _copy(self, champion: Version, into: Path) -> Path:
        """From the store if it still has the object, else from MLflow."""
        try:
            found = self.store.open("artifact", champion.digest)
        except StoreError:
            assert self._shop is not None  # it has just named the champion
            return self._shop.registry.download(STUDENT, champion.number, into)
        return Path(shutil.copytree(found, into / "files", copy_function=shutil.copyfile))

    def _as_of(self, champion: Version) -> int | None:
        """Of the dataset it was trained on, while the store knows that."""
        with contextlib.suppress(StoreError, KeyError, ValueError):
            document = json.loads(self.store.read("build", champion.tags["recsys.dataset"], "build.json"))
            return int(document["build"]["as_of"])
        return None

    def _remember(self, remembered: Remembered) -> None:
        """For the next start; copies that serve no more are removed, but for the one before."""
        try:
            draft = self.folder / f".{_REMEMBERED}-{os.getpid()}"
            draft.write_text(json.dumps(with_checksum(asdict(remembered))))
            os.replace(draft, self.folder / _REMEMBERED)
            for path in self.folder.iterdir():
                if path.is_dir() and path.name not in (remembered.digest, self._before):
                    remove(path)
        except OSError as error:  # a full disk is no reason not to serve what is in memory
            LOGGER.warning("the copy cannot be remembered: %s", error)

    def _tell(
        self, state: Following, sentence: str, answered: float | None = None, swaps: int = 0, refused: int = 0
    ) -> None:
        if sentence != self._standing.sentence:
            LOGGER.log(logging.INFO if state == "current" else logging.WARNING, "%s", sentence)
        self._standing = replace(
            self._standing,
            state=state,
            sentence=sentence,
            answered=answered or self._standing.answered,
            swaps=self._standing.swaps + swaps,
            refused=self._standing.refused + refused,
        )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, RecsysError) else f"{type(error).__name__}: {error}"
