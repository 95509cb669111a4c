"""A night rehearsed: the very tasks, on a store that finds what is there and refuses to make anything.

So recipes are written in one place, and what is foretold is what the night will do. Nothing is recorded; what a task
would write down for later is remembered until the rehearsal is over.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from tasks.adapters.heads import Value
from tasks.adapters.store import Recipe, Store, Stored
from tasks.adapters.tracking import Status, Tracking
from tasks.night import Night, Step
from tasks.workshop import Workshop


class WouldMake(Exception):  # noqa: N818  no error: the rehearsal has come to what must be made
    """The store has no object of this recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        super().__init__(recipe.step)


class RehearsedNight(Night):
    """A night whose steps make nothing. It knows which have begun, in order."""

    _workshop: Workshop = PrivateAttr()
    _begun: list["RehearsedStep"] = PrivateAttr(default_factory=list)

    def on(self, workshop: Workshop) -> "RehearsedNight":
        """On the objects of a home."""
        self._workshop = Workshop(
            workshop.settings,
            _Frozen(workshop.settings.store),
            _Unrecorded(workshop.settings),
            workshop.registry,
            workshop.ledger,
        )
        return self

    @property
    def begun(self) -> list["RehearsedStep"]:
        """The steps so far; the last one may not have ended."""
        return self._begun

    def begin(self, name: str, title: str) -> Step:
        """A step that makes nothing."""
        at = RehearsedStep(self, name, title, self._workshop)
        self._begun.append(at)
        return at


class RehearsedStep(Step):
    """A step that tells and records nothing; `said` is what it would have shown last."""

    def __init__(self, night: Night, name: str, title: str, workshop: Workshop) -> None:
        self.workshop = workshop
        self.settings, self.store, self.tracking = workshop.settings, workshop.store, workshop.tracking
        self.registry, self.ledger = workshop.registry, workshop.ledger
        self.night, self.name, self.title = night, name, title
        self.logger = logging.getLogger(__name__)
        self.logger.propagate = False
        self.made: list[Stored] = []
        self.idle = False
        self.said = ""
        self.ended = False
        self.opened = ExitStack()

    def progress(self, share: float, text: str) -> None:
        """Is remembered."""
        self.said = text

    def tell(self, text: str) -> None:
        """Is remembered."""
        self.said = text

    def close(self) -> None:
        """The step found all it needs."""
        self.ended = True


class _Frozen(Store):
    """Objects are found and never made, nor set aside; names are kept for the rehearsal alone."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._remembered: dict[str, Mapping[str, Any]] = {}

    def make(self, recipe: Recipe, build: Callable[[Path], object]) -> Stored:
        found = self.find(recipe)
        if found is None:
            raise WouldMake(recipe)
        return found

    def scratch(self, recipe: Recipe) -> Path:
        return self.root / "scratch" / recipe.key

    def set_aside(self, path: Path) -> None:
        pass

    def head(self, name: str) -> Mapping[str, Any] | None:
        return self._remembered.get(name) or super().head(name)

    def set_head(self, name: str, value: Mapping[str, Any]) -> None:
        self._remembered[name] = value

    def move_head(self, name: str, change: Callable[[Value | None], Value | None]) -> Value | None:
        if (value := change(self.head(name))) is not None:
            self._remembered[name] = value
        return self.head(name)

    def once(self, name: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._remembered.setdefault(name, value)


class _Unrecorded(Tracking):
    """Nothing is written to MLflow."""

    def start_child(self, parent_run_id: str, name: str, tags: Mapping[str, str]) -> str:
        return ""

    def finish(self, run_id: str, status: Status) -> None:
        pass

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        pass

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        pass

    def log_artifacts(self, run_id: str, path: Path, folder: str = "") -> None:
        pass

    def log_text(self, run_id: str, text: str, name: str) -> None:
        pass

    def log_dataset(
        self, run_id: str, name: str, digest: str, *, source: str, rows: int, context: str = "training"
    ) -> None:
        pass
