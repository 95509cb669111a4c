"""What must hold of every input: a sentence that helps, or a result that adds up to the row. Nothing else, nothing left.

`BreachError` is raised where it does not.
"""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.asked import read_asked
from recsys.config import EventsConfig, NightConfig
from recsys.dataset import BuildPlan, build
from recsys.door import Door
from recsys.errors import ArtifactError, InputError, StoreError, TrainingError
from recsys.events import EventSource, input_files, validate_file
from recsys.items import validate_items
from recsys.known import as_of_time
from recsys.resolve import resolve
from tasks.adapters.shop import parse_columns
from tests.fuzz.mutator import Delivery, Words

DOOR = Door(b"k" * 32)
NOT_AFTER = 1_800_000_000
LONGEST = 3000
"""Characters of a message."""
CANARY = "canary"
"""Stands in every user id; where it is seen, a user's name got out."""
SPEAKING = {"no_header", "swap_columns", "packed", "other_line_ends"}
"""Mutators that turn a user's id into the name of a column or an item's id: nobody can know that it is one."""
TOLERANT = EventsConfig(max_quarantined=1)


class BreachError(AssertionError):
    """The law was broken; why is the message."""


def require(holds: object, why: str) -> None:
    """Raises BreachError unless it holds."""
    if not holds:
        raise BreachError(why)


def sentence(error: Exception, *names: str) -> None:
    """A refusal is for the user: kind, length, characters, where, how to mend it."""
    text = str(error)
    require(isinstance(error, InputError), f"{type(error).__name__} is not the user's to mend: {text[:300]}")
    require(not isinstance(error, TrainingError | StoreError | ArtifactError), "of another kind")
    odd = sorted(
        {
            f"U+{ord(c):04X}"
            for c in text
            if unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp") and c not in "\u200c\u200d"
        }
    )
    require(not odd, f"characters no terminal should get {odd}: {text[:300]!r}")
    require(len(text) <= LONGEST, f"{len(text)} characters: {text[:300]!r}")
    require(error.mend, f"no way to mend it is told: {text[:300]!r}")
    require(text[-1] in ".?!", f"no sentence: {text[-200:]!r}")
    require("Traceback" not in text, text[:300])
    require(not names or any(name in text for name in names), f"{names} is not named: {text[:300]!r}")


# --- files ----------------------------------------------------------------------------------------------------------


def read_file(one: Delivery, folder: Path, quiet: bool, *, building: bool) -> str:
    """Reads a delivery as a night does. "accepted" or "refused"; BreachError where the law is."""
    out, met = folder / "out", {}
    source = EventSource(
        {},
        None,
        NOT_AFTER,
        DOOR,
        lambda users: met.update(zip(users["token"].to_pylist(), users["user_id"].to_pylist(), strict=True)),
    )
    try:
        file = folder / one.name
        file.write_bytes(one.raw)
        (file,) = input_files(file)
        if one.kind == "users":
            _asked(one, file)
            return "accepted"
        found = (
            validate_items(file, out, {}, 1.0) if one.kind == "items" else validate_file(file, out, source, TOLERANT)
        )
    except InputError as error:
        sentence(error)
        require(quiet or CANARY not in str(error), f"a user's id got out: {str(error)[:300]}")
        require(
            not out.exists() or not list(out.iterdir()),
            f"left behind: {[p.name for p in out.iterdir()] if out.exists() else ()}",
        )
        return "refused"
    main = "items.parquet" if one.kind == "items" else "accepted.parquet"
    require(
        {p.name for p in out.iterdir()} == {main, "quarantine.parquet", "validation.json"},
        f"{sorted(p.name for p in out.iterdir())}",
    )
    accepted, refused = pq.read_table(out / main), pq.read_table(out / "quarantine.parquet")
    require(
        type(found).from_json(json.loads((out / "validation.json").read_text())) == found,
        "validation.json tells something else",
    )
    require(
        (found.accepted, found.quarantined) == (len(accepted), len(refused)), "the tables hold other numbers of rows"
    )
    doubles = getattr(found, "duplicates", 0)
    require(found.lines == found.accepted + found.quarantined + doubles, f"{found} does not add up")
    require(sum(found.by_rule.values()) == found.quarantined, f"{found.by_rule} does not add up")
    require(
        quiet or one.kind == "items" or CANARY not in f"{refused.to_pylist()}{found.notes}",
        "a user's id is in quarantine or notes",
    )
    require(len(f"{found.notes}") < 20_000, "endless notes")
    _rows(one, found.lines, None if one.kind == "items" else accepted, refused)
    if one.kind == "events":
        _events(one, found, accepted, met)
        if building and found.accepted:
            _built(folder, out)
    else:
        require(len(set(accepted["item_id"].to_pylist())) == len(accepted), "an item id is there twice")
    return "accepted"


