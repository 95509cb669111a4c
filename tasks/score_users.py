"""score: the best items of every user, or of those asked for, as one Parquet file, in bounded memory."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from recsys.asked import read_asked
from recsys.catalog import load_items
from recsys.config import DataConfig, EventsConfig
from recsys.dataset import BuildPlan
from recsys.errors import ConfigError, DataError, RegistryError, StoreError
from recsys.events import EventSource, input_files, validate_file
from recsys.item_text import TextEncoder, cached_vectors
from recsys.items import validate_items
from recsys.new_items import text_map_of, with_new_items
from recsys.past import Past, past_of_dataset, past_of_events
from recsys.quarantine import TableDraft
from recsys.runtime import Runtime
from recsys.split import DAY
from recsys.text_map import TextMap
from tasks.adapters.disk import told
from tasks.adapters.execution import Workers, open_workers
from tasks.adapters.registry import STUDENT, Version
from tasks.adapters.settings import Settings
from tasks.adapters.store import Store
from tasks.adapters.vault import Vault, forgotten
from tasks.last_night import LastNight
from tasks.scoring import RECOMMENDATIONS, Scoring
from tasks.settle_alias import settle_alias
from tasks.workshop import Workshop


@dataclass(frozen=True)
class Request:
    """What is to be scored."""

    model: str  # champion, challenger, or the number of a version
    users: Path | None  # a file with a column user_id; None: everybody who has events
    events: Path | None  # a file or folder of events; None: those of the last night's dataset
    columns: Mapping[str, str]  # our column names and the files', where they differ
    k: int  # items a user
    out: Path
    items: Path | None = None  # a file of items: those the model does not know are ranked by their texts


@dataclass(frozen=True)
class Scored:
    """What was written."""

    version: int
    as_of: int  # seconds UTC, exclusive: histories end before it
    users: int
    by_popularity: int  # of them, without a known item in their history
    rows: int
    dataset: str  # digest of the one the histories are from; empty for those of a file of events
    notes: tuple[str, ...]


def ignore(workers: Workers) -> None:
    """Nobody wants to see them."""


def score_users(
    settings: Settings,
    request: Request,
    on_progress: Callable[[int], None],
    on_workers: Callable[[Workers], None] = ignore,
) -> Scored:
    """Writes `request.out`, which appears when it is whole; `on_progress` receives how many users are done.

    `on_workers` hears who works. Raises ConfigError, DataError or HomeError for what the user can mend, RegistryError
    without such a model.
    """
    if request.out.suffix != ".parquet" or not request.out.absolute().parent.is_dir():
        raise ConfigError(
            f"{request.out} is no .parquet file in a folder that is there",
            where="--out",
            mend="Write --out recs.parquet.",
        )
    store, vault = Store(settings.store), Vault(settings.vault, settings.vault_key)
    asked = read_asked(request.users, request.columns, vault.door) if request.users else None
    workshop = Workshop.of(settings)
    version, notes = chosen_version(workshop, request.model)
    folder = store.open("artifact", digest_of(version))
    with open_workers(settings) as workers:
        on_workers(workers)
        runtime = Runtime.open(folder, threads=workers.threads)
        if request.items is not None:
            runtime, note = _with_items(settings, runtime, text_map_of(folder), request.items, request.columns)
            notes = [*notes, note]
        with (
            told(request.out),
            _source(settings, store, request, runtime) as source,
            TableDraft(request.out, RECOMMENDATIONS) as draft,
        ):
            scoring = Scoring(runtime, version.number, request.k, draft, workers.executor, on_progress)
            if asked is None:
                notes += scoring.serve_everybody(source.past, source.names or vault)
            else:
                notes += scoring.serve_asked(source.past, asked)
    counts = (scoring.users, scoring.by_popularity, scoring.rows)
    return Scored(version.number, source.past.as_of, *counts, source.dataset, (*notes, *source.notes))


def _with_items(
    settings: Settings, runtime: Runtime, text_map: TextMap, file: Path, columns: Mapping[str, str]
) -> tuple[Runtime, str]:
    """The model with the new items of a file, and how many those are."""
    encoder = TextEncoder.from_described(text_map.reader)
    if encoder.described() != text_map.reader:
        raise ConfigError(
            "the language model is not the one that this version learnt its texts from",
            where=text_map.reader["encoder"],
            mend="Put its files back as they were, or leave --items out until the next night.",
        )
    with TemporaryDirectory(dir=settings.temp, prefix="items-") as temporary:
        validate_items(file, Path(temporary), columns, EventsConfig().max_quarantined)
        items = load_items(Path(temporary) / "items.parquet")
    texts = cached_vectors(encoder, items, settings.cache / "text")
    more = with_new_items(runtime, text_map, items, texts)
    return more, f"{more.items - runtime.items:,} of {items.items:,} items are new and ranked by their texts"


# --- which model --------------------------------------------------------------------------------------------------


def chosen_version(workshop: Workshop, model: str) -> tuple[Version, list[str]]:
    """The version that `champion`, `challenger` or a number means, and what had to be settled to tell.

    The champion is the ledger's: an alias that was moved by hand is adopted or put back first.
    """
    registry = workshop.registry
    if model.isdecimal():
        return registry.version(STUDENT, int(model)), []
    if model not in ("champion", "challenger"):
        mend = "Write champion, challenger or the number of a version."
        raise ConfigError(f"{model!r} names no model", where="--model", mend=mend)
    notes = []
    if model == "champion":
        settled = settle_alias(workshop)
        if settled and settled.outcome == "gone":
            raise RegistryError(settled.sentence, where=registry.client.uri)
        notes = [settled.sentence] if settled else []
        number = workshop.ledger.chain().require_intact().champion
    else:
        number = registry.aliases(STUDENT).get(model)
    if number is None:
        listed = ", ".join(str(version.number) for version in registry.versions(STUDENT)) or "none yet"
        mend = f"Run a night, or name a version with --model; there are: {listed}."
        raise RegistryError(f"there is no {model} of {STUDENT}", where=registry.client.uri, mend=mend)
    return registry.version(STUDENT, number), notes


def digest_of(version: Version) -> str:
    """Of a version's files in the store. RegistryError where no night has registered it."""
    if not version.digest:
        raise RegistryError(
            f"{STUDENT} version {version.number} was not registered by a night: what its files are is not known",
            mend="Name another version with --model.",
        )
    return version.digest


