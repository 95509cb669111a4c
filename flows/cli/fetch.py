"""`recsys fetch`: a public data set of GroupLens, checked against its published checksum, in the shape we read."""

import hashlib
import http.client
import io
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from recsys.errors import ConfigError, DataError, HomeError
from tasks.adapters import disk

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
TERMS = "GroupLens allows research use; the data may not be handed on. See the README in the zip."

EVENTS = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "rating": pa.float32()})
ITEMS = pa.schema({"item_id": pa.string(), "title": pa.string(), "category": pa.string()})

_TIMEOUT = 60  # seconds of silence
_MOST_DOWNLOADED = 32 << 20  # bytes; the larger zip has 6 MB
_MOST_UNPACKED = 64 << 20  # bytes of one member; the largest has 25 MB

Fields = list[str]


@dataclass(frozen=True)
class Member:
    """One text file in a zip, Latin-1, a row a line."""

    name: str
    separator: str
    fields: int


@dataclass(frozen=True)
class DataSet:
    """One zip of GroupLens and how its two members are read. `movie` gives (id, title, categories) of a row."""

    file: str
    md5: str  # as published beside the zip
    ratings: Member  # user, item, rating, time
    movies: Member
    movie: Callable[[Fields], tuple[str, str, str | None]]


def command(
    dataset: Annotated[str, typer.Argument(help="movielens-100k or movielens-1m.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for events.parquet and items.parquet.")],
    source: Annotated[
        str, typer.Option("--from", metavar="URL", envvar="RECSYS_FETCH_FROM", help="Address that has the zip.")
    ] = GROUPLENS,
) -> None:
    """Download a public data set and convert it to events.parquet and items.parquet."""
    if dataset not in DATA_SETS:
        raise ConfigError(f"there is no data set {dataset!r}", mend=f"Choose one of {', '.join(DATA_SETS)}.")
    typer.echo(f"Fetching {DATA_SETS[dataset].file} from {source}. {TERMS}")
    events, items = fetch(DATA_SETS[dataset], source, folder)
    typer.echo(f"{events:,} events and {items:,} items. Next:")
    typer.echo(f"recsys nightly --events {folder / 'events.parquet'} --items {folder / 'items.parquet'}")


def fetch(dataset: DataSet, source: str, folder: Path) -> tuple[int, int]:
    """Fills a new `folder`, or nothing is left of it. Gives the numbers of events and items.

    ConfigError when the folder holds something or the address is none; DataError when the download is not what
    GroupLens publishes; HomeError when the disk refuses.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError("there is something already", where=str(folder), mend="Name a new folder.")
    archive = download(f"{source.rstrip('/')}/{dataset.file}", dataset.md5)
    events, items = convert(dataset, archive)
    try:
        with disk.told(folder):
            _publish(events, items, folder.absolute())
    except OSError as error:
        raise HomeError(f"cannot be made: {error.strerror}", where=str(folder), mend="Name another.") from None
    return events.num_rows, items.num_rows


def _publish(events: pa.Table, items: pa.Table, folder: Path) -> None:
    """Both files under their final names at once, or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as drafts:
        draft = Path(drafts) / "whole"
        draft.mkdir()
        for name, table in (("events", events), ("items", items)):
            pq.write_table(table, draft / f"{name}.parquet", compression="zstd", write_page_checksum=True)
        os.rename(draft, folder)


def download(url: str, md5: str) -> bytes:
    """The whole file at an http or https address. DataError when it cannot be had or has another checksum."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no http or https address", where="--from")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read(_MOST_DOWNLOADED + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"cannot be downloaded: {reason}", where=url, mend="Look at the network, or name another place by --from."
        ) from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"its md5 is {found}, published is {md5}", where=url, mend="Download again; nothing was kept.")
    return content


def convert(dataset: DataSet, archive: bytes) -> tuple[pa.Table, pa.Table]:
    """The events, oldest first, and the items of a zip. Only the two named members are read, to bounded sizes."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            ratings = _rows(zipped, dataset.ratings)
            movies = [dataset.movie(row) for row in _rows(zipped, dataset.movies)]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DataError(f"it is no zip that can be read: {error}", where=dataset.file) from None
    users, movie_ids, stars, times = zip(*ratings, strict=True)
    try:
        moments = pa.array(times, pa.string()).cast(pa.int64())
        rated = pa.array(stars, pa.string()).cast(pa.float32())
    except pa.ArrowInvalid as error:
        raise DataError(f"a rating or a time is no number: {error}", where=dataset.ratings.name) from None
    events = pa.table([pa.array(users), pa.array(movie_ids), moments, rated], schema=EVENTS)
    order = np.argsort(moments.to_numpy(), kind="stable")
    items = [pa.array(column, pa.string()) for column in zip(*movies, strict=True)]
    return events.take(order), pa.table(items, schema=ITEMS)


def _rows(zipped: zipfile.ZipFile, member: Member) -> list[Fields]:
    """The rows of a member, split into fields. DataError naming member and line."""
    try:
        with zipped.open(member.name) as file:
            content = file.read(_MOST_UNPACKED + 1)
    except KeyError:
        raise DataError(f"the zip has no {member.name}") from None
    if len(content) > _MOST_UNPACKED:
        raise DataError(f"it unpacks to more than {_MOST_UNPACKED:,} bytes", where=member.name)
    rows = [line.split(member.separator) for line in content.decode("latin-1").split("\n")]
    while rows and rows[-1] == [""]:
        rows.pop()
    wrong = next((line for line, row in enumerate(rows, 1) if len(row) != member.fields), None)
    if wrong is not None or not rows:
        raise DataError(f"expected {member.fields} fields", where=f"{member.name}, line {wrong or 1}")
    return rows


_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The last fields of u.item are flags, in the order of u.genre."""


def _movie_100k(fields: Fields) -> tuple[str, str, str | None]:
    """id, title, dates, address, then a flag for each genre."""
    flags = zip(_GENRES_100K, fields[-len(_GENRES_100K) :], strict=True)
    genres = [genre for genre, flag in flags if flag == "1" and genre != "unknown"]
    return fields[0], fields[1], "|".join(genres) or None


def _movie_1m(fields: Fields) -> tuple[str, str, str | None]:
    """id, title, genres with | between them."""
    return fields[0], fields[1], fields[2] or None


DATA_SETS = {
    "movielens-100k": DataSet(
        file="ml-100k.zip",
        md5="0e33842e24a9c977be4e0107933c0723",
        ratings=Member("ml-100k/u.data", "\t", 4),
        movies=Member("ml-100k/u.item", "|", 24),
        movie=_movie_100k,
    ),
    "movielens-1m": DataSet(
        file="ml-1m.zip",
        md5="c4d9eecfca2ab87c1945afe126590906",
        ratings=Member("ml-1m/ratings.dat", "::", 4),
        movies=Member("ml-1m/movies.dat", "::", 3),
        movie=_movie_1m,
    ),
}