def _rows(one: Delivery, lines: int, accepted: pa.Table | None, refused: pa.Table) -> None:
    """Every row is in one of the two tables, and as many were read as the file has."""
    first = 2 if one.name.lower().endswith(".csv") else 1
    gone = refused["row"].to_numpy()
    if accepted is not None:
        rows = np.sort(np.concatenate([accepted["row"].to_numpy(), gone]))
        require(np.array_equal(rows, np.arange(first, first + lines)), "a row is nowhere, or in both tables")
    require(not len(gone) or (gone.min() >= first and gone.max() < first + lines), "a row that the file does not have")
    if one.name.lower().endswith(".csv"):
        ends = one.raw.count(b"\n")
        require(
            lines == max(0, ends - 1) + (ends > 0 and not one.raw.endswith(b"\n")),
            f"{lines} lines are not those of the file",
        )
    elif not one.touched:
        require(lines == one.table.num_rows, f"{lines} rows of {one.table.num_rows}")


def _events(one: Delivery, found: object, accepted: pa.Table, met: dict[str, str]) -> None:
    require(
        found.users == len(pc.unique(accepted["token"])) and found.items == len(pc.unique(accepted["item_id"])),
        "users or items miscounted",
    )
    require(set(accepted["token"].to_pylist()) == set(met), "the vault met other users than were accepted")
    require(all(DOOR.token(name) == token for token, name in met.items()), "a token of another user")
    times = accepted["timestamp"].to_numpy()
    require(not len(times) or (times.min() >= 0 and times.max() <= NOT_AFTER), "a time from before 1970 or the future")
    require(
        (found.oldest, found.newest) == ((int(times.min()), int(times.max())) if len(times) else (None, None)),
        "oldest or newest",
    )
    require(
        all(text.strip() and len(text) <= 512 for text in pc.unique(accepted["item_id"]).to_pylist()),
        "an id that is none",
    )
    _exact(one, accepted)


def _exact(one: Delivery, accepted: pa.Table) -> None:
    """Ids are to the byte what was written."""
    kind = None if one.touched or "item_id" not in one.table.column_names else one.table["item_id"].type
    if kind is None or not any(
        is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_binary, pa.types.is_integer)
    ):
        return
    column = one.table["item_id"]
    written = (column.cast(pa.string()) if pa.types.is_integer(kind) else column).cast(pa.binary()).to_pylist()
    first = 2 if one.csv else 1
    for row, item_id in zip(accepted["row"].to_pylist(), accepted["item_id"].to_pylist(), strict=True):
        require(written[row - first] == item_id.encode(), f"row {row}: {written[row - first]!r} became {item_id!r}")


def _asked(one: Delivery, file: Path) -> None:
    asked = read_asked(file, {}, DOOR)
    require(len(asked.user_ids) == len(asked.tokens) == len(set(asked.user_ids.to_pylist())), "users doubled or lost")
    if not one.touched:
        require(
            asked.doubled + len(asked.user_ids) == one.table.num_rows,
            f"{asked.doubled} doubled, {len(asked.user_ids)} users, {one.table.num_rows} rows",
        )


def _built(folder: Path, out: Path, config: NightConfig | None = None) -> None:
    """A dataset is made, adding up, or refused in a sentence."""
    config = config or NightConfig()
    plan = BuildPlan(config.events, config.data, None, 2, 512, folder / "temp", 1)
    try:
        made = build([out / "accepted.parquet"], None, None, folder / "dataset", plan)
    except InputError as error:
        return sentence(error)
    gone = made.duplicates + made.left_out + made.repeats + made.after_as_of + made.capped
    require(made.accepted == made.kept + gone, f"{made} does not add up")
    require(not list((folder / "temp").iterdir()), "the database of the build is still there")


# --- words ----------------------------------------------------------------------------------------------------------


def read_words(one: Words, folder: Path) -> str:
    """Reads what somebody typed as a command does; knobs of the data are tried in a build."""
    try:
        if one.kind == "columns":
            parse_columns(one.words[0])
        elif one.kind == "as_of":
            require(abs(as_of_time(one.words[0]).timestamp()) < 2**40, "a time beyond all calendars")
        else:
            _whole(resolve(one.preset, one.words), folder)
    except InputError as error:
        sentence(error)
        return "refused"
    return "accepted"


def _whole(config: NightConfig, folder: Path) -> None:
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False, ensure_ascii=False)
    text.encode()
    require(NightConfig.model_validate_json(text) == config, "it does not survive its own JSON")
    numbers = [v for section in config.model_dump().values() for v in section.values() if isinstance(v, int)]
    require(all(abs(number) < 2**63 for number in numbers), "a whole number that no engine holds")
    if config.events != NightConfig().events or config.data != NightConfig().data:
        source = EventSource({}, None, NOT_AFTER, DOOR, lambda users: None)
        file = folder / "events.csv"
        kinds = ("view", "purchase", "like")
        rows = [f"u{n % 7},i{n % 5},{1_700_000_000 + n * 43_200},{kinds[n % 3]},{n % 6}" for n in range(60)]
        file.write_text("user_id,item_id,timestamp,event,rating\n" + "\n".join(rows))
        validate_file(file, folder / "out", source, TOLERANT)
        _built(folder, folder / "out", config)