# --- which histories ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    past: Past
    names: Vault | None  # of the users of a file of events, which the home's vault need not know
    dataset: str  # digest; empty for a file of events
    notes: tuple[str, ...]


@contextmanager
def _source(settings: Settings, store: Store, request: Request, runtime: Runtime) -> Iterator[_Source]:
    """Histories up to as-of. Those of a file of events lie in a temporary folder, and so do its users' names."""
    if request.events is None:
        dataset = LastNight.of(store).dataset
        yield _Source(past_of_night(store, dataset, runtime), None, dataset, ())
        return
    with TemporaryDirectory(dir=settings.temp, prefix="score-") as temporary:
        folder = Path(temporary)
        names = Vault(folder / "vault", settings.vault_key)
        tomorrow = int(time.time()) + DAY  # a shop's clock may be ahead of ours
        gone, door = frozenset(forgotten(settings.vault)), Vault(settings.vault, settings.vault_key).door
        source = EventSource(request.columns, None, tomorrow, door, names.remember, gone)
        config, accepted, newest, notes = _event_rules(store, runtime), [], [], []
        for number, file in enumerate(input_files(request.events)):
            validation = validate_file(file, folder / str(number), source, config)
            accepted.append(folder / str(number) / "accepted.parquet")
            newest += [] if validation.newest is None else [validation.newest]
            if validation.quarantined:
                notes.append(f"{file.name}: {validation.quarantined:,} of {validation.lines:,} rows are quarantined")
        if not newest:
            raise DataError("there are no events", where=str(request.events), mend="Leave --events out, or bring some.")
        plan = BuildPlan(
            events=config,
            data=DataConfig(repeats=runtime.card.repeats),
            as_of=max(newest) + 1,
            shards=settings.shards,
            memory_mb=settings.memory_mb,
            temp=folder,
            threads=settings.threads,
        )
        yield _Source(past_of_events(accepted, plan, runtime.item_ids), names, "", tuple(notes))


def past_of_night(store: Store, dataset: str, runtime: Runtime) -> Past:
    """The histories of a dataset. ConfigError when it lacks the repeats that the model wants."""
    past = past_of_dataset(store.open("build", dataset), runtime.code_of)
    if past.repeats == "exclude" and runtime.card.repeats == "allow":
        raise ConfigError(
            "the last night left repeated items out of its histories, and this model wants them",
            where="--model",
            mend="Name the events with --events, or choose another version.",
        )
    return past


def _event_rules(store: Store, runtime: Runtime) -> EventsConfig:
    """As the model's own dataset was built, where the store still knows it."""
    try:
        return EventsConfig.model_validate(store.manifest("build", runtime.card.lineage["dataset"]).config["events"])
    except (KeyError, StoreError):
        return EventsConfig()
