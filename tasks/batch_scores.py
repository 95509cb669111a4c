"""Batch scores: what the champion recommends to everybody, as one folder of the home that is whole or absent.

    scores/<as-of>-v<version>/recommendations.parquet   columns of recsys score
    scores/<as-of>-v<version>/scores.json               `BatchScores`
    scores/latest                                       a link to the newest, turned over at once

A folder is never written again. Scores of the same dataset, version and k are made once; others of the same as-of and
version, by another k or of another dataset, get a name of their own (.2, .3). Knows no orchestrator.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys import wording
from recsys.errors import HomeError
from recsys.event_union import Engine
from recsys.score_change import ScoreChange, score_change
from recsys.small_cells import FEW, FEWEST, told, withheld
from tasks.adapters import disk
from tasks.adapters.execution import Workers
from tasks.adapters.settings import Settings
from tasks.last_night import LastNight
from tasks.score_users import Request, chosen_version, ignore, score_users
from tasks.workshop import Workshop

RECOMMENDATIONS = "recommendations.parquet"
STAMP = "scores.json"
LATEST = "latest"


class BatchScores(BaseModel):
    """What `scores.json` says, and the name of its folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: int  # of the champion that scored
    as_of: int  # seconds UTC, exclusive: histories end before it
    dataset: str  # digest
    artifact: str  # digest
    k: int
    users: int
    by_popularity: int  # of them, without a known item in their history
    rows: int
    before: str | None  # name of the folder that was the newest before
    common_users: int  # with it
    share_changed: float | None  # of the common users, whose first k hold another item
    overlap: float | None  # mean share of a list's first k that was in it before

    @property
    def sentence(self) -> str:
        """For people."""
        said = f"version {self.version} scored {told(self.users)} as of {wording.moment(self.as_of)}"
        if self.share_changed is None:
            return f"{said}; there was nothing before to compare with"
        if self.common_users < FEWEST:
            return f"{said}; {FEW} were scored before too"
        return (
            f"{said}; {wording.percent(self.share_changed)} of {self.common_users:,} lists changed since {self.before}"
        )

    @property
    def counts(self) -> dict[str, float]:
        """What may be told to whoever asks: no number of so few users that it tells about single ones."""
        numbers: dict[str, float] = {"rows": self.rows} if self.users >= FEWEST else {}
        few = withheld([self.users - self.by_popularity, self.by_popularity])
        numbers |= {"users": self.users} if self.users >= FEWEST else {}
        numbers |= {"by_popularity": self.by_popularity} if not few[1] or not self.by_popularity else {}
        if self.share_changed is not None and self.overlap is not None and self.common_users >= FEWEST:
            numbers |= {"share_changed": self.share_changed, "overlap": self.overlap}
        return numbers


class Published(BaseModel):
    """What a scoring came to. `reused`: these scores were there."""

    model_config = ConfigDict(frozen=True)

    scores: BatchScores
    reused: bool
    notes: tuple[str, ...]


def newest(settings: Settings) -> BatchScores | None:
    """Those that `latest` names; None where there are none yet."""
    return _read(_folder(settings) / LATEST)


def publish(
    workshop: Workshop, k: int, on_progress: Callable[[int], None], on_workers: Callable[[Workers], None] = ignore
) -> Published:
    """The champion's k best items for every user of the last night's dataset; `on_progress` gets the users done.

    `on_workers` hears who works, if anybody must. HomeError without a night, RegistryError without a champion, and what
    `score_users` raises.
    """
    settings = workshop.settings
    with _alone(settings):
        version, notes = chosen_version(workshop, "champion")
        wanted = (LastNight.of(workshop.store).dataset, version.number, k)
        for scores in _all(settings):
            if (scores.dataset, scores.version, scores.k) == wanted:
                _turn(settings, scores.name)
                return Published(scores=scores, reused=True, notes=tuple(notes))
        with TemporaryDirectory(dir=settings.temp, prefix="scores-") as temporary:
            draft = Path(temporary) / "whole"
            draft.mkdir(mode=0o700)
            request = Request(
                model=str(version.number), users=None, events=None, columns={}, k=k, out=draft / RECOMMENDATIONS
            )
            scored = score_users(settings, request, on_progress, on_workers)
            before = newest(settings)
            change, told = _change(settings, draft / RECOMMENDATIONS, before, k)
            scores = BatchScores(
                name=_free_name(settings, scored.as_of, version.number),
                version=version.number,
                as_of=scored.as_of,
                dataset=scored.dataset,
                artifact=version.digest,
                k=k,
                users=scored.users,
                by_popularity=scored.by_popularity,
                rows=scored.rows,
                before=before and before.name,
                common_users=change.users,
                share_changed=change.share_changed,
                overlap=change.overlap,
            )
            _commit(settings, draft, scores)
        return Published(scores=scores, reused=False, notes=(*notes, *scored.notes, *told))


def _change(settings: Settings, new: Path, before: BatchScores | None, k: int) -> tuple[ScoreChange, list[str]]:
    """Against the newest before, by as many items as both have of a user. What cannot be compared is said."""
    if before is None:
        return ScoreChange(0, None, None), []
    old = _folder(settings) / before.name / RECOMMENDATIONS
    try:
        with TemporaryDirectory(dir=settings.temp, prefix="change-") as folder:
            engine = Engine(settings.memory_mb, settings.threads, Path(folder))
            return score_change(new, old, min(k, before.k), engine), []
    except HomeError as error:
        return ScoreChange(0, None, None), [str(error)]


# --- the folder ---------------------------------------------------------------------------------------------------


def _folder(settings: Settings) -> Path:
    return settings.home / "scores"


def _read(folder: Path) -> BatchScores | None:
    """None for a folder that is not there, or whose stamp is of no kind we know: it is scored again."""
    with suppress(FileNotFoundError, NotADirectoryError, ValidationError, ValueError):
        return BatchScores.model_validate({"name": folder.resolve().name, **json.loads((folder / STAMP).read_bytes())})
    return None


def _all(settings: Settings) -> Iterator[BatchScores]:
    for path in sorted(_folder(settings).glob(f"*/{STAMP}")):
        if not path.parent.is_symlink() and (scores := _read(path.parent)):
            yield scores


def _free_name(settings: Settings, as_of: int, version: int) -> str:
    name = f"{datetime.fromtimestamp(as_of, UTC):%Y%m%dT%H%M%SZ}-v{version}"
    names = [name, *(f"{name}.{number}" for number in range(2, 10_000))]
    return next(each for each in names if not (_folder(settings) / each).exists())


def _commit(settings: Settings, draft: Path, scores: BatchScores) -> None:
    """Gives the draft its name, and then the link."""
    text = json.dumps(scores.model_dump(exclude={"name"}), sort_keys=True, indent=1, allow_nan=False)
    with disk.told(_folder(settings)):
        disk.write(draft / STAMP, text.encode("ascii"))
        with (draft / RECOMMENDATIONS).open("rb") as file:
            os.fsync(file.fileno())
        disk.sync(draft)
        os.rename(draft, _folder(settings) / scores.name)
        _turn(settings, scores.name)


def _turn(settings: Settings, name: str) -> None:
    """Makes `latest` name a folder; whoever follows it finds the old one or the new one."""
    folder = _folder(settings)
    draft = folder / f".{LATEST}"
    disk.remove(draft)
    draft.symlink_to(name)
    os.replace(draft, folder / LATEST)
    disk.sync(folder)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One scoring of a home at a time."""
    _folder(settings).mkdir(mode=0o700, exist_ok=True)
    with (settings.home / "run" / "scores.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
