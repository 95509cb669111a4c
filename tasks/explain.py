"""Why an object must be made: what of its recipe differs from the nearest that was made before, in words."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recsys.errors import StoreError
from tasks.adapters.manifest import Manifest, Recipe
from tasks.adapters.store import Store

_SECTIONS: Mapping[str, str] = {"distil": "search.", "compress": "compress.", "label": "labels.", "validate": "events."}
"""Whose knobs a step's recipe holds without saying so."""

_ELSEWHERE = {"length": "data.history_length", "recovery": "search", "items": "events"}
"""Parts of a recipe that come from another section."""

_WORDS = {
    "validate": "file of events",
    "items": "items",
    "build": "dataset",
    "teach": "teacher",
    "label": "soft labels",
    "distil": "student",
    "compress": "compression",
    "artifact": "artifact",
    "evaluate": "report",
}
_TODAY = "not_after"  # a file with rows from the future is looked at again every day


def why(store: Store, recipe: Recipe) -> str:
    """A sentence without a full stop."""
    made = earlier(store, recipe.step)
    if any(manifest.key == recipe.key for manifest in made):
        return "what was made is damaged or gone"
    same_kind = [m for m in made if m.config.get("role") == recipe.config.get("role")]
    if not same_kind:
        return "never made in this home"
    nearest = min((list(_differences(store, recipe, manifest)) for manifest in same_kind), key=len)
    return "; ".join(nearest) or "rows from the future are looked at again every day"


def earlier(store: Store, step: str) -> list[Manifest]:
    """What a step has made and the store still has, newest first."""
    paths = (store.root / "manifests" / step).glob("*.json")
    newest_first = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    return [manifest for path in newest_first if (manifest := _read(path))]


def _differences(store: Store, recipe: Recipe, manifest: Manifest) -> Iterator[str]:
    if recipe.version != manifest.version:
        yield f"the step is of VERSION {recipe.version}, not {manifest.version}"
    yield from _changed(_knobs(recipe.step, manifest.config), _knobs(recipe.step, recipe.config))
    yield from _changed(dict(manifest.environment), dict(recipe.environment))
    yield from _other_parents(store, recipe, manifest)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*before, *now} - {_TODAY}):
        if before.get(name) != now.get(name):
            yield f"{name} is {_shown(now.get(name))}, was {_shown(before.get(name))}"


def _other_parents(store: Store, recipe: Recipe, manifest: Manifest) -> Iterator[str]:
    """What goes in that did not before, each kind once."""
    before = set(manifest.parents)
    new = [parent.rsplit(" ", 1)[-1] for parent in recipe.parents if parent not in before]
    kinds = dict.fromkeys(_kind(store, digest) for digest in new)
    for kind in kinds:
        if kind:
            yield f"another {kind}"
        else:
            yield "the file is new or has changed" if recipe.step in ("validate", "items") else "another input"
    if not new and recipe.parents != manifest.parents:
        yield "fewer or reordered inputs"


def _kind(store: Store, digest: str) -> str:
    for path in (store.root / "objects").glob(f"*/{digest}.json"):
        return _WORDS.get(path.parent.name, path.parent.name)
    return ""


def _knobs(step: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a recipe, each knob by the name it is turned by."""
    named: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and name != "columns":
            section = _ELSEWHERE.get(name, name)
            named |= {f"{section}.{knob}": each for knob, each in value.items()}
        else:
            named[_ELSEWHERE.get(name) or f"{'' if name == _TODAY else _SECTIONS.get(step, '')}{name}"] = value
    return named


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)


def _read(path: Path) -> Manifest | None:
    try:
        return Manifest.read(path)
    except StoreError:
        return None
