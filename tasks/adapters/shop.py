"""The shop of a home: where its events and items are, and by which clock its nights are scheduled.

A home remembers it, so that a restart of the machine does not turn a customer's nights into the built-in shop's.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from zoneinfo import ZoneInfo

from recsys.errors import ConfigError, HomeError
from tasks.adapters.settings import Settings, shop_variables


@dataclass(frozen=True)
class Shop:
    """Empty places mean the built-in shop."""

    events: str = ""  # a file or folder, absolute
    items: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)  # our names and theirs, where they differ
    timezone: str = "UTC"

    @classmethod
    def of(cls, settings: Settings, given: Mapping[str, str] | None = None) -> "Shop":
        """What is `given`, else RECSYS_EVENTS, _ITEMS, _COLUMNS and _TIMEZONE, else what the home remembers.

        Other events are another shop: its items and columns are then not remembered. ConfigError for a place that is
        not there, an unknown time zone and malformed columns; HomeError when what is remembered is damaged.
        """
        words = {**shop_variables(), **{name: text for name, text in (given or {}).items() if text}}
        shop = _remembered(settings)
        if "events" in words:
            shop = cls(events=_place(words["events"], "events"), timezone=shop.timezone)
        if "items" in words:
            shop = replace(shop, items=_place(words["items"], "items"))
        if "columns" in words:
            shop = replace(shop, columns=parse_columns(words["columns"]))
        if "timezone" in words:
            shop = replace(shop, timezone=_timezone(words["timezone"]))
        return shop

    def remember(self, settings: Settings) -> None:
        """Makes it the home's."""
        path = _file(settings)
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps(asdict(self), sort_keys=True, indent=1))
        draft.rename(path)


def parse_columns(text: str) -> dict[str, str]:
    """`user_id=CustomerID,item_id=SKU` -> {"user_id": "CustomerID", "item_id": "SKU"}. ConfigError when malformed."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    for ours, equals, theirs in pairs:
        if not (ours.strip() and equals and theirs.strip()):
            raise ConfigError(
                f"{text!r} does not pair our column names with yours",
                where="--columns",
                mend="Write --columns user_id=CustomerID,item_id=SKU.",
            )
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _remembered(settings: Settings) -> Shop:
    try:
        return Shop(**json.loads(_file(settings).read_bytes()))
    except FileNotFoundError:
        return Shop()
    except (ValueError, TypeError) as error:
        raise HomeError(
            "the file that remembers the shop is damaged",
            where=str(_file(settings)),
            mend="Delete it and name the shop again: recsys up --events ...",
        ) from error


def _file(settings: Settings) -> Path:
    return settings.home / "shop.json"


def _place(text: str, name: str) -> str:
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"{path} does not exist", where=f"--{name}", mend="Name a Parquet or CSV file, or a folder.")
    return str(path)


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        raise ConfigError(
            f"there is no time zone {name!r}", where="--timezone", mend="Write it as Europe/Berlin or UTC."
        ) from error
    return name
