"""Training by several processes, which torch's elastic launcher starts, watches, and starts again when one of them dies.

The caller hands data over in a file, and gets back what any run leaves behind, its checkpoint: a `fit` that finds one of
all epochs has nothing left to train. So nothing else than `fit` knows what a trained model is. What is told on the way
goes through files as well, so that ranks may be on other hosts that share the folder.

    python -m recsys.torchrun ARGUMENTS OF TORCHRUN     torchrun that ends with the process that started it
"""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recsys.errors import TrainingError
from recsys.fleet import end_with_parent, hand_over
from recsys.training import Epoch, ignore, never

__all__ = ["Place", "Torchrun"]

_log = logging.getLogger(__name__)

Trained = TypeVar("Trained")
Fit = Callable[..., tuple[Trained, list[Epoch]]]
"""`fit_teacher` and its like: a function of a module, found there by the ranks."""

RESTARTS = 3
LOOKED_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Place:
    """The folder through which a caller and its ranks talk."""

    folder: Path

    @property
    def work(self) -> Path:
        """What is to be done: written by the caller."""
        return self.folder / "work"

    @property
    def epochs(self) -> Path:
        """Those trained so far: written by the first rank."""
        return self.folder / "epochs.json"

    @property
    def error(self) -> Path:
        """What is wrong and does not mend by starting again: written by a rank."""
        return self.folder / "error"

    @property
    def enough(self) -> Path:
        """Is there when the best so far will do: written by the caller."""
        return self.folder / "enough"

    @property
    def log(self) -> Path:
        """What the launcher and the ranks print."""
        return self.folder / "log"

    def write(self, file: Path, content: bytes) -> None:
        """At once, so that a reader sees all of it."""
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.rename(file)

    def told(self) -> list[Epoch]:
        """The epochs trained so far."""
        return [Epoch(**epoch) for epoch in json.loads(self.epochs.read_bytes())] if self.epochs.exists() else []


@dataclass(frozen=True)
class Torchrun:
    """How a training is launched. `Torchrun(...).fit(fit_teacher, ...)` is what `fit_teacher(...)` is."""

    folder: Path  # shared by all hosts, as is the checkpoint's
    ranks: int  # of all hosts together
    threads: int  # of each rank
    hosts: int = 1
    rendezvous: str = ""  # HOST:PORT where the launchers of several hosts meet

    def fit(
        self,
        fit: Fit[Trained],
        *arguments: Any,
        checkpoint: Path,
        on_epoch: Callable[[Epoch], None] = ignore,
        enough: Callable[[], bool] = never,
        **options: Any,
    ) -> tuple[Trained, list[Epoch]]:
        """What `fit` gives, trained by the ranks. `enough` is asked all the time and heard after the next epoch.

        Raises what `fit` raises of RecsysErrors, and TrainingError when the ranks have died too often.
        """
        heard: list[Epoch] = []

        def hear(epoch: Epoch) -> None:
            if epoch.number > len(heard):
                heard.append(epoch)
                on_epoch(epoch)

        place = Place(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        hand_over((fit, arguments, {**options, "checkpoint": checkpoint}, self.threads), place.work)
        with self._launched(place) as launcher:
            while launcher.poll() is None and not place.error.exists():
                for epoch in place.told():
                    hear(epoch)
                if not place.enough.exists() and enough():
                    place.enough.touch()
                time.sleep(LOOKED_EVERY)
        trained = len(self._outcome(place, launcher.returncode))
        model, epochs = fit(*arguments, checkpoint=checkpoint, on_epoch=hear, enough=lambda: True, **options)
        if len(epochs) != trained:
            raise TrainingError(
                f"{trained} epochs were trained and the checkpoint has not got them", where=str(checkpoint)
            )
        shutil.rmtree(self.folder)
        return model, epochs

    @contextmanager
    def _launched(self, place: Place) -> Iterator[subprocess.Popen[bytes]]:
        """The launcher; when it is left, it and its ranks are gone."""
        # A rank has as many threads as it is told, on any machine: they are part of what the sums come to.
        own = {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        words = [sys.executable, "-m", "recsys.torchrun", *self.words(place)]
        with place.log.open("wb") as log:
            launcher = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **own})
        try:
            yield launcher
        finally:
            launcher.kill()
            launcher.wait()

    def words(self, place: Place) -> list[str]:
        """The arguments for torchrun. On every other host it is started by hand with the same ones."""
        met = f"--nnodes {self.hosts} --rdzv-backend c10d --rdzv-endpoint {self.rendezvous} --rdzv-id recsys"
        alone = "--standalone --local-addr 127.0.0.1"
        each = f"--nproc-per-node {self.ranks // self.hosts} --max-restarts {RESTARTS}"
        words = [*(met if self.hosts > 1 else alone).split(), *each.split(), "--log-dir", str(place.folder)]
        return [*words, "-m", "recsys.rank", str(place.folder)]

    def _outcome(self, place: Place, code: int) -> list[Epoch]:
        """The epochs trained, or the error."""
        if place.error.exists():
            raise pickle.loads(place.error.read_bytes())
        if code:
            raise TrainingError(
                f"the {self.ranks} processes of the training ended with exit code {code}, started {1 + RESTARTS} times",
                where=str(place.log),
                mend="The end of the log says why. What was trained by then is kept: a later run goes on from there.",
            )
        return place.told()


if __name__ == "__main__":
    from torch.distributed.run import main

    end_with_parent()
    main(sys.argv[1:])
